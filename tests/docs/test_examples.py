"""The examples and the code of the quickstart run, offline, on tiny models."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

SAYS = {
    "patch_and_generate": ("'<unk>'          user", "by an untrained role layer: 0.0e+00", "without roles: `role_ids`"),
    "retrain": ("role parameters: 1,272", "computes the same logits: True"),
    "compare_two_mechanisms": ("ise: benign tasks solved", "channel: benign tasks solved", "attacker won"),
    "audit_model": ("token equality:", "privileged attention:", "role forging:"),
    "kernel_alone": ("sdpa: output differs by", "triton: output differs by"),
    "court": ("articles: ['code', 'greeting', 'short']", "Heron breaks: code", "reply: 'Hello", "after 2 proposals"),
    "trl_sft": ("mean reserved share: 0.5", "computes the same logits: True"),
    "trl_dpo": ("reference has a role layer: True", "equal): 0.6931"),
    "trl_grpo": ("rewards: [", "at the first step: 0.0"),
    "custom_roles": ("policy: 7 tokens", "document: 6 tokens", "without config: "),
}
"""Parts of the output that show that an example did its work."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.stem.startswith("trl_"):
        pytest.importorskip("trl", reason="trl is not installed: pip install 'rolesafe[trl]'")
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert [part for part in SAYS[path.stem] if part not in printed] == []
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_short_and_listed() -> None:
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60
        assert f"examples/{path.name}" in page
    assert {path.stem for path in EXAMPLES} == set(SAYS)


def test_quickstart_code_runs() -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert len(blocks) >= 6
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/quickstart.md", "exec"), namespace)
