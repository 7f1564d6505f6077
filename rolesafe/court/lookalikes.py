"""Letters that look like Latin ones, by the Latin letter; a hand-picked part of Unicode's table of confusables.

Compatibility forms (full-width, mathematical, circled letters, ligatures) and accents need no entry: compatibility
decomposition removes them. Digits are left alone: ``0`` for ``o`` would veto numbers.
"""

from __future__ import annotations

_GROUPS = (
    # Latin, Cyrillic, Greek, Armenian, Cherokee, Latin with strokes and small capitals
    ("a", "аαɑᴀ"), ("b", "ЬʙƄ"), ("c", "сϲᴄⅽ"), ("d", "ԁɗᴅժ"), ("e", "еҽєᴇ℮"), ("f", "ſƒꜰ"),
    ("g", "ɡցɢ"), ("h", "һհʜ"), ("i", "іıɩιɪ"), ("j", "јϳᴊ"), ("k", "кκᴋ"), ("l", "ӏⅼʟƖ"),
    ("m", "мᴍⅿ"), ("n", "пոηɴ"), ("o", "оοօσᴏ"), ("p", "рρᴘ"), ("q", "ԛգ"), ("r", "гʀᴦ"),
    ("s", "ѕʂꜱ"), ("t", "тτᴛ"), ("u", "υսᴜʋ"), ("v", "νѵᴠⅴ"), ("w", "ѡԝᴡա"), ("x", "хχⅹ"),
    ("y", "уүγʏ"), ("z", "ᴢʐ"),
    ("A", "АΑᎪ"), ("B", "ВΒᏴ"), ("C", "СϹᏟ"), ("D", "ᎠⅮ"), ("E", "ЕΕᎬ"), ("F", "ϜҒ"), ("G", "ԌᏀ"),
    ("H", "НΗᎻ"), ("I", "ІΙӀ"), ("J", "ЈᎫ"), ("K", "КΚᏦ"), ("L", "ᏞⅬ"), ("M", "МΜᎷ"), ("N", "Ν"),
    ("O", "ОΟՕ"), ("P", "РΡᏢ"), ("Q", "Ԛ"), ("R", "ᎡƦ"), ("S", "ЅᏚՏ"), ("T", "ТΤᎢ"), ("U", "Սᑌ"),
    ("V", "ѴᏙⅤ"), ("W", "ԜᎳ"), ("X", "ХΧⅩ"), ("Y", "ҮΥᎩ"), ("Z", "ΖᏃ"),
    ("o", "øɵ"), ("O", "Ø"), ("d", "đ"), ("D", "Đ"), ("l", "ł"), ("L", "Ł"), ("h", "ħ"), ("t", "ŧ"),
    ("-", "\u2010\u2011\u2012\u2013\u2014\u2212"), ("'", "\u2018\u2019\u02bc\u2032"), ('"', "\u201c\u201d\u2033"),
)  # fmt: skip

LOOKALIKES: dict[str, str] = {like: letter for letter, likes in _GROUPS for like in likes}
"""Latin letter, hyphen or quotation mark of each look-alike."""
