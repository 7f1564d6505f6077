"""Letters that look like Latin ones, by the Latin letter; a hand-picked part of Unicode's table of confusables.

Compatibility forms (full-width, mathematical, circled letters, ligatures) and accents need no entry: compatibility
decomposition removes them. Digits are left alone: ``0`` for ``o`` would veto numbers.
"""

from __future__ import annotations

from functools import cache

from rolesafe.extras import require

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


@cache
def unicode_confusables() -> dict[str, str]:
    """Return the Latin letters of Unicode's table of confusables (UTS 39), of the package confusable-homoglyphs.

    Characters beyond ASCII alone: digits and ASCII letters are never exchanged. :data:`LOOKALIKES` goes first, where
    both have a character: Unicode writes a capital I as l.

    Raises:
        ImportError: The package is not installed.
    """
    rows = require("confusable_homoglyphs.confusables", "court").confusables_data
    found = {}
    for character, likes in rows.items():
        letters = [like["c"] for like in likes if like["c"].isascii() and like["c"].isalpha()]
        if len(character) == 1 and not character.isascii() and letters:
            found[character] = letters[0]
    return {**found, **LOOKALIKES}
