"""Group-relative policy optimisation with roles: TRL's `GRPOTrainer`.

Legend: B completions, P tokens of the longest prompt, C of the longest completion.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

import rolesafe
from rolesafe.integrations.trl.common import (
    WidePrecision,
    check_arguments,
    check_before,
    copy_reference,
    padded,
    patched_model,
    refuse,
    text_tokenizer,
)
from rolesafe.integrations.trl.rows import is_messages
from rolesafe.roles.encoding import padding_role_id
from rolesafe.training.privileged import PrivilegedWatch
from rolesafe.training.rates import RoleRates
from rolesafe.training.trainer import RoleTraining, check_trainable, keep_locked


class RoleGRPOTrainer(RoleTraining, GRPOTrainer):
    """TRL's `GRPOTrainer` for patched models: prompts have roles in rollouts, losses and the reference.

    Completions have the generated role. The reference (``beta > 0``) is a frozen copy of the model with its role layer
    (TRL would load the plain base); under PEFT, the model without its adapter.

    Args:
        model: Patched, maybe wrapped by PEFT.
        reward_funcs: See `GRPOTrainer`.
        args: See `GRPOConfig`. Rollouts by vLLM, by continuous batching and with tools raise.
        role_learning_rate: See :class:`rolesafe.training.RoleTrainer`.
        **kwargs: See `GRPOTrainer`.

    Raises:
        TypeError: `model` is a name, or `args` of another class.
        ValueError: `model` is not patched, an argument would lose roles, no row has a privileged token for the parts of
            the role layer that act on these, or the role layer would not be trained or saved.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any = None,
        *,
        role_learning_rate: RoleRates | None = None,
        **kwargs: Any,
    ) -> None:
        patched = patched_model(model)
        check_arguments(args, GRPOConfig)
        args = GRPOConfig(f"{type(patched).__name__}-GRPO") if args is None else copy.copy(args)
        no_roles = "its tokens would have no roles. Use generation by transformers."
        refuse(kwargs, tools=no_roles, environment_factory=no_roles, rollout_func=no_roles)
        refuse(vars(args), use_vllm=no_roles, use_transformers_continuous_batching=no_roles)
        refuse(vars(args), cast_lm_head_to_fp32="the reference is a copy of `model`. Load the model in fp32.")
        check_before(model, args, kwargs, role_learning_rate)
        text_tokenizer(kwargs.get("processing_class"))
        self._roles = patched.rolesafe_config
        self._prompt_roles: Tensor | None = None
        self._watch = PrivilegedWatch(self._roles)
        beta, sync = args.beta, args.sync_ref_model
        own_reference = bool(beta) and model is patched and kwargs.get("peft_config") is None
        reference = copy_reference(model) if own_reference else None
        if own_reference:  # without it TRL makes no reference of its own
            args.beta, args.sync_ref_model = 0.0, False
        self.role_learning_rate = role_learning_rate
        wide = WidePrecision(model)
        super().__init__(model, reward_funcs, args, **kwargs)
        wide.restore(self.model)
        check_trainable(self.model, role_learning_rate)
        keep_locked(self, self.model)
        if reference is not None:
            self.beta = self.args.beta = beta
            self.args.sync_ref_model = sync
            self.ref_model = self._prepared(reference)
            if sync:
                self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    def _prepared(self, reference: Any) -> Any:
        """Return the reference as TRL prepares its own: no dropout, fused log-probabilities, on the devices."""
        if self.args.disable_dropout:
            disable_dropout_in_model(reference)
        add_fused_lm_head(reference, temperature=self.temperature)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            from trl.models import prepare_deepspeed, prepare_fsdp

            return (prepare_deepspeed if self.is_deepspeed_enabled else prepare_fsdp)(reference, self.accelerator)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    # ------------------------------------------------------------------------------------------------------- rollouts

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        """Return the tokens of prompts, no images, and their roles (B, P) for `generate`.

        Raises:
            ValueError: A prompt is no conversation.
        """
        for i, prompt in enumerate(prompts):
            if not is_messages(prompt):
                raise ValueError(
                    f"`prompt` of row {i}: expected a list of messages, got {type(prompt).__name__}. Plain text has no "
                    "roles."
                )
        encoded = rolesafe.encode(
            text_tokenizer(self.processing_class),
            [[{k: v for k, v in one.items() if v is not None} for one in prompt] for prompt in prompts],
            config=self._roles,
            add_generation_prompt=True,
            padding=False,
            template_kwargs=self.chat_template_kwargs or None,
            return_tensors=None,
        )
        self._watch.see(encoded["role_ids"])
        roles = padded(
            [torch.tensor(row) for row in encoded["role_ids"]],
            padding_role_id(self._roles),
            self.pad_to_multiple_of,
            side="left",
        )
        self._prompt_roles = roles.to(self.accelerator.device)
        return encoded["input_ids"], None, {"role_ids": roles}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Generate and score as TRL does, and keep the roles of the prompts (B, P) for the loss."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output["prompt_role_ids"] = self._prompt_roles
        return output

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._prompt_roles = inputs["prompt_role_ids"]
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return log-probabilities of the completions as TRL does, from a model that is given the roles."""
        prompts = self._prompt_roles
        if prompts is None or prompts.shape[0] != input_ids.shape[0] or prompts.shape[1] > input_ids.shape[1]:
            got = None if prompts is None else tuple(prompts.shape)
            raise ValueError(
                f"`prompt_role_ids`: expected the roles of {input_ids.shape[0]} prompts in at most "
                f"{input_ids.shape[1]} tokens, got {got}"
            )
        missing = input_ids.shape[1] - prompts.shape[1]
        role_ids = nn.functional.pad(prompts, (0, missing), value=self._roles.generated_id)
        return super()._get_per_token_logps_and_entropies(_WithRoles(model, role_ids), input_ids, *args, **kwargs)


class _WithRoles:
    """Call a model chunk by chunk, in order, with the roles (B, P + C) of its rows."""

    def __init__(self, model: Any, role_ids: Tensor) -> None:
        self.model = model
        self.role_ids = role_ids
        self.start = 0

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        end = self.start + input_ids.shape[0]
        roles, self.start = self.role_ids[self.start : end], end
        return self.model(input_ids=input_ids, role_ids=roles, **kwargs)
