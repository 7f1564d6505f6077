"""Control and invisible characters are spelled out; long text is cut."""

from __future__ import annotations

import pytest

from rolesafe.report.jinja import shorten
from rolesafe.terminal import MOST_MARKS, as_text, one_line, run_main, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, über, 日本, 😀\nsecond line", "plain text, über, 日本, 😀\nsecond line"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("back\rspace\x08\x00", "back\\x0dspace\\x08\\x00"),
        ("lone \ud800", "lone \\ud800"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_visible_spells_out_hidden_characters(text: str, expected: str) -> None:
    assert visible(text) == expected
    visible(text).encode("utf-8")


def test_as_text_is_plain_and_one_line() -> None:
    assert as_text("[bold red]x[/] :bomb:\n\x1b]0;x\x07").plain == "[bold red]x[/] :bomb:\\x0a\\x1b]0;x\\x07"
    assert as_text("[bold]x").spans == []
    assert one_line(b"a\xff".decode("utf-8", "surrogateescape")) == "a\\udcff"


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (ValueError("`x`: a\n  b\x1b[1m"), 2, "error: `x`: a b\\x1b[1m\n"),
        (
            OSError(28, "No space left on device", "a\x1bb"),
            1,
            "error: 'a\\x1bb' cannot be used: No space left on device\n",
        ),
        (ImportError("no x"), 1, "error: no x\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_run_main_error_is_one_line_and_a_status(capsys, monkeypatch, raised, status, said) -> None:
    monkeypatch.setattr("rolesafe.terminal.guard_terminal", lambda: None)

    def main() -> int:
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert (ended.value.code, capsys.readouterr().err) == (status, said)


def test_shorten_counts_the_missing_characters() -> None:
    text = "a" * 500 + "END"
    assert shorten(text, 503) == text
    short = shorten(text, 100)
    assert "403 characters left out" in short
    assert short.startswith("a" * 60)
    assert short.endswith("END")


def test_visible_limits_combining_marks() -> None:
    """Many marks on one letter cover other lines and cannot be wrapped."""
    assert visible("e\u0301 \u0928\u093f \u05e9\u05c1\u05b8\u0591") == "e\u0301 \u0928\u093f \u05e9\u05c1\u05b8\u0591"
    assert visible("a" + "\u0e49" * (MOST_MARKS + 2)) == "a" + "\u0e49" * MOST_MARKS + "\\u0e49\\u0e49"
    assert visible("\u0301" * (MOST_MARKS + 1)).endswith("\\u0301")
