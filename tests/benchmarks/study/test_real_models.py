"""End to end: attacks on tiny untrained models, the store, and the report."""

from __future__ import annotations

from pathlib import Path

from benchmarks.override_resistance.run_report import write_comparison
from benchmarks.override_resistance.store import Store
from rolesafe.attacks import BestOfNConfig, DilutionConfig, MimicryConfig, NoAttackConfig, PrefillConfig
from rolesafe.config import RoleConfig
from rolesafe.evaluation import Results, Run, environment, resistance, utility
from rolesafe.patching import patch
from rolesafe.tasks import generate
from tests.attacks.stubs import make_model, make_tokenizer
from tests.report.html_reader import Reader

ATTACKS = [
    NoAttackConfig(max_new_tokens=4),
    MimicryConfig(max_new_tokens=4),
    DilutionConfig(repeats=1, max_new_tokens=4),
    DilutionConfig(repeats=4, max_new_tokens=4),
    PrefillConfig(max_new_tokens=4),
    BestOfNConfig(n=4, max_new_tokens=4),
]


def test_attacks_on_real_models_give_a_report(tmp_path: Path) -> None:
    tokenizer, examples = make_tokenizer(), generate("test", 8, 0)
    store = Store(tmp_path / "runs")
    for name in ("plain", "channel"):
        for seed in (0, 1):
            model, config = make_model(), None
            if name != "plain":
                config = RoleConfig.preset(name)
                patch(model, config)
            found = resistance(model, tokenizer, examples, ATTACKS)
            run = Run.of(
                found,
                model=name,
                seed=seed,
                n_parameters=sum(p.numel() for p in model.parameters()),
                train_seconds=0.0,
                utility=utility(model, tokenizer, examples, max_new_tokens=4),
                samples=1,
                size="tiny",
                mechanism=None if config is None else config.to_dict(),
            )
            assert run.complete
            assert all(set(point.marks) <= {"0", "1"} and len(point.marks) == 4 for point in run.attacks)
            assert [point.attack for point in run.attacks if not point.typed] == ["prefill"]
            store.save(Results(runs=(run,), environment=environment(), settings={"attacks": len(ATTACKS)}))
    results = store.read([("tiny", name, seed) for name in ("plain", "channel") for seed in (0, 1)])
    assert results.complete
    page, text, table = write_comparison(results, tmp_path)
    reader = Reader(page.read_text(encoding="utf-8"))
    assert reader.faults == []
    assert "prefill (untyped)" in reader.text
    assert "dedicated_heads 0.5" in reader.text
    assert "Size tiny" in text.read_text(encoding="utf-8")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + 4 * (len(ATTACKS) + 2)
