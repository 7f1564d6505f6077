"""Complete retrainings: results, resuming, errors before training."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import get_strength
from rolesafe.patching import is_patched
from rolesafe.retrain import RetrainConfig, load_retrained, retrain
from rolesafe.retrain.card import CardResult
from rolesafe.retrain.progress import MARKER, StopOnInterrupt, TrainingProgress
from rolesafe.retrain.run import load_data

QUIET = Console(quiet=True)


def run(config, out, **options):
    return retrain(config, out, console=QUIET, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


@pytest.fixture
def break_at(monkeypatch):
    """Return a function that makes the training fail in the middle of a step, like a kill."""

    def install(step: int, error: BaseException) -> None:
        def fail(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise error

        monkeypatch.setattr(TrainingProgress, "on_step_begin", fail, raising=False)

    return install


def test_retrain_writes_a_checkpoint_that_loads(recipe, tmp_path):
    out = tmp_path / "out"
    config = recipe()
    found = run(config, out)
    assert (found.complete, found.steps, found.path) == (True, 6, out)
    model = rolesafe.from_pretrained(out)
    assert get_strength(model) == 1.0
    assert model.rolesafe_config == config.roles()
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert RetrainConfig.load(out / "recipe.yaml") == config
    lines = (out / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate,grad_norm,tokens,seconds"
    assert [line.partition(",")[0] for line in lines[1:]] == list("123456")
    assert int(lines[-1].split(",")[4]) == found.tokens > 0
    base = load_file(Path(config.model) / "model.safetensors")
    assert any(not torch.equal(weights(out)[name], tensor) for name, tensor in base.items())
    assert not (out / "checkpoints").exists()
    card = (out / "README.md").read_text()
    for text in ("rolesafe.from_pretrained", "rows.json", "Not yet measured", "Seed 0", "max_length: 400"):
        assert text in card


def test_share_rises_from_zero_to_its_floor(recipe, tmp_path, break_at, monkeypatch):
    """Annealed by default, resumed in the middle, and never below the floor at the end."""
    config = recipe(
        preset="share", role_config={"share": 0.3, "share_floor": 0.3}, role_learning_rate=0.1, steps=4, batch_size=1
    )
    seen = []

    def record(self, args, state, control, **kwargs):
        seen.append(get_strength(kwargs["model"]))

    monkeypatch.setattr(TrainingProgress, "on_step_begin", record, raising=False)
    run(config, tmp_path / "whole")
    assert seen == [0.0, 0.5, 1.0, 1.0]
    monkeypatch.undo()
    break_at(2, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "broken")
    monkeypatch.undo()
    assert run(config, tmp_path / "broken").complete
    assert all(torch.equal(weights(tmp_path / "broken")[name], x) for name, x in weights(tmp_path / "whole").items())
    model = rolesafe.from_pretrained(tmp_path / "whole")
    assert get_strength(model) == 1.0
    found = [module.reserved_share() for module in model.modules() if hasattr(module, "reserved_share")]
    assert all((share >= 0.3).all() for share in found)
    assert "reserved share of at least 0.3" in (tmp_path / "whole" / "README.md").read_text()


@pytest.mark.parametrize("lora", [None, 4])
def test_chosen_heads_are_kept_resumed_and_loaded(recipe, tmp_path, break_at, monkeypatch, lora):
    if lora:
        pytest.importorskip("peft")
    config = recipe(preset="channel", dedicated="chosen", steps=2, save_steps=1, lora=lora, batch_size=1)
    run(config, tmp_path / "whole")
    break_at(1, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "broken")
    monkeypatch.undo()
    monkeypatch.setattr("rolesafe.retrain.need.choose", lambda *args, **options: pytest.fail("chosen again"))
    assert run(config, tmp_path / "broken").complete
    found = []
    for name in ("whole", "broken"):
        model, tokenizer = load_retrained(str(tmp_path / name))
        state = json.loads((tmp_path / name / "retrain_state.json").read_text())
        inner = model.base_model.model if lora else model
        pairs = inner.rolesafe_config.dedicated_heads
        assert [list(pair) for pair in pairs] == state["dedicated_heads"]
        assert {i for i, _ in pairs} == {0, 1}
        assert inner.rolesafe_config == RoleConfig.preset("channel", dedicated_heads=pairs)
        batch = rolesafe.encode(tokenizer, [{"role": "user", "content": "Describe the house"}], config=RoleConfig())
        with torch.no_grad():
            found.append(model(**batch).logits)
    assert torch.equal(*found)
    assert "4 dedicated heads, those that the base model needed least" in (tmp_path / "whole" / "README.md").read_text()


def test_choice_without_ordinary_rows_raises(recipe, tmp_path):
    config = recipe(preset="dedicated", dedicated="chosen", shares={"injected": 1.0})
    with pytest.raises(ValueError, match=r"`dedicated`: expected 'clean' rows, or 'plain' ones with a system turn"):
        run(config, tmp_path / "out")


def test_rows_of_test_sets_are_left_out(recipe, tmp_path, data):
    """Compared by words; short texts do not count."""
    rows = json.loads(data.read_text())
    held_out = tmp_path / "test.json"
    held_out.write_text(
        json.dumps(
            [
                {"prompt": {"turns": [f"  {rows[0]['instruction'].upper()}!"]}, "output": "I like"},
                {"instruction": rows[1]["instruction"], "input": rows[1]["input"]},
                {"text": rows[2]["input"].replace(".", " ...")},
            ]
        )
    )
    config = recipe(held_out=str(held_out), steps=1)
    assert config.held_out == (str(held_out),)
    assert RetrainConfig.from_yaml(config.to_yaml()) == config
    sources, prepared = load_data(config, AutoTokenizer.from_pretrained(config.model))
    numbers = [int(source.where.rpartition(" ")[2]) for source in sources.rows]
    assert numbers == [4, 5, 6, *range(7, len(rows) + 1)]
    assert len(prepared.rows) == len(rows) - 3
    assert "row 1: its text 'Describe the house in one word.' occurs in a test set" in sources.dropped[0]
    run(config, tmp_path / "out")
    assert "3 rows were left out" in (tmp_path / "out" / "README.md").read_text()


def test_unusable_test_sets_raise(recipe, tmp_path, data):
    with pytest.raises(ValueError, match=r"`held_out`: expected training rows that occur in no test set, got none of"):
        run(recipe(held_out=str(data)), tmp_path / "a")
    with pytest.raises(ValueError, match="`held_out`"):
        run(recipe(held_out=str(tmp_path / "missing.json")), tmp_path / "b")


def test_interrupted_run_resumes_with_the_same_result(recipe, tmp_path, break_at, monkeypatch):
    config = recipe(steps=4, save_steps=1)
    run(config, tmp_path / "whole")
    break_at(3, RuntimeError("killed"))
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "broken")
    monkeypatch.undo()
    kept = {f.name for f in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert kept == {"checkpoint-2", "checkpoint-3"}
    # an incomplete checkpoint is not resumed
    half = tmp_path / "broken" / "checkpoints" / "checkpoint-9"
    shutil.copytree(half.with_name("checkpoint-3"), half)
    (half / MARKER).unlink()
    (half / "model.safetensors").write_bytes(b"half")
    assert run(config, tmp_path / "broken").complete
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    losses = [(tmp_path / name / "losses.csv").read_text().splitlines() for name in ("whole", "broken")]
    assert [line.rpartition(",")[0] for line in losses[0]] == [line.rpartition(",")[0] for line in losses[1]]


def test_ctrl_c_saves_and_the_same_call_resumes(recipe, tmp_path, monkeypatch):
    config = recipe(steps=3, save_steps=100)
    run(config, tmp_path / "whole")

    def press(self, args, state, control, **kwargs):
        self.pressed = state.global_step == 1

    monkeypatch.setattr(StopOnInterrupt, "on_step_begin", press, raising=False)
    stopped = run(config, tmp_path / "out")
    assert (stopped.complete, stopped.steps) == (False, 2)
    monkeypatch.undo()
    assert run(config, tmp_path / "out").complete
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_finished_run_is_not_trained_again(recipe, tmp_path, monkeypatch):
    config = recipe(steps=1)
    first = run(config, tmp_path / "out")
    monkeypatch.setattr("rolesafe.retrain.run._Run.train", lambda self: pytest.fail("trained again"))
    results = [CardResult(name="AlpacaFarm | naive", value=0.1, low=0.05, high=0.2, n=208, base=0.5)]
    assert run(config, tmp_path / "out", results=results) == first
    assert "| AlpacaFarm \\| naive | 0.1 (0.05 to 0.2) | 0.5 | 208 |" in (tmp_path / "out" / "README.md").read_text()


def test_other_recipe_does_not_resume(recipe, tmp_path):
    run(recipe(steps=1), tmp_path / "out")
    with pytest.raises(ValueError, match=r"`out`: expected the recipe .*steps was 1, is 2; .*seed was 0, is 3"):
        run(recipe(steps=2, seed=3), tmp_path / "out")


def test_changed_data_do_not_resume(recipe, tmp_path, data, break_at, monkeypatch):
    copy = tmp_path / "rows.json"
    copy.write_text(data.read_text())
    break_at(3, RuntimeError("killed"))
    config = recipe(data=str(copy))
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "out")
    monkeypatch.undo()
    rows = json.loads(copy.read_text())
    copy.write_text(json.dumps([*rows[:-1], {**rows[-1], "output": "Other."}]))
    with pytest.raises(ValueError, match="`out`: expected the data of the start of the run"):
        run(config, tmp_path / "out")


def test_directory_with_other_files_is_refused(recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`out`: expected a new or empty directory.*notes\.txt"):
        run(recipe(), tmp_path)
    with pytest.raises(ValueError, match="`out`: expected a directory that can be written"):
        run(recipe(), tmp_path / "notes.txt")


def test_plain_preset_writes_a_plain_model(recipe, tmp_path):
    run(recipe(preset="plain", steps=1), tmp_path / "out")
    model, tokenizer = load_retrained(str(tmp_path / "out"))
    assert not is_patched(model)
    assert tokenizer.chat_template


def test_plain_and_role_aware_train_on_the_same_rows(recipe, tmp_path):
    states = []
    for preset in ("plain", "ise"):
        run(recipe(preset=preset, steps=1), tmp_path / preset)
        states.append(json.loads((tmp_path / preset / "retrain_state.json").read_text()))
    assert states[0]["prepared_digest"] == states[1]["prepared_digest"]
    assert states[0]["tokens"] == states[1]["tokens"]
    assert states[0]["loss"] == pytest.approx(states[1]["loss"], rel=1e-5)  # ISE is at rest in the first step


def test_lora_trains_saves_and_loads_with_its_role_layer(recipe, tmp_path):
    pytest.importorskip("peft")
    config = recipe(lora=2, steps=3, gradient_checkpointing=True)
    run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    model, tokenizer = load_retrained(str(tmp_path / "out"))
    batch = rolesafe.encode(tokenizer, [{"role": "user", "content": "Hi"}], config=config.roles())
    with torch.no_grad():
        logits = model(**batch).logits
    base = rolesafe.patch(load_retrained(config.model)[0], config.roles())
    with torch.no_grad():
        assert not torch.equal(base(**batch).logits, logits)
    assert any(p.abs().sum() > 0 for name, p in rolesafe.named_role_parameters(model) if "embedding" in name)


# -------------------------------------------------------------------------------------------------- refused before work


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("rolesafe.retrain.run._Run.train", lambda self: pytest.fail("training was started"))


@pytest.fixture
def broken_model(checkpoint, tmp_path):
    """Return a function that copies the checkpoint and changes its files."""

    def make(name="config.json", **changes) -> str:
        folder = tmp_path / "broken"
        shutil.copytree(checkpoint, folder)
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return str(folder)

    return make


def test_model_without_chat_template_is_refused(recipe, tmp_path, broken_model, no_training):
    model = broken_model()
    (Path(model) / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="`model`: expected a tokenizer with a chat template"):
        run(recipe(model=model), tmp_path / "out")


def test_tokenizer_without_padding_token_pads_with_eos(recipe, tmp_path, broken_model):
    run(recipe(model=broken_model("tokenizer_config.json", pad_token=None), steps=1), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token == tokenizer.eos_token


def test_tokenizer_without_padding_and_end_is_refused(recipe, tmp_path, broken_model, no_training):
    model = broken_model("tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(ValueError, match="`model`: expected a padding or end-of-sequence token"):
        run(recipe(model=model), tmp_path / "out")


def test_context_shorter_than_max_length_is_refused(recipe, tmp_path, broken_model, no_training):
    with pytest.raises(ValueError, match="`max_length`: expected at most 100, the context"):
        run(recipe(model=broken_model(max_position_embeddings=100)), tmp_path / "out")


def test_rows_over_max_length_raise_or_are_dropped(recipe, tmp_path, no_training, monkeypatch):
    with pytest.raises(
        ValueError, match=r"`max_length`: expected rows of at most 90 tokens .* row '.*' .* has \d+ tokens"
    ):
        run(recipe(max_length=90), tmp_path / "out")
    monkeypatch.undo()
    run(recipe(max_length=90, bad_rows="drop", steps=1), tmp_path / "out")
    state = json.loads((tmp_path / "out" / "retrain_state.json").read_text())
    assert state["dropped"] > 0
    assert sum(state["counts"].values()) + state["dropped"] == state["sources"]


def test_packed_weights_are_refused(recipe, tmp_path, broken_model, no_training):
    model = broken_model(quantization_config={"quant_method": "gguf"})
    with pytest.raises(ValueError, match=r"`model`: expected trainable weights, got quantized ones \(gguf\)"):
        run(recipe(model=model), tmp_path / "out")


def test_gguf_directory_names_the_file(recipe, tmp_path, no_training):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"got none. Give the file: '.*model-q4.gguf'"):
        run(recipe(model=str(tmp_path)), tmp_path / "out")
    with pytest.raises(ValueError, match="`model`: expected a GGUF file, got none"):
        run(recipe(model=str(tmp_path / "no.gguf")), tmp_path / "out1")
    with pytest.raises(ValueError, match=r"`model`: .*model-q4\.gguf.*error"):
        run(recipe(model=str(tmp_path / "model-q4.gguf")), tmp_path / "out2")


def test_role_aware_base_is_refused(recipe, tmp_path, no_training, checkpoint):
    model = rolesafe.patch(load_retrained(str(checkpoint))[0], rolesafe.RoleConfig())
    model.save_pretrained(tmp_path / "aware")
    with pytest.raises(ValueError, match="`model`: expected a model without a role layer"):
        run(recipe(model=str(tmp_path / "aware")), tmp_path / "out")


def test_full_disk_is_found_before_training(recipe, tmp_path, no_training, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"`out`: expected .* GB free"):
        run(recipe(), tmp_path / "out")


def test_full_disk_in_training_keeps_the_checkpoint(recipe, tmp_path, break_at, monkeypatch):
    config = recipe(steps=3)
    break_at(2, RuntimeError("I/O error: No space left on device (os error 28)"))
    with pytest.raises(OSError, match=r"`out`: expected free space .* resumes from the last checkpoint"):
        run(config, tmp_path / "out")
    monkeypatch.undo()
    assert run(config, tmp_path / "out").complete


def test_full_disk_at_the_end_resumes_without_training(recipe, tmp_path, monkeypatch):
    config = recipe(steps=2)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rolesafe.retrain.run.move_in", fail)
    with pytest.raises(OSError, match="`out`: expected free space"):
        run(config, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr("rolesafe.retrain.trainer.reply_loss", lambda *args: pytest.fail("trained again"))
    found = run(config, tmp_path / "out")
    assert (found.complete, found.steps) == (True, 2)
    assert found.loss is not None
    assert rolesafe.from_pretrained(tmp_path / "out")


def test_bfloat16_computes_with_weights_in_fp32(recipe, tmp_path):
    run(recipe(dtype="bfloat16", steps=2, gradient_accumulation=2), tmp_path / "out")
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "out").values())


def test_missing_peft_is_found_before_training(recipe, tmp_path, no_training, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="`lora`: expected the package peft"):
        run(recipe(lora=2), tmp_path / "out")
