"""`LogRoles`: strength, shares and role rates reach every reporter of the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import AnnealRoles, LogRoles, RoleCollator, RoleTrainer
from rolesafe.training.log import role_values
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import base_model, randomise, role_model


class Reporter(TrainerCallback):
    """Keeps all that it is given, as a reporter of the Trainer."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        self.seen.append(dict(logs))


def test_reporters_get_strength_shares_and_rates(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(vocabulary())
    model = rolesafe.patch(
        tiny_llama(len(tokenizer), seed=0, hidden=32, layers=1, heads=4), RoleConfig.preset("channel", share=0.3)
    )
    reporter = Reporter()
    trainer = RoleTrainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
                          use_cpu=True, logging_steps=1, learning_rate=1e-3, lr_scheduler_type="constant",
                          save_strategy="no"),
        data_collator=RoleCollator(tokenizer=tokenizer, config=model.rolesafe_config),
        train_dataset=[{"messages": one} for one in training_conversations(16, seed=0)],
        role_learning_rate=0.05,
        callbacks=[AnnealRoles(4, start=0.2), reporter, LogRoles()],
    )  # fmt: skip
    trainer.train()
    logged = [one for one in reporter.seen if "loss" in one]
    assert [one["role/strength"] for one in logged] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert {one["role/learning_rate"] for one in logged} == {0.05}
    assert {one["learning_rate"] for one in logged} == {1e-3}
    assert logged[0]["role/share_mean"] != logged[-1]["role/share_mean"]
    assert all(0 <= one["role/share_min"] <= one["role/share_mean"] <= 1 for one in logged)
    assert logged[-1]["role/bias_abs_max"] > logged[0]["role/bias_abs_max"] > 0
    assert [one["role/share_mean"] for one in trainer.state.log_history if "loss" in one] == [
        one["role/share_mean"] for one in logged
    ]
    assert "role/strength" not in reporter.seen[-1]  # the summary of the run has no loss of a step


def test_values_are_those_of_the_parts_that_act() -> None:
    model = randomise(role_model("llama", RoleConfig.preset("channel", share=0.3)))
    shares = torch.cat([p.detach() for name, p in rolesafe.named_role_parameters(model) if name.endswith("share")])
    assert role_values(model)["role/share_mean"] == pytest.approx(shares.clamp(0, 1).mean().item())
    peft = pytest.importorskip("peft")
    from rolesafe.integrations.peft import role_lora_config

    wrapped = peft.get_peft_model(model, role_lora_config(model, r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name and name.endswith("share"):
                parameter.fill_(0.75)
    assert role_values(wrapped)["role/share_mean"] == role_values(wrapped)["role/share_min"] == 0.75
    assert "role/share_mean" not in role_values(role_model("llama", RoleConfig.preset("ise")))


def test_hidden_table_entry_is_not_a_maximum() -> None:
    model = role_model("llama", RoleConfig())
    with torch.no_grad():
        for _, table in rolesafe.named_role_parameters(model):
            table.fill_(0.5)[:, 2, 0] = -torch.inf
    assert role_values(model)["role/bias_abs_max"] == 0.5


def test_plain_model_raises(tmp_path: Path) -> None:
    trainer = Trainer(base_model("llama"), TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    with pytest.raises(ValueError, match="`model`: expected a model patched by rolesafe"):
        LogRoles().on_log(trainer.args, trainer.state, trainer.control, {"loss": 1.0}, model=trainer.model)
