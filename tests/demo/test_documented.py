"""The tables of docs/demo.md are those of the committed records."""

from __future__ import annotations

import pytest

from rolesafe.evaluation import Results
from rolesafe.report import markdown_table
from tests.test_project import ROOT

TABLES = {
    "## Result": "demo",
    "## The same seeds on another machine": "demo_other_machine",
    "## On seeds that nothing was chosen on": "demo_fresh_seeds",
}


@pytest.mark.parametrize(("title", "record"), TABLES.items(), ids=TABLES.values())
def test_demo_page_rows_are_those_of_the_record(title: str, record: str) -> None:
    section = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").split(f"{title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    measured = markdown_table(Results.load(ROOT / "benchmarks" / "results" / f"{record}.json")).splitlines()
    assert len(rows) >= 5
    assert [row for row in rows if row not in measured] == []


def test_demo_page_worst_cases_by_seed_are_those_of_the_records() -> None:
    found = []
    for record in ("demo_other_machine", "demo"):
        runs = Results.load(ROOT / "benchmarks" / "results" / f"{record}.json").runs
        found.append([run.worst_case.k for run in runs if run.model == "role-aware" and run.worst_case is not None])
    assert found == [[0, 14, 0], [0, 9, 0]]
