"""Report of a run as CSV and Markdown, and the written files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.override_resistance.run_report import write_comparison
from benchmarks.override_resistance.run_report.build import build_comparison
from benchmarks.override_resistance.run_report.csv_export import COLUMNS, render_csv
from benchmarks.override_resistance.run_report.curves import SWEEPS
from benchmarks.override_resistance.run_report.markdown import render_markdown
from benchmarks.override_resistance.run_report.wording import detail, figure, measured, outcome, p_value, ratio
from rolesafe.attacks import ATTACKS, Rate
from rolesafe.evaluation import Results
from rolesafe.evaluation.evidence import worst_mean
from rolesafe.evaluation.verdict import Measured, NotMeasured, Verdict
from rolesafe.report.view import percent
from tests.benchmarks.study.drawn import POINTS, study
from tests.benchmarks.study.test_html import spoiled


@pytest.fixture(scope="module")
def small() -> Results:
    return study(("plain", "air", "channel"), (0, 1), ("0.2M", "1.5M"))


# ----------------------------------------------------------------------------------------------------------------- CSV


def test_csv_has_a_line_per_run_and_point(small: Results) -> None:
    lines = list(csv.DictReader(io.StringIO(render_csv(small), newline="")))
    assert len(lines) == 2 * 3 * 2 * (len(POINTS) + 2)
    assert tuple(lines[0]) == COLUMNS
    at = 0
    for run in small.runs:
        for point in run.attacks:
            line = lines[at]
            assert (line["size"], line["mechanism"], int(line["seed"])) == run.key
            assert (line["attack"], json.loads(line["parameters"])) == (point.attack, dict(point.parameters))
            assert Rate(int(line["k"]), int(line["n"])) == point.success
            assert float(line["success"]) == pytest.approx(point.success.value, abs=1e-6)
            assert (float(line["low"]), float(line["high"])) == pytest.approx(point.success.interval, abs=1e-6)
            assert float(line["utility"]) == pytest.approx(run.utility.benign.value, abs=1e-6)
            assert int(line["typed"]) == point.typed
            assert (line["mean_steps"] == "") == (not point.n_steps)
            at += 1
        assert (lines[at]["attack"], int(lines[at]["k"])) == ("worst case", run.worst_case.k if run.worst_case else -1)
        assert int(lines[at + 1]["k"]) == (run.bound.k if run.bound else -1)
        at += 2


def test_csv_hostile_text_is_escaped(small: Results) -> None:
    for text in ('=cmd|"/c calc"!A1', "@SUM(1)", "+1", "-1", 'a,"b"\r\nc', "x\x00y\u202e"):
        lines = list(csv.DictReader(io.StringIO(render_csv(spoiled(small, text)), newline="")))
        assert len(lines) == 2 * 3 * 2 * (len(POINTS) + 2)
        assert all(None not in line and len(line) == len(COLUMNS) for line in lines)
    named = replace(small, runs=(replace(small.runs[0], model="=HYPERLINK(1)"),), complete=False)
    assert next(csv.DictReader(io.StringIO(render_csv(named))))["mechanism"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(1)", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\ufe661", "\ufe631", "\u22121"),
        *(
            "\n=1",
            " =1",
            "\u3000=1",
            "\u00a0\uff1d1",
            "\n1",
            "\t=1",
            "\r=1",
            "\r\n=1",
            "\u200b=1",
            "\ufeff=1",
            "\x00=1",
        ),
    ],
)
def test_csv_no_cell_starts_a_formula(small: Results, text: str) -> None:
    """A spreadsheet skips white space, reads wide forms, and splits at `;` where the comma is the decimal sign."""
    for name in (text, f"x;{text}"):
        table = render_csv(replace(small, runs=(replace(small.runs[0], model=name),), complete=False))
        cell = next(csv.DictReader(io.StringIO(table, newline="")))["mechanism"]
        assert cell[0] in "'\\x"
        for separator in ",;":
            for line in csv.reader(io.StringIO(table, newline=""), delimiter=separator):
                assert not [c for c in line if c.strip()[:1] in ("=", "+", "@", "\uff1d", "\uff0b", "\uff20")]


# ------------------------------------------------------------------------------------------------------------ Markdown


def test_markdown_matches_the_record(small: Results) -> None:
    text = render_markdown(build_comparison(small))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    worst = {name: worst_mean(small.of("1.5M", name)) for name in ("plain", "air", "channel")}
    later = rows[[i for i, line in enumerate(rows) if "worst case" in line and "utility" in line][2] :]
    for name, mean in worst.items():
        assert mean is not None
        line = next(line for line in later if name in line.split("|")[1])
        assert line.split("|")[3].strip() == f"{percent(mean.value)} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
    assert "### Size 0.2M" in text
    assert "role forging" in text
    assert "of 12,480 tries" in text


def test_markdown_hostile_text_keeps_columns(small: Results) -> None:
    for results in (small, spoiled(small, "a | b\n# c <b> `d` **e** [f](g) $h$")):
        widths: list[int] = []
        for line in render_markdown(build_comparison(results)).splitlines():
            if line.startswith("|"):
                widths.append(line.replace("\\|", "").count("|"))
                assert widths[-1] == widths[0] if len(widths) > 1 else widths
            else:
                widths = []
    assert "\n# c" not in render_markdown(build_comparison(spoiled(small, "a\n# c")))


# --------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("found", "passed", "clear", "expected"),
    [
        (NotMeasured("none won"), None, False, ("\u2013", "", "not measured", "none won")),
        (Measured(value=0.034, interval=(0.01, 0.08), unit="ratio"), True, False,
         ("0.034x", "0.010 to 0.080", "met, uncertain", "n")),
        (Measured(value=0.0, interval=(0.0, float("inf")), unit="ratio"), True, True,
         ("0.00x", "0.00 to \u221e", "met", "n")),
        (Measured(value=-3.21, interval=(-5.0, 0.01), unit="points"), False, False,
         ("-3.2 points", "-5.0 to 0.0", "missed, uncertain", "n")),
        (Measured(value=0.0, unit="tries"), None, False, ("0", "", "too few", "n")),
        (Measured(value=1200.0, unit="tries"), False, True, ("1,200", "", "missed", "n")),
    ],
)  # fmt: skip
def test_wording_of_verdicts(
    found: Measured | NotMeasured, passed: bool | None, clear: bool, expected: tuple[str, ...]
) -> None:
    one = Verdict(claim="x", target="y", measured=found, passed=passed, clear=clear, text="n")
    assert (*measured(one), outcome(one), detail(one)) == expected


def test_wording_of_numbers() -> None:
    assert [ratio(x) for x in (0.0, 0.0123, 0.123, 1.0, 12.4)] == ["0.00", "0.012", "0.12", "1.00", "12"]
    assert [p_value(x) for x in (0.0004, 0.0123, 0.5, 1.0)] == ["< 0.001", "0.012", "0.50", "1.00"]
    assert figure(-0.04, "points") == "0.0"


# --------------------------------------------------------------------------------------------------------------- files


def test_write_comparison_writes_three_files(small: Results, tmp_path: Path) -> None:
    written = write_comparison(small, tmp_path / "new")
    assert [path.name for path in written] == [f"override-resistance.{end}" for end in ("html", "md", "csv")]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in written}
    page, text, table = written
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert text.read_text(encoding="utf-8") == render_markdown(build_comparison(small))
    assert table.read_bytes().decode("utf-8") == render_csv(small)


def test_sweeps_are_in_the_attack_grids() -> None:
    for sweep in SWEEPS:
        for attack in sweep.attacks:
            grid = [p for p in ATTACKS[attack].grid if all(p.get(name) == value for name, value in sweep.where.items())]
            assert len({point[sweep.parameter] for point in grid}) > 1
