"""TRL's trainers get the role of every token, from the rows to the loss, or raise."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rolesafe
from rolesafe import RoleConfig
from rolesafe.mechanisms import RolePart
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'rolesafe[trl]'")

from datasets import Dataset, IterableDataset  # noqa: E402

from rolesafe.integrations.peft import role_lora_config  # noqa: E402
from rolesafe.integrations.trl import RoleDPOTrainer, RoleGRPOTrainer, RoleSFTTrainer  # noqa: E402

CONVERSATIONS = training_conversations(12, seed=0)
TOKENIZER = tiny_tokenizer(vocabulary())
CONFIG = RoleConfig.preset("channel", share=0.3)
MESSAGES = [{"messages": one} for one in CONVERSATIONS]
COMPLETIONS = [{"prompt": one[:-1], "completion": one[-1:]} for one in CONVERSATIONS]
BAD = [{"role": "assistant", "content": "no ."}]
PAIRS = [{"prompt": one[:-1], "chosen": one[-1:], "rejected": BAD} for one in CONVERSATIONS]
CPU: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-3,
}


def model(patched: bool = True) -> Any:
    tiny = tiny_llama(len(TOKENIZER), seed=0, hidden=32, layers=2, heads=4)
    return rolesafe.patch(tiny, CONFIG) if patched else tiny


def roles_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in rolesafe.named_role_parameters(model)}


def sft(directory: Path, rows: Any = MESSAGES, given: Any = None, *, options: Any = None, **changes: Any) -> Any:
    arguments = trl.SFTConfig(str(directory), **{**CPU, **changes})
    return RoleSFTTrainer(
        model() if given is None else given,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        **{"role_learning_rate": 0.1, **(options or {})},
    )


def dpo(directory: Path, given: Any = None, ref_model: Any = None, rows: Any = PAIRS, **changes: Any) -> Any:
    return RoleDPOTrainer(
        model() if given is None else given,
        ref_model,
        trl.DPOConfig(str(directory), **{**CPU, **changes}),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
        role_learning_rate=0.1,
    )


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(one[0]["content"])) for one in completions]


def grpo(directory: Path, given: Any = None, rows: Any = None, options: Any = None, **changes: Any) -> Any:
    arguments = {**CPU, "beta": 0.1, "num_generations": 2, "max_completion_length": 4, "temperature": 1.0, **changes}
    return RoleGRPOTrainer(
        model() if given is None else given,
        length,
        trl.GRPOConfig(str(directory), **arguments),
        train_dataset=Dataset.from_list(rows or [{"prompt": one[:-1]} for one in CONVERSATIONS]),
        processing_class=TOKENIZER,
        **{"role_learning_rate": 0.1, **(options or {})},
    )


# ------------------------------------------------------------------------------------------------------------------ SFT

ONLY = {"assistant_only_loss": True}
FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "conversations": (MESSAGES, ONLY),
    "completions": (COMPLETIONS, {}),
    "padding-free": (MESSAGES, {**ONLY, "padding_free": True, "max_length": None}),
    "packed": (MESSAGES, {**ONLY, "packing": True, "max_length": 128}),
}


@pytest.mark.parametrize("form", FORMS)
def test_sft_gives_every_token_its_role(form: str, tmp_path: Path) -> None:
    """Rows of all forms have the tokens, roles and labels of the encoded conversations, and the same logits."""
    rows, changes = FORMS[form]
    trainer = sft(tmp_path, rows, **changes)
    data = trainer.train_dataset
    encoded = [rolesafe.encode(TOKENIZER, one, config=CONFIG, return_tensors=None) for one in CONVERSATIONS]
    expected = {tuple(e["input_ids"][0]): e["role_ids"][0] for e in encoded}
    assert sum(len(row["input_ids"]) for row in data) == sum(len(tokens) for tokens in expected)
    for row in data:
        start = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            at = slice(start, start := start + length)
            roles, labels = row["role_ids"][at], row["labels"][at]
            assert roles == expected.pop(tuple(row["input_ids"][at]))
            learned = TOKENIZER.decode([token for token in labels if token != -100])
            assert learned.endswith("</s>")
            assert {role for role, label in zip(roles, labels, strict=True) if label != -100} == {3}
            assert labels[roles.index(3)] == -100  # the generation prompt
    assert not expected
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["role_ids"].shape == batch["input_ids"].shape
    before = roles_of(trainer.model)
    assert trainer.train().training_loss > 0
    assert all(not torch.equal(before[name], p) for name, p in roles_of(trainer.model).items())
    with pytest.raises(ValueError, match=r"`role_ids` did not reach LlamaModel"):
        trainer.compute_loss(trainer.model, {k: x for k, x in batch.items() if k != "role_ids"})


def test_sft_packed_row_equals_separate_rows(tmp_path: Path) -> None:
    given = model()
    with torch.no_grad():
        for _, parameter in rolesafe.named_role_parameters(given):
            parameter.add_(0.3 * torch.randn_like(parameter))
        batch = next(iter(sft(tmp_path, given=given, **FORMS["packed"][1]).get_train_dataloader()))
        names = ("input_ids", "role_ids", "position_ids")
        packed = given.eval()(**{name: batch[name] for name in names}, use_cache=False).logits[0]
        borders = batch["cu_seq_lens_q"].tolist()
        assert len(borders) > 4
        for start, end in pairwise(borders):
            alone = {name: batch[name][:, start:end] for name in names[:2]}
            torch.testing.assert_close(given(**alone).logits[0], packed[start:end], rtol=0, atol=1e-5)


def test_sft_truncation_keeps_roles_aligned_and_privileged(tmp_path: Path) -> None:
    whole = [rolesafe.encode(TOKENIZER, one, config=CONFIG, return_tensors=None) for one in CONVERSATIONS]
    longest = max(sum(role < 2 for role in e["role_ids"][0]) for e in whole) + 16
    data = sft(tmp_path, max_length=longest, shuffle_dataset=False).train_dataset
    assert any(len(e["input_ids"][0]) > longest for e in whole)
    for row, e in zip(data, whole, strict=True):
        assert len(row["input_ids"]) == len(row["role_ids"]) == len(row["labels"]) <= longest
        assert sum(role < 2 for role in row["role_ids"]) == sum(role < 2 for role in e["role_ids"][0])


def test_sft_encoded_rows_are_cut_with_their_roles(tmp_path: Path) -> None:
    rows = [{"input_ids": [8, 9, 10, 11], "role_ids": [0, 2, 3, 3], "completion_mask": [0, 0, 1, 1]}] * 4
    data = sft(tmp_path, rows, max_length=3).train_dataset
    assert data[0] == {"input_ids": [8, 9, 10], "role_ids": [0, 2, 3], "labels": [8, 9, 10]}
    with pytest.raises(ValueError, match=r"row 0: expected all privileged tokens among the first 3"):
        sft(tmp_path, [{**rows[0], "role_ids": [0, 2, 3, 0]}], max_length=3)
    for roles in (None, [0, 2, 3]):
        with pytest.raises(ValueError, match=r"row 0: expected `role_ids` for each of its 4 tokens"):
            sft(tmp_path, [{"input_ids": [8, 9, 10, 11], "role_ids": roles}])
    with pytest.raises(ValueError, match=r"row 0: expected one conversation, got a packed row"):
        sft(tmp_path, [{**rows[0], "seq_lengths": [2, 2]}])


@pytest.mark.parametrize(
    "rows, changes, options, message",
    [
        ([{"text": "hello"}], {}, {}, "row 0: expected a conversation.*Plain text has no roles"),
        (MESSAGES, {"packing": True, "packing_strategy": "wrapped"}, {}, "`packing_strategy`: expected 'bfd'"),
        (MESSAGES, {"truncation_mode": "keep_end"}, {}, "`truncation_mode`: expected 'keep_start'"),
        (MESSAGES, {"dataset_kwargs": {"skip_prepare_dataset": True}}, {}, "`dataset_kwargs`"),
        (MESSAGES, {}, {"formatting_func": str}, "`formatting_func`: expected none.*text has no roles"),
        (MESSAGES, {}, {"data_collator": dict}, "`data_collator`: expected none"),
        (MESSAGES, {}, {"role_learning_rate": -1.0}, "`role_learning_rate`: expected a positive number"),
    ],
)
def test_sft_argument_that_loses_roles_raises(
    rows: Any, changes: Any, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sft(tmp_path, rows, options=options, **changes)


@pytest.mark.parametrize("trainer", [RoleSFTTrainer, RoleDPOTrainer, RoleGRPOTrainer])
def test_other_arguments_raise(trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`args`: expected a \w+Config or None, got dict"):
        trainer(model(), **({"reward_funcs": length} if trainer is RoleGRPOTrainer else {}), args={})


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_other_models_raise(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`model`: expected a model patched by rolesafe, got LlamaForCausalLM"):
        make(tmp_path, given=model(patched=False))
    with pytest.raises(TypeError, match=r"`model`: expected a patched model, got 'org/name'"):
        make(tmp_path, given="org/name")


def test_sft_with_peft_trains_and_saves_role_layer(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    frozen = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(
        ValueError, match=r"`peft_config`: expected modules_to_save with \['rolesafe_embedding', 'rolesafe_heads'\]"
    ):
        sft(tmp_path, options={"peft_config": frozen})
    given = model()
    given.is_loaded_in_4bit = True  # TRL then rounds all that trains to bfloat16
    trainer = sft(tmp_path, given=given, options={"peft_config": role_lora_config(given, r=2)})
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for name, p in trained.items() if "lora_" in name} == {torch.bfloat16}
    roles = {name: p for name, p in trained.items() if "rolesafe_" in name}
    assert {p.dtype for p in roles.values()} == {torch.float32}
    assert all(torch.equal(p, torch.full_like(p, 0.3)) for name, p in roles.items() if name.endswith("share"))
    before = {name: p.detach().clone() for name, p in roles.items()}
    given.is_loaded_in_4bit = False  # the Trainer would count its parameters with bitsandbytes
    trainer.train()
    assert all(not torch.equal(before[name], p) for name, p in roles.items())


# ------------------------------------------------------------------------------------------------------------------ DPO


def test_dpo_reference_is_role_aware(tmp_path: Path) -> None:
    trainer = dpo(tmp_path)
    assert rolesafe.patching.is_patched(trainer.ref_model)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["role_ids"].shape == batch["input_ids"].shape
    assert set(batch["role_ids"][batch["completion_mask"] == 1].tolist()) == {3}
    for tokens, roles, mask in zip(batch["input_ids"], batch["role_ids"], batch["attention_mask"], strict=True):
        real = mask.bool()
        text = TOKENIZER.decode(tokens[real])
        assert roles[real].tolist()[: text.split().index("</s>")].count(0) > 0
    before, reference = roles_of(trainer.model), roles_of(trainer.ref_model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # model and reference are equal
    assert losses[1] != pytest.approx(math.log(2), abs=1e-3)
    assert all(torch.equal(reference[name], p) for name, p in roles_of(trainer.ref_model).items())
    assert all(not torch.equal(before[name], p) for name, p in roles_of(trainer.model).items())
    with pytest.raises(ValueError, match=r"`role_ids` did not reach"):
        trainer.compute_loss(trainer.model, {k: x for k, x in batch.items() if k != "role_ids"})


def test_dpo_precomputed_reference_and_truncation(tmp_path: Path) -> None:
    longest = max(len(rolesafe.encode(TOKENIZER, one[:-1])["input_ids"][0]) for one in CONVERSATIONS) + 2
    trainer = dpo(tmp_path, precompute_ref_log_probs=True, max_length=longest)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["role_ids"].shape == batch["input_ids"].shape
    assert batch["input_ids"].shape[1] <= longest
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_other_reference_or_rows_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
        dpo(tmp_path, ref_model=model(patched=False))
    other = rolesafe.patch(
        model(patched=False), RoleConfig(roles=("system", "user", "assistant"), privileged=("system",))
    )
    with pytest.raises(ValueError, match="`ref_model`: expected the roles"):
        dpo(tmp_path, ref_model=other)
    with pytest.raises(ValueError, match="`truncation_mode`"):
        dpo(tmp_path, truncation_mode="keep_end")
    with pytest.raises(ValueError, match="row 0: expected `prompt`, `chosen` and `rejected`"):
        dpo(tmp_path, rows=[{"prompt": "a", "chosen": "b", "rejected": "c"}])


# ----------------------------------------------------------------------------------------------------------------- GRPO


def test_grpo_rollouts_losses_and_reference_have_roles(tmp_path: Path) -> None:
    trainer = grpo(tmp_path)
    assert rolesafe.patching.is_patched(trainer.ref_model)
    seen: list[dict[str, Tensor]] = []
    own = trainer.model.generate

    def generate(**inputs: Any) -> Any:
        seen.append(inputs)
        return own(**inputs)

    trainer.model.generate = generate
    before = roles_of(trainer.model)
    trainer.train()
    for inputs in seen:
        real = inputs["attention_mask"].bool()
        for tokens, roles, mask in zip(inputs["input_ids"], inputs["role_ids"], real, strict=True):
            assert {0, 2, 3} <= set(roles[mask].tolist())
            assert roles[mask][-1] == 3
            assert TOKENIZER.decode(tokens[mask][:1]) == "<|system|>"
        assert set(inputs["role_ids"][~real].tolist()) <= {4}  # padding has the least privileged role
    assert len(seen) == 2
    log = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert log[1]["kl"] > 1e-6
    assert all(not torch.equal(before[name], p) for name, p in roles_of(trainer.model).items())


def test_grpo_log_probabilities_are_those_of_the_model(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, temperature=0.7)
    prompts = [one[:-1] for one in CONVERSATIONS[:3]]
    ids, _, fields = trainer._tokenize_prompts(prompts)
    encoded = rolesafe.encode(TOKENIZER, prompts, config=CONFIG, add_generation_prompt=True, padding_side="left")
    assert torch.equal(fields["role_ids"], encoded["role_ids"])
    assert ids == [row[mask.bool()].tolist() for row, mask in zip(*list(encoded.values())[:2], strict=True)]
    reply = torch.tensor([[9, 10], [11, 12], [13, 14]])
    tokens = torch.cat([encoded["input_ids"], reply], 1)
    mask = torch.cat([encoded["attention_mask"], torch.ones_like(reply)], 1)
    roles = torch.cat([encoded["role_ids"], torch.full_like(reply, 3)], 1)
    with torch.no_grad():
        logits = model()(input_ids=tokens, attention_mask=mask, role_ids=roles).logits[:, -3:-1] / 0.7
        expected = logits.log_softmax(-1).gather(2, reply.unsqueeze(2)).squeeze(2)
        got, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, 2, batch_size=2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"`prompt_role_ids`: expected the roles of 2 prompts.*\(3, "):
        trainer._get_per_token_logps_and_entropies(trainer.model, tokens[:2], mask[:2], 2)
    trainer._prompt_roles = None
    with pytest.raises(ValueError, match=r"`prompt_role_ids`: expected the roles of 3 prompts.*got None"):
        trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, 2)


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"use_vllm": True}, {}, "`use_vllm`: expected none"),
        ({"use_transformers_continuous_batching": True}, {}, "`use_transformers_continuous_batching`"),
        ({}, {"tools": [math.sqrt]}, "`tools`: expected none.*no roles"),
        ({}, {"rollout_func": dict}, "`rollout_func`: expected none"),
    ],
)
def test_grpo_rollouts_without_roles_raise(changes: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        grpo(tmp_path, options=options, **changes)


def test_grpo_text_prompts_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`prompt` of row 0: expected a list of messages, got str"):
        grpo(tmp_path, rows=[{"prompt": "hello"}] * 4).train()


def test_roles_are_parts_of_every_copy(tmp_path: Path) -> None:
    """PEFT's copies of role parts are role parts: reference and model both take part."""
    peft = pytest.importorskip("peft")
    given = model()
    wrapped = peft.get_peft_model(given, role_lora_config(given, r=2))
    trainer = dpo(tmp_path, given=wrapped)
    assert trainer.ref_model is None
    assert sum(isinstance(part, RolePart) for part in trainer.model.modules()) > 2
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[1] != pytest.approx(math.log(2), abs=1e-4)


# ------------------------------------------------------------------------------------------ rows without a system turn

LACK = "`train_dataset`: expected rows with tokens of the privileged roles .* got none in "
TALKS = [one[1:] for one in CONVERSATIONS]
UNPRIVILEGED: dict[str, tuple[Any, list[Any]]] = {
    "messages": (sft, [{"messages": one} for one in TALKS]),
    "completions": (sft, [{"prompt": one[:-1], "completion": one[-1:]} for one in TALKS]),
    "encoded": (sft, [{"input_ids": [5, 6], "role_ids": [2, 3]}] * len(TALKS)),
    "pairs": (dpo, [{"prompt": one[:-1], "chosen": one[-1:], "rejected": BAD} for one in TALKS]),
    "prompts": (grpo, [{"prompt": one[:-1]} for one in TALKS]),
}


@pytest.mark.parametrize("form", UNPRIVILEGED)
def test_rows_without_privileged_tokens_raise(form: str, tmp_path: Path) -> None:
    make, rows = UNPRIVILEGED[form]
    with pytest.raises(ValueError, match=f"{LACK}12 rows"):
        make(tmp_path, rows=rows)


@pytest.mark.parametrize("form", ["messages", "pairs", "prompts"])
def test_streamed_rows_without_privileged_tokens_warn(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, rows = UNPRIVILEGED[form]
    monkeypatch.setattr(Dataset, "from_list", lambda some: IterableDataset.from_generator(lambda: iter(some)))
    trainer = make(tmp_path, rows=rows * 12, per_device_train_batch_size=8, max_steps=8)
    with pytest.warns(UserWarning, match=f"{LACK}the first 64 rows"):
        trainer.train()
