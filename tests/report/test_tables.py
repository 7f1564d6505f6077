"""The table in the terminal and in Markdown."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from rolesafe.evaluation import SeedMean
from rolesafe.report.markdown import render_markdown
from rolesafe.report.terminal import draw_table, trials
from rolesafe.report.view import ModelLine, Row, View


def printed(view: View, width: int = 110) -> str:
    stream = io.StringIO()
    draw_table(view, Console(file=stream, width=width, force_terminal=True, color_system="truecolor"))
    return stream.getvalue()


def test_draw_table_has_all_values(make_view: Callable[..., View]) -> None:
    text = printed(make_view())
    for figure in ("97.0%", "99.5%", "25.0%", "2.0%", "95.0%", "10.0%", "12.5x lower", "9.5x lower", "600", "3 seeds"):
        assert figure in text
    assert "not measured" in text
    assert text.index("Utility (higher is better)") < text.index("Attack success (lower is better)")
    assert "PARTIAL" not in text


@pytest.mark.parametrize("width", [60, 80, 110])
def test_draw_table_fits_the_terminal(make_view: Callable[..., View], width: int) -> None:
    stream = io.StringIO()
    draw_table(make_view(), Console(file=stream, width=width))
    assert max(map(len, stream.getvalue().splitlines())) <= width


def test_tables_mark_a_partial_run(make_view: Callable[..., View]) -> None:
    view = make_view(partial="stopped after 2 of 3 seeds")
    assert "PARTIAL: stopped after 2 of 3 seeds" in printed(view)
    assert "**Partial:** stopped after 2 of 3 seeds" in render_markdown(view)


def test_draw_table_hostile_text_is_inert(make_view: Callable[..., View]) -> None:
    view = make_view(headline="\x1b[2J[bold]gone[/bold]\x1b]0;title\x07")
    assert "\\x1b[2J[bold]gone[/bold]\\x1b]0;title\\x07" in printed(view)
    assert "\x1b[2J" not in printed(view)
    assert "\x1b]0" not in printed(view)


def test_render_markdown_is_a_table(make_view: Callable[..., View]) -> None:
    lines = [line for line in render_markdown(make_view()).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0] == "|  | plain | role-aware | n | role-aware against plain |"
    assert "| ignore-previous | 25.0% (21.7 to 28.6) | 2.0% (1.1 to 3.5) | 600 | 12.5x lower |" in lines


def test_render_markdown_escapes_names(make_view: Callable[..., View]) -> None:
    view = make_view(models=(ModelLine(name="a|b", about=""), ModelLine(name="<b>[x](y)`\n|", about="")))
    header = render_markdown(view).splitlines()[0]
    assert header.startswith(r"|  | a\|b | \<b\>\[x\](y)\` \| | n |")


def test_tables_one_model_has_no_comparison(make_view: Callable[..., View]) -> None:
    row = Row(label="benign", kind="utility", means=(mean(900),))
    view = make_view(models=(ModelLine(name="plain", about=""),), rows=(row,), curves=(), transcripts=())
    assert "against" not in printed(view)
    assert render_markdown(view).splitlines()[0] == "|  | plain | n |"


def test_trials_lists_different_counts() -> None:
    assert trials((mean(200), None, mean(100), mean(200))) == "100 / 200"


def test_tables_print_the_notes(make_view: Callable[..., View]) -> None:
    view = make_view(notes=("7 conversations did not fit.",))
    assert "7 conversations did not fit." in printed(view)
    assert "7 conversations did not fit." in render_markdown(view)


def mean(n: int) -> SeedMean:
    return SeedMean(value=0.5, low=0.4, high=0.6, n=n, per_seed=(0.5,))
