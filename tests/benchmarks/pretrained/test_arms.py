"""Arms of the comparison: recipes, training and evaluation of all of them on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.pretrained import train as driver
from benchmarks.pretrained.__main__ import app
from benchmarks.pretrained.arms import ARMS, FLOOR, common
from benchmarks.pretrained.page import AGAINST
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import DATA, Settings
from benchmarks.pretrained.suites import cost, injection
from benchmarks.pretrained.train import Plan, record_path, train
from rolesafe import RoleConfig
from rolesafe.mechanisms import get_strength
from rolesafe.patching import from_pretrained, is_patched
from rolesafe.retrain import load_retrained, read_sources
from rolesafe.retrain.held_out import leave_out
from tests.benchmarks.pretrained.made_up import save_model
from tests.retrain.conftest import ROWS

QUIET = Console(quiet=True)
PUBLISHED = ("ise", "aside", "air", "pft", "drip")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "rows.json"
    path.write_text(json.dumps(ROWS))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"), heads=4)


@pytest.fixture
def plan(base, sets, training, tmp_path):
    """Return a function that makes a plan of two steps."""

    def make(**changes) -> Plan:
        recipe = {"model": base, "training": training, "steps": 2, "batch_size": 2, "dtype": "float32",
                  "max_length": 400, "learning_rate": 1e-3}  # fmt: skip
        settings = Settings(limit=2, secrets=2)
        return Plan(**{"out": tmp_path, "data": sets, "recipe": recipe, "settings": settings, **changes})

    return make


def test_arms_share_all_but_their_own_settings(sets):
    """Equal rows, order, steps, base rate and seed; only the untouched model has no recipe."""
    shared = common(sets, seed=3)
    for name, arm in ARMS.items():
        recipe = arm.recipe(shared)
        if name == "base":
            assert recipe is None
            continue
        own = {"preset", "role_config", "role_learning_rate", "anneal", "dedicated", "shares"}
        assert replace(recipe, **{key: getattr(shared, key) for key in own}) == shared
        assert (recipe.shares == shared.shares) == (name != "clean")
        assert (recipe.roles() is None) == (name in ("plain", "clean"))
    assert ARMS["plain"].title == AGAINST
    assert (shared.steps, shared.batch_size, shared.rows) == (120, 8, 960)


def test_arms_have_published_values_and_a_chosen_floor(sets):
    roles = {name: arm.recipe(common(sets)).roles() for name, arm in ARMS.items() if name != "base"}
    for name in PUBLISHED:
        assert ARMS[name].recipe(common(sets)).anneal == 0.0
        assert replace(roles[name], embedding_std=0.0) == RoleConfig.preset(name)
    assert (roles["ise"].embedding_std, roles["air"].embedding_std) == (0.01, 0.02)
    assert (roles["share"].share, roles["share"].share_floor, roles["share"].bias) == (FLOOR, FLOOR, True)
    assert roles["channel"] == RoleConfig.preset("channel")
    assert ARMS["dedicated"].recipe(common(sets)).dedicated == "chosen"
    assert ARMS["clean"].recipe(common(sets)).shares["injected"] == 0.0


def test_arms_train(plan):
    """Each kind of arm saves a model at full strength with its role layer."""
    one, names = plan(), ("base", "plain", "added", "share", "dedicated", "air")
    assert train(replace(one, recipe={**one.recipe, "steps": 1, "batch_size": 8}, arms=names), console=QUIET)
    for name in names:
        folder = plan().out / name / "seed-0"
        assert folder.is_dir() == (name != "base")
        if name in ("base", "plain"):
            continue
        model = from_pretrained(folder)
        assert get_strength(model) == 1.0
        expected = ARMS[name].recipe(common(plan().data)).roles()
        if name == "dedicated":
            expected = replace(expected, dedicated_heads=model.rolesafe_config.dedicated_heads)
        assert model.rolesafe_config == expected
    assert not is_patched(load_retrained(str(plan().out / "plain" / "seed-0"))[0])


def test_arm_trains_evaluates_and_resumes(plan, monkeypatch):
    monkeypatch.setattr(injection, "NEW_TOKENS", 4)
    monkeypatch.setattr(cost, "NEW_TOKENS", 2)
    monkeypatch.setattr(cost, "BATCH", 2)
    one = plan(arms=("base", "share"), seeds=(0, 1), suites=("injection", "cost"))
    train(one, device="cpu", console=QUIET)
    found = [record_path(one.out, name, seed) for name, seed in (("base", 0), ("share", 0), ("share", 1))]
    assert sorted((one.out / "records").glob("*.json")) == sorted(found)
    records = [Record.load(path) for path in found]
    assert [(r.arm, r.training_seed) for r in records] == [("base", 0), ("share", 0), ("share", 1)]
    assert all(part.complete for record in records for part in record.parts.values())
    assert records[1].about["role layer"]["share_floor"] == FLOOR
    monkeypatch.setattr("rolesafe.retrain.run._Run.train", lambda self: pytest.fail("trained again"))
    train(one, device="cpu", console=QUIET)
    assert [Record.load(path).parts["injection"].rows for path in found] == [
        record.parts["injection"].rows for record in records
    ]


def command(words):
    with pytest.raises(SystemExit) as ended:
        app(words)
    assert ended.value.code == 0


def test_command_trains_and_lists_arms(base, sets, training, tmp_path, capsys):
    words = ["train", "--out", tmp_path, "--arm", "plain", "--model", base, "--data", sets, "--training-data", training,
             "--steps", 1, "--batch-size", 2, "--max-length", 400, "--train-only"]  # fmt: skip
    command([str(word) for word in words])
    assert (tmp_path / "plain" / "seed-0" / "model.safetensors").is_file()
    assert not (tmp_path / "records").exists()
    command(["arms"])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{printed}" for name in ARMS)
    assert "share_floor" in printed


def test_interrupted_training_evaluates_nothing(plan, monkeypatch):
    one = plan(arms=("plain",), suites=("cost",))
    real = driver.retrain

    def stopped(*args, **options):
        return replace(real(*args, **options), complete=False)

    monkeypatch.setattr(driver, "retrain", stopped)
    assert not train(one, device="cpu", console=QUIET)
    assert not (one.out / "records").exists()


def test_rate_replaces_that_of_arms_with_roles(plan):
    one, other = plan(factor=0.5), plan()
    for arm in ("share", "combined"):
        mine, theirs = (p.recipe_of(ARMS[arm], 0).role_learning_rate for p in (one, other))
        if arm == "combined":
            assert {part: 2 * rate for part, rate in mine.items()} == theirs
        else:
            assert 2 * mine == theirs
    assert one.recipe_of(ARMS["plain"], 0) == other.recipe_of(ARMS["plain"], 0)
    with pytest.raises(ValueError, match="`role_rate_factor`: expected a number > 0, got 0"):
        plan(factor=0)


def test_bad_plan_raises_before_training(plan, tmp_path):
    with pytest.raises(ValueError, match=r"`arm`: expected some of .* got 'best'"):
        plan(arms=("best",))
    with pytest.raises(ValueError, match="`seed`: expected distinct values"):
        plan(seeds=(1, 1))
    with pytest.raises(ValueError, match=r"`data`: expected a folder with the test sets, got .* without"):
        train(plan(data=tmp_path), console=QUIET)
    wrong = plan()
    with pytest.raises(ValueError, match="`dtype`"):
        train(replace(wrong, recipe={**wrong.recipe, "dtype": "fp8"}), console=QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shared"), [("alpaca_5000.json", "quick brown fox"), ("benign_instructions.json", "What color is the sky")]
)
def test_rows_of_test_sets_are_not_trained_on(name, shared):
    """Of the published training data, with the rows that occur in a test set."""
    if not (DATA / name).is_file():
        pytest.skip(f"the published sets are not part of the project: none in {DATA}")
    sources = read_sources(str(DATA / name), need_replies=False, drop_bad=True)
    kept = leave_out(sources, common(DATA).held_out)
    left_out = kept.dropped[len(sources.dropped) :]
    assert any(shared in reason for reason in left_out)
    assert 1 <= len(left_out) < 0.01 * len(sources.rows)
