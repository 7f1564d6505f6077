"""Frozen prompts: equal to computing them, through `generate`, on disk, and refused where anything changed."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

import rolesafe
from rolesafe import FrozenPrompt, RoleConfig
from rolesafe.mechanisms import set_strength
from rolesafe.patching.caches import cache_argument
from rolesafe.patching.frozen_seal import WeightsWatch, weights_digest
from rolesafe.training.tiny import text_tokenizer, tiny_llama

SYSTEM = [
    {"role": "system", "content": "the key is under the mat"},
    {"role": "developer", "content": "say hello world"},
]
ONE = [{"role": "user", "content": "tell me"}]
TWO = [{"role": "user", "content": "the cat sat on it and hello world"}]
GENERATION = {"add_generation_prompt": True}


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer(["the key is under the mat and the cat sat on it. hello world, tell me"] * 3, 300)


def make(tokenizer, preset="separate", **changes):
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0, layers=2), RoleConfig.preset(preset, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in rolesafe.named_role_parameters(model):
            if not name.endswith("share"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="module")
def frozen(model, tokenizer):
    return rolesafe.freeze(model, tokenizer, SYSTEM)


def computed(model, frozen, batch):
    """Return the logits of the rows of `batch` after a prefill of the frozen tokens in the same call of rows."""
    size, name = len(frozen), cache_argument(type(model).forward)
    rows = {key: batch[key] for key in ("input_ids", "attention_mask", "role_ids")}
    with torch.no_grad():
        first = model(**{key: value[:, :size] for key, value in rows.items()}, use_cache=True)
        rest = {**rows, "input_ids": rows["input_ids"][:, size:], name: first[name]}
        return model(**rest).logits


@pytest.mark.parametrize("preset", ["separate", "integrity"])
def test_logits_equal_the_uncached_ones_bit_for_bit(tokenizer, preset):
    model = make(tokenizer, preset)
    frozen = rolesafe.freeze(model, tokenizer, SYSTEM)
    batch = frozen.inputs([ONE, TWO, ONE], **GENERATION)
    assert (batch["attention_mask"][0] == 0).sum() > 0, "padding stands between the frozen tokens and the rest"
    expected = computed(model, frozen, batch)
    rest = {**batch, "input_ids": batch["input_ids"][:, len(frozen) :]}
    with torch.no_grad():
        assert torch.equal(model(**rest).logits, expected)


def test_states_equal_those_of_whole_conversations(model, tokenizer, frozen):
    """Bit for bit, whatever follows."""
    name = cache_argument(type(model).forward)
    for more in (ONE, TWO):
        whole = rolesafe.encode(tokenizer, [*SYSTEM, *more], config=model.rolesafe_config, add_generation_prompt=True)
        with torch.no_grad():
            cache = model(**whole, use_cache=True)[name]
        for layer, own in zip(cache.layers, frozen.cache().layers, strict=True):
            assert torch.equal(layer.keys[:, :, : len(frozen)], own.keys)
            assert torch.equal(layer.values[:, :, : len(frozen)], own.values)


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_generate_equals_generate_without(model, frozen, way):
    given = {"max_new_tokens": 6, "do_sample": False, **WAYS[way]}
    rows = [ONE] if way == "lookup" else [ONE, TWO]
    batch = frozen.inputs(rows, **GENERATION)
    plain = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    torch.manual_seed(0)
    expected = model.generate(**plain, **given)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**batch, **given), expected)


def test_second_turn_goes_on_from_the_first(model, tokenizer, frozen):
    batch = frozen.inputs(ONE, **GENERATION)
    out = model.generate(**batch, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    row = out.sequences
    roles = torch.nn.functional.pad(batch["role_ids"], (0, row.shape[1] - batch["role_ids"].shape[1]), value=3)
    name = cache_argument(type(model).forward)
    given = {"input_ids": row, "attention_mask": torch.ones_like(row), "role_ids": roles}
    again = model.generate(**given, **{name: out[name]}, max_new_tokens=3, do_sample=False)
    assert torch.equal(again, model.generate(**given, max_new_tokens=3, do_sample=False))


def test_saved_prompt_loads_mapped_and_equal(model, tokenizer, frozen, tmp_path):
    frozen.save(tmp_path)
    loaded = FrozenPrompt.load(tmp_path, model, tokenizer)
    assert loaded.messages == frozen.messages
    assert all(torch.equal(x, loaded.state_tensors()[name]) for name, x in frozen.state_tensors().items())
    batch, other = (one.inputs([ONE, TWO], **GENERATION) for one in (frozen, loaded))
    assert torch.equal(model.generate(**batch, max_new_tokens=4), model.generate(**other, max_new_tokens=4))
    keys = loaded.cache(2).layers[0].keys
    if sys.platform == "linux":
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ranges = {line[0]: line[-1] for line in lines if line[-1].endswith("frozen.safetensors")}
        bounds = [[int(x, 16) for x in one.split("-")] for one in ranges]
        assert any(low <= keys.data_ptr() < high for low, high in bounds), "a view of the mapped file"
    assert keys.stride(0) == 0, "rows share memory"


@pytest.mark.parametrize("name", ["frozen.json", "frozen.safetensors"])
def test_changed_file_raises(model, tokenizer, frozen, tmp_path, name):
    frozen.save(tmp_path)
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    if name.endswith("json"):
        about = json.loads(data)
        about["messages"][0]["content"] += "!"
        data = json.dumps(about).encode()
    else:
        data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="Freeze the messages again"):
        FrozenPrompt.load(tmp_path, model, tokenizer)
    file.unlink()
    with pytest.raises(ValueError, match=f"found no {name}"):
        FrozenPrompt.load(tmp_path, model, tokenizer)


def in_place(model, tokenizer):
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1


def past_the_counters(model, tokenizer):
    model.model.layers[1].mlp.down_proj.weight.data.add_(0.01)


def role_layer(model, tokenizer):
    with torch.no_grad():
        next(p for _, p in rolesafe.named_role_parameters(model)).zero_()


def buffer(model, tokenizer):
    model.model.rotary_emb.inv_freq.mul_(2)


def rope(model, tokenizer):
    model.config.rms_norm_eps = 1e-3


def template(model, tokenizer):
    tokenizer.chat_template += " "


def vocabulary(model, tokenizer):
    tokenizer.add_tokens(["cat sat"])


def training(model, tokenizer):
    model.train()


def half(model, tokenizer):
    model.to(torch.bfloat16)


def weaker(model, tokenizer):
    set_strength(model, 0.5)


CHANGES = {
    in_place: "`weights`", past_the_counters: "`weights`", role_layer: "`weights`", buffer: "`weights`",
    rope: "`configuration`", template: "`template`", vocabulary: "`tokenizer`", training: "evaluation mode",
    half: "`(weights|configuration)`", weaker: "full strength",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_after_freezing_raises(tokenizer, tmp_path, change):
    model, own = make(tokenizer), copy.deepcopy(tokenizer)
    frozen = rolesafe.freeze(model, own, SYSTEM)
    frozen.save(tmp_path)
    frozen.inputs(ONE)
    change(model, own)
    with pytest.raises(ValueError, match=CHANGES[change]):
        frozen.inputs(ONE)
    model.eval()
    if change is not training:
        with pytest.raises(ValueError, match=CHANGES[change]):
            FrozenPrompt.load(tmp_path, model, own)


def test_changed_states_raise(model, tokenizer):
    frozen = rolesafe.freeze(model, tokenizer, SYSTEM)
    frozen.cache(2).layers[1].values.zero_()
    with pytest.raises(ValueError, match="`states`: expected the keys and values"):
        frozen.cache()


def test_watch_reads_all_weights_only_after_a_change(model, monkeypatch):
    watch, reads = WeightsWatch(model, weights_digest(model)), []
    monkeypatch.setattr(
        "rolesafe.patching.frozen_seal.weights_digest", lambda one: reads.append(1) or weights_digest(one)
    )
    assert watch.holds()
    assert watch.holds()
    assert len(reads) == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1)
    assert watch.holds(), "the values are the same"
    assert len(reads) == 2


@pytest.mark.parametrize(
    "preset, messages, match",
    [
        ("bias", SYSTEM, "`model`: expected a role layer with integrity"),
        ("channel", ONE, r"`messages\[0\].role`: expected a privileged role, one of .* got 'user'"),
        ("channel", [*SYSTEM, *ONE], r"`messages\[2\].role`"),
        (None, SYSTEM, "`model`: expected a model patched by rolesafe"),
    ],
)
def test_freeze_refuses(tokenizer, preset, messages, match):
    model = tiny_llama(len(tokenizer), seed=0, layers=1).eval() if preset is None else make(tokenizer, preset)
    with pytest.raises(ValueError, match=match):
        rolesafe.freeze(model, tokenizer, messages)


def test_freeze_refuses_training_mode_and_other_templates(tokenizer):
    model = make(tokenizer)
    late = "{% for m in messages if m.role == 'user' %}{{ m.content }}</s>{% endfor %}{{ messages[0].content }}"
    with pytest.raises(ValueError, match="`messages`: expected privileged messages whose first"):
        rolesafe.freeze(model, tokenizer, SYSTEM[:1], chat_template=late)
    with pytest.raises(ValueError, match="evaluation mode"):
        rolesafe.freeze(model.train(), tokenizer, SYSTEM)


def test_cache_of_a_frozen_prompt_refuses_other_tokens(model, tokenizer, frozen):
    other = [{**SYSTEM[0], "content": "the key is under the cat"}, SYSTEM[1], *ONE]
    batch = rolesafe.encode(tokenizer, other, config=model.rolesafe_config)
    name = cache_argument(type(model).forward)
    with pytest.raises(ValueError, match="`input_ids`: expected rows that begin with the"):
        model.generate(**batch, **{name: frozen.cache()}, max_new_tokens=1)
    short = {key: value[:, :3] for key, value in batch.items()}
    with pytest.raises(ValueError, match=r"`input_ids`: expected whole rows|`role_ids`"):
        model.generate(**short, **{name: frozen.cache()}, max_new_tokens=1)


def test_inputs_refuse_options_of_the_prompt_and_nothing_new(frozen):
    with pytest.raises(ValueError, match="`padding`: expected no such option"):
        frozen.inputs(ONE, padding=True)
    with pytest.raises(ValueError, match=r"`messages\[0\]`: expected a conversation that goes on"):
        frozen.inputs([[]])


def test_windows_keep_their_last_tokens(tokenizer):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=6, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = rolesafe.patch(Gemma3ForCausalLM(config), RoleConfig.preset("channel")).eval()
    frozen = rolesafe.freeze(model, tokenizer, SYSTEM)
    assert len(frozen) > 6
    batch = frozen.inputs(ONE, **GENERATION)
    plain = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    given = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**batch, **given), model.generate(**plain, **given))
