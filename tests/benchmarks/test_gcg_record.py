"""The table of GCG and nanoGCG, from its record."""

from __future__ import annotations

import json

import pytest

from benchmarks.throughput import ROOT


@pytest.mark.parametrize("variant", ["ce", "mellowmax", "probe-sampling"])
def test_gcg_table_equals_record(variant):
    record = json.loads((ROOT / "benchmarks" / "results" / "gcg.json").read_text(encoding="utf-8"))
    found = record["variants"][variant]

    def shown(one):
        return f"{one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f})"

    loss, collected = found["loss"], found["time_ratio_without_collections"]
    cells = [
        variant,
        f"{loss['rolesafe']['mean']:.2f} against {loss['nanogcg']['mean']:.2f}",
        shown(found["loss_difference"]["nll"]),
        shown(found["time_ratio"]["rolesafe"]),
        shown(collected["rolesafe"]),
        shown(collected["rolesafe without prefix"]),
    ]
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(cells)} |" in page
    assert f"losses from {found['start']['mean']:.2f}" in page or variant != "ce"
    assert f"{found['turns']} turns a variant" in page
