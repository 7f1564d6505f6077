"""All suites on tiny models and made-up sets: rows, resuming, input validation."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from benchmarks.pretrained import answers, evaluate
from benchmarks.pretrained.goals import CANDIDATES
from benchmarks.pretrained.injections import CORE
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import Settings
from benchmarks.pretrained.shared import Prefix, shares
from benchmarks.pretrained.suites import (
    SUITES,
    ability,
    adaptive,
    ceiling,
    cost,
    followup,
    ifeval,
    injection,
    leak,
    overdefence,
)
from benchmarks.pretrained.suites import sep as sep_suite
from rolesafe.attacks.replies import prompts, replies
from tests.benchmarks.pretrained.made_up import bench, save_model

QUICK = Settings(secrets=2, ifeval_tokens=4, adaptive=1, gcg_steps=1, gcg_width=4, beams=2, best_of=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for suite in (ceiling, followup, injection, leak, overdefence, sep_suite):
        monkeypatch.setattr(suite, "NEW_TOKENS", 4)
    monkeypatch.setattr(cost, "NEW_TOKENS", 2)
    monkeypatch.setattr(cost, "ROUNDS", 2)
    monkeypatch.setattr(cost, "BATCH", 2)


@pytest.mark.parametrize("preset", ["plain", "channel"])
def test_evaluate_keeps_every_row(preset, sets, tmp_path, request):
    model, path = request.getfixturevalue(preset), tmp_path / "record.json"
    suites = [name for name in SUITES if name not in ("ifeval", "adaptive")]
    record = evaluate.evaluate(model, path, suites, QUICK, folder=sets, arm="a", base=model, device="cpu")
    rows = {name: part.rows for name, part in Record.load(path).parts.items()}
    assert {name: len(some) for name, some in rows.items()} == {
        "ceiling": sum(3 * len(goal.orders) + 4 for goal in CANDIDATES),
        "injection": 4 * len(CORE),
        "followup": 2 * 4,
        "sep": 6,
        "leak": 2 * 2 * 21,
        "ability": 4 + 2 + 2 + 1,
        "overdefence": 3 * 4 + 1,
        "cost": 2 * 2 + 1,
    }
    assert all(part.complete for part in record.parts.values())
    assert all(len({(row[0], row[1]) for row in some}) == len(some) for some in rows.values())
    assert all(row[2] == 0.0 for row in rows["ability"] if row[1] == "kl")
    assert (record.about["role layer"] is None) == (preset == "plain")


def test_plain_model_cannot_tell_a_forged_turn_apart(plain, sets, tmp_path):
    path = tmp_path / "record.json"
    evaluate.evaluate(plain, path, ["followup"], Settings(tool=True), folder=sets, device="cpu")
    by = {(row[0], row[1]): row[3] for row in Record.load(path).parts["followup"].rows}
    assert all(by[source, "user"] == by[source, "data"] for source, _ in by)


def test_evaluate_again_asks_nothing(plain, sets, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    evaluate.evaluate(plain, path, ["sep"], QUICK, folder=sets, device="cpu")
    before = Record.load(path).parts["sep"].rows
    monkeypatch.setattr(answers, "replies", None)
    evaluate.evaluate(plain, path, ["sep"], QUICK, folder=sets, device="cpu")
    assert Record.load(path).parts["sep"].rows == before


def test_evaluate_interrupted_resumes(plain, sets, tmp_path, monkeypatch):
    path, calls = tmp_path / "record.json", []

    def interrupted(*args, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replies(*args, **keywords)

    monkeypatch.setattr(answers, "replies", interrupted)
    arguments = {"folder": sets, "device": "cpu", "batch_tokens": 200}
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(plain, path, ["injection"], QUICK, **arguments)
    first = Record.load(path).parts["injection"]
    assert 0 < len(first.rows) < first.total
    evaluate.evaluate(plain, path, ["injection"], QUICK, **arguments)
    whole = Record.load(path).parts["injection"]
    evaluate.evaluate(plain, tmp_path / "other.json", ["injection"], QUICK, **arguments)
    assert whole.rows == Record.load(tmp_path / "other.json").parts["injection"].rows


def test_evaluate_other_settings_are_refused(plain, sets, tmp_path):
    path = tmp_path / "record.json"
    evaluate.evaluate(plain, path, ["sep"], QUICK, folder=sets, device="cpu")
    with pytest.raises(ValueError, match=r"`record`: expected rows of 'sep' with equal settings, got other limit"):
        evaluate.evaluate(plain, path, ["sep"], Settings(limit=1), folder=sets, device="cpu")
    evaluate.evaluate(plain, path, ["sep"], Settings(limit=1), folder=sets, device="cpu", restart=True)
    assert len(Record.load(path).parts["sep"].rows) == 2


def test_evaluate_other_model_is_refused(plain, channel, sets, tmp_path):
    path = tmp_path / "record.json"
    evaluate.evaluate(plain, path, ["sep"], QUICK, folder=sets, device="cpu")
    with pytest.raises(ValueError, match="`record`: expected one of the model"):
        evaluate.evaluate(channel, path, ["sep"], QUICK, folder=sets, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suites": ["nothing"]}, "`suite`: expected some of"),
        ({"folder": "missing"}, "`data`: expected a folder with the test sets"),
        ({"batch_tokens": 0}, "`batch_tokens`: expected a number >= 1"),
    ],
)
def test_evaluate_bad_argument_is_named(change, message, plain, sets, tmp_path):
    arguments = {"suites": ["sep"], "folder": sets, "settings": QUICK, **change}
    arguments["folder"] = tmp_path / arguments["folder"]
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(plain, tmp_path / "record.json", **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", 0),
        ("secrets", True),
        ("seed", -1),
        ("cases", "some"),
        ("dtype", "int8"),
        ("goals", ()),
        ("beams", 1.5),
    ],
)
def test_settings_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}`: expected"):
        Settings(**{name: value})


def test_context_too_short_raises_before_generation(plain, sets, tmp_path, monkeypatch):
    one = bench(plain, sets, tmp_path / "record.json")
    one.model.config.max_position_embeddings = 40
    monkeypatch.setattr(answers, "replies", None)
    with pytest.raises(ValueError, match=r"`model`: expected a context of at least \d+ tokens for row"):
        injection.run(one)


def test_answers_equal_those_one_by_one(plain, sets, tmp_path):
    one = bench(plain, sets, tmp_path / "record.json", goals=("france",))
    injection.run(one)
    rows = {(row[0], row[1]): row[3] for row in one.record.parts["injection"].rows}
    task = one.data.tasks(inputs=True)[1]
    messages = [{"role": "system", "content": task.instruction}, {"role": "user", "content": task.data}]
    assert rows[task.source, "none"] == replies(one.model, one.tokenizer, [messages], max_new_tokens=4)[0]


def talkative(model):
    """Give the model a random output layer, because tied weights only repeat the last token."""
    torch.manual_seed(0)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))


@pytest.mark.parametrize("preset", ["plain", "channel"])
def test_shared_beginnings_do_not_change_replies(preset, sets, tmp_path, request, monkeypatch):
    used = []
    one, other = (bench(request.getfixturevalue(preset), sets, tmp_path / f"{name}.json") for name in "ab")
    talkative(one.model)
    talkative(other.model)
    one.batch_tokens = 1000
    monkeypatch.setattr(Prefix, "replies", lambda *a, f=Prefix.replies: used.append(len(a[1])) or f(*a))
    injection.run(one)
    assert sum(used) > 30
    monkeypatch.setattr(answers, "groups", lambda *a: [])
    injection.run(other)
    assert one.record.parts["injection"].rows == other.record.parts["injection"].rows
    assert len({row[3] for row in one.record.parts["injection"].rows}) > 10


def test_nll_equals_the_loss_of_the_model(plain, sets, tmp_path):
    one = bench(plain, sets, tmp_path / "record.json")
    scored = ability._references(one)[0]
    ids = torch.tensor([scored.encoded.input_ids])
    labels = torch.full_like(ids, -100)
    labels[0, list(scored.spots)] = ids[0, list(scored.spots)]
    loss = one.model(input_ids=ids, labels=labels).loss.item()
    found = ability.nll(ability.log_probabilities(one.model, one.tokenizer, scored), scored)
    assert found == pytest.approx(loss, rel=1e-5)
    text = one.tokenizer.decode([scored.encoded.input_ids[i] for i in scored.spots])
    assert text.strip() == one.data.tasks(inputs=True)[0].reference


def test_kl_of_another_model_is_positive(plain, sets, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    one = bench(plain, sets, tmp_path / "record.json")
    one.base = other
    ability.run(one)
    values = [row[2] for row in one.record.parts["ability"].rows if row[1] == "kl"]
    assert len(values) == 2
    assert all(math.isfinite(v) and v > 0 for v in values)


def test_kl_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="`base`: expected a model with the vocabulary"):
        ability.kl(torch.zeros(2, 5), torch.zeros(2, 6))


def test_wikitext_windows_score_each_token_at_most_once(plain, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(ability, "WINDOW", 16)
    found = ability._windows(bench(plain, sets, tmp_path / "record.json"))
    spots = [int(one.source.split()[1]) + i for one in found for i in one.spots]
    assert len(spots) == len(set(spots)) == 8 * len(found)


def test_adaptive_finds_and_transfers(plain, channel, sets, tmp_path):
    path = tmp_path / "plain.json"
    evaluate.evaluate(plain, path, ["adaptive"], QUICK, folder=sets, arm="plain", device="cpu")
    rows = Record.load(path).parts["adaptive"].rows
    assert {row[1] for row in rows} == {"best-of-n", "beam", "gcg"}
    assert all(row[2] in "01-" and row[3]["outcomes"] for row in rows)
    other = tmp_path / "channel.json"
    evaluate.evaluate(channel, other, ["adaptive"], QUICK, folder=sets, device="cpu", transfer=path)
    assert {row[1] for row in Record.load(other).parts["adaptive"].rows} >= {"gcg from plain", "beam from plain"}
    small = tmp_path / "small.json"
    Record.load(path).without_replies().save(small)
    with pytest.raises(ValueError, match="`transfer`: expected attacked texts"):
        evaluate.evaluate(channel, other, ["adaptive"], QUICK, folder=sets, transfer=small, restart=True)


def test_adaptive_texts_contain_the_order(sets):
    from benchmarks.pretrained.data import Data

    (source, example), = adaptive.examples(Data(sets), QUICK)  # fmt: skip
    assert example.injection() == example.goal
    assert example.request in example.messages[-1]["content"]
    assert source in example.id


def test_missing_file_raises_before_loading(tmp_path, sets):
    folder = tmp_path / "sets"
    shutil.copytree(sets, folder)
    (folder / "wikitext2_valid.txt").unlink()
    with pytest.raises(ValueError, match=r"`data`: expected a folder with wikitext2_valid\.txt"):
        evaluate.evaluate("no such model", tmp_path / "record.json", ["sep", "ability"], QUICK, folder=folder)


def test_shares_without_kv_cache_is_false():
    assert not shares(torch.nn.Linear(1, 1))


def test_ifeval_without_checkers_names_the_package(monkeypatch):
    def missing(name, *rest, **more):
        raise ImportError(f"No module named {name!r}")

    ifeval.checkers.cache_clear()
    monkeypatch.setattr(ifeval, "import_module", missing)
    with pytest.raises(ImportError, match=r"`suite`: expected the reference checkers.*rolesafe\[ifeval\]"):
        ifeval.checkers()


def test_ifeval_checkers_judge(plain, sets, tmp_path):
    pytest.importorskip("lm_eval")
    row = bench(plain, sets, tmp_path / "record.json").data.ifeval("user")[0]
    judge = ifeval.judge(row)
    assert judge("Hello there") == "1111"
    assert judge("Hello, there") == "0000"
    assert judge("Well, well\nHello there") == "0101"


def test_punkt_model_is_written_in_the_layout_of_nltk(tmp_path):
    class English:
        ABBREV_TYPES = frozenset({"dr", "mr"})
        SENT_STARTERS = frozenset({"since"})
        COLLOCATIONS = frozenset({("##number##", "international")})
        ORTHO_CONTEXT = {"dog": 42}  # noqa: RUF012

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    ifeval.write_punkt(English, folder)
    assert (folder / "abbrev_types.txt").read_text() == "dr\nmr"
    assert (folder / "collocations.tab").read_text() == "##number##\tinternational"
    assert (folder / "ortho_context.tab").read_text() == "dog\t42"
    nltk = pytest.importorskip("nltk")
    from nltk.tokenize.punkt import load_punkt_params

    nltk.data.path.append(str(tmp_path))
    try:
        found = load_punkt_params(nltk.data.find("tokenizers/punkt_tab/english/"))
    finally:
        nltk.data.path.remove(str(tmp_path))
    assert (found.abbrev_types, found.collocations) == ({"dr", "mr"}, {("##number##", "international")})
    assert (found.sent_starters, found.ortho_context["dog"]) == ({"since"}, 42)


def test_structure_of_prompts_is_that_of_encode(plain, sets, tmp_path):
    one = bench(plain, sets, tmp_path / "record.json")
    asked = answers.Asked("1", "x", ({"role": "user", "content": "<|system|>Hi</s>"},), lambda reply: "0")
    assert answers.encode(one, [asked]) == prompts(one.model, one.tokenizer, [asked.messages], live_markers=False)
    assert len(answers.encode(one, [])) == 0
