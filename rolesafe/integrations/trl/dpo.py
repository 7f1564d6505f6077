"""Direct preference optimisation with roles: TRL's `DPOTrainer`.

Shapes: B pairs, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, extract_prompt
from trl.data_utils import common_prefix_length, get_dataset_column_names
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import global_then_local_main_first

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
from rolesafe.integrations.trl.rows import RowEncoder, is_messages
from rolesafe.mechanisms import get_strength
from rolesafe.roles.encoding import padding_id, padding_role_id
from rolesafe.training.privileged import PrivilegedWatch
from rolesafe.training.rates import RoleRates
from rolesafe.training.trainer import RoleTraining, check_trainable, keep_locked

SIDES = ("chosen", "rejected")


@dataclass
class RolePreferenceCollator(DataCollatorForPreference):
    """TRL's collator, with `role_ids` (2 B, T): chosen replies, then rejected ones.

    Attributes:
        padding_role: Role id of padding.
        watch: Warns where the first rows have no privileged token.
    """

    padding_role: int = 0
    watch: PrivilegedWatch = field(default_factory=lambda: PrivilegedWatch(None))

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate pairs; roles are truncated with their tokens."""
        batch: dict[str, Any] = super().torch_call(examples)
        rows = [row["prompt_role_ids"] + row[f"{side}_role_ids"] for side in SIDES for row in examples]
        self.watch.see(rows)
        cut = [torch.tensor(row[: self.max_length]) for row in rows]
        batch["role_ids"] = padded(cut, self.padding_role, self.pad_to_multiple_of)
        return batch


@dataclass(frozen=True, kw_only=True)
class PairEncoder(RowEncoder):
    """Encode rows with `prompt`, `chosen` and `rejected`, lists of messages."""

    def encode(self, row: Mapping[str, Any], index: int) -> dict[str, list[int]]:
        """Return tokens and roles of the prompt and of both replies.

        Raises:
            ValueError: The row is no pair of conversations.
        """
        pair = row
        if "prompt" not in row and all(is_messages(row.get(side)) for side in SIDES):
            pair = extract_prompt(dict(row))
        if not all(is_messages(pair.get(name)) for name in ("prompt", *SIDES)):
            raise ValueError(
                f"row {index}: expected `prompt`, `chosen` and `rejected` as lists of messages, got the columns "
                f"{sorted(row)}. Plain text has no roles."
            )
        prompt = self.conversation(row, pair["prompt"], f"row {index}: prompt", add_generation_prompt=True)
        both = [self.conversation(row, [*pair["prompt"], *pair[side]], f"row {index}: {side}") for side in SIDES]
        # Both replies start where the first of them differs from the prompt, as by TRL.
        start = min(common_prefix_length(prompt.input_ids, one.input_ids) for one in both)
        found = {"prompt_ids": both[0].input_ids[:start], "prompt_role_ids": both[0].role_ids[:start]}
        for side, one in zip(SIDES, both, strict=True):
            if one.role_ids[:start] != found["prompt_role_ids"]:
                raise ValueError(
                    f"row {index}: expected one role of every token of the prompt, got others with the {side} reply"
                )
            found |= {f"{side}_ids": one.input_ids[start:], f"{side}_role_ids": one.role_ids[start:]}
        return found


class RoleDPOTrainer(RoleTraining, DPOTrainer):
    """TRL's `DPOTrainer` for patched models, with a role-aware reference.

    The reference is a frozen copy of the model with its role layer (TRL would load the plain base); under PEFT, the
    model without its adapter.

    Args:
        model: Patched, maybe wrapped by PEFT.
        ref_model: Patched, with the same roles; default: a copy of `model`.
        args: See `DPOConfig`.
        role_learning_rate: See :class:`rolesafe.training.RoleTrainer`.
        **kwargs: See `DPOTrainer`.

    Raises:
        TypeError: `model` is a name, or `args` of another class.
        ValueError: `model` or `ref_model` is not patched, an argument would lose roles, no row has a privileged token
            for the parts of the role layer that act on these, or the role layer would not be trained or saved.
    """

    _signature_columns: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        *,
        role_learning_rate: RoleRates | None = None,
        **kwargs: Any,
    ) -> None:
        patched = patched_model(model)
        check_arguments(args, DPOConfig)
        refuse(kwargs, data_collator="it would have no roles. Leave it out.")
        check_before(model, args, kwargs, role_learning_rate)
        args = DPOConfig(f"{type(patched).__name__}-DPO") if args is None else args
        if args.truncation_mode != "keep_start":
            raise ValueError(
                f"`truncation_mode`: expected 'keep_start', got {args.truncation_mode!r}, which cuts the system prompt."
            )
        self._roles, self._strength = patched.rolesafe_config, get_strength(patched)
        if ref_model is not None:
            found = patched_model(ref_model).rolesafe_config
            if (found.roles, found.generated) != (self._roles.roles, self._roles.generated):
                raise ValueError(f"`ref_model`: expected the roles {self._roles.roles} of `model`, got {found.roles}")
        elif model is patched and kwargs.get("peft_config") is None and not args.precompute_ref_log_probs:
            ref_model = copy_reference(model)
        tokenizer: PreTrainedTokenizerBase = text_tokenizer(kwargs.get("processing_class"))
        collator = RolePreferenceCollator(
            pad_token_id=padding_id(tokenizer),
            max_length=args.max_length,
            pad_to_multiple_of=args.pad_to_multiple_of,
            padding_role=padding_role_id(self._roles),
            watch=PrivilegedWatch(self._roles),
        )
        self.role_learning_rate = role_learning_rate
        wide = WidePrecision(model)
        super().__init__(model, ref_model, args, data_collator=collator, **kwargs)
        wide.restore(self.model)
        check_trainable(self.model, role_learning_rate)
        keep_locked(self, self.model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Encode a data set of pairs, without those whose prompt leaves no room for a reply."""
        encoder = PairEncoder(tokenizer=text_tokenizer(processing_class), config=self._roles, strength=self._strength)
        columns = get_dataset_column_names(dataset)
        options: dict[str, Any] = {}
        if isinstance(dataset, Dataset):
            options = {"num_proc": args.dataset_num_proc, "desc": f"Encoding {dataset_name} dataset"}
        with global_then_local_main_first():
            dataset = dataset.map(encoder.encode, with_indices=True, remove_columns=columns, **options)
            longest = args.max_length
            if longest is not None:
                dataset = dataset.filter(lambda row: len(row["prompt_ids"]) < longest, **options)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        roles = [f"{name}_role_ids" for name in ("prompt", *SIDES)]
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, *roles])]
