"""Supervised fine-tuning with roles: TRL's `SFTTrainer`.

Shapes: B rows, T tokens of the longest.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import global_then_local_main_first

from rolesafe.integrations.trl.common import (
    WidePrecision,
    check_arguments,
    check_before,
    padded,
    patched_model,
    refuse,
    text_tokenizer,
)
from rolesafe.integrations.trl.rows import RowEncoder
from rolesafe.mechanisms import get_strength
from rolesafe.roles.encoding import padding_role_id
from rolesafe.training.collator import IGNORED
from rolesafe.training.privileged import PrivilegedWatch
from rolesafe.training.rates import RoleRates
from rolesafe.training.trainer import RoleTraining, check_trainable, keep_locked


@dataclass
class RoleDataCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with `role_ids` (B, T), or (1, T) without padding.

    Attributes:
        padding_role: Role id of padding.
        watch: Warns where the first rows have no privileged token.
    """

    padding_role: int = 0
    watch: PrivilegedWatch = field(default_factory=lambda: PrivilegedWatch(None))

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows with `input_ids`, `role_ids` and `labels`.

        Raises:
            ValueError: A row has no role per token.
        """
        batch: dict[str, Any] = super().torch_call(examples)
        for i, row in enumerate(examples):
            if len(row.get("role_ids", ())) != len(row["input_ids"]):
                raise ValueError(
                    f"row {i}: expected `role_ids` for each of its {len(row['input_ids'])} tokens, got "
                    f"{len(row.get('role_ids', ()))}. Keep the column `role_ids`."
                )
        self.watch.see(row["role_ids"] for row in examples)
        roles = [torch.tensor(row["role_ids"]) for row in examples]
        roles = [torch.cat(roles)] if self.padding_free else roles
        batch["role_ids"] = padded(roles, self.padding_role, self.pad_to_multiple_of)
        return batch


class RoleSFTTrainer(RoleTraining, SFTTrainer):
    """TRL's `SFTTrainer` for patched models: roles are encoded, truncated, packed and collated with the tokens.

    Rows are conversations (`messages`), prompts with completions (lists of messages), or encoded (`input_ids`,
    `role_ids`). ``assistant_only_loss=True`` learns messages of the generated role, with any chat template. Packing
    keeps the borders of conversations (``packing_strategy="bfd"``).

    Args:
        model: Patched, maybe wrapped by PEFT.
        args: See `SFTConfig`.
        role_learning_rate: See :class:`rolesafe.training.RoleTrainer`.
        **kwargs: See `SFTTrainer`.

    Raises:
        TypeError: `model` is a name, or `args` of another class.
        ValueError: `model` is not patched, an argument would lose roles, no row has a privileged token for the parts of
            the role layer that act on these, or the role layer would not be trained or saved.
    """

    data_collator: Any
    _signature_columns: Any

    def __init__(
        self, model: Any, args: Any = None, *, role_learning_rate: RoleRates | None = None, **kwargs: Any
    ) -> None:
        patched = patched_model(model)
        check_arguments(args, SFTConfig)
        refuse(
            kwargs,
            data_collator="it would have no roles. Leave it out.",
            formatting_func="text has no roles. Use the columns `messages`, or `prompt` and `completion`.",
        )
        check_before(model, args, kwargs, role_learning_rate)
        # TRL looks for generation markers in the template; roles replace them.
        self._assistant_only = bool(getattr(args, "assistant_only_loss", False))
        args = SFTConfig(f"{type(patched).__name__}-SFT") if args is None else copy.copy(args)
        args.assistant_only_loss = False
        _check_arguments(args)
        self._roles, self._strength = patched.rolesafe_config, get_strength(patched)
        self.role_learning_rate = role_learning_rate
        wide = WidePrecision(model)
        super().__init__(model, args, **kwargs)
        wide.restore(self.model)
        check_trainable(self.model, role_learning_rate)
        keep_locked(self, self.model)
        self.args.assistant_only_loss = self._assistant_only
        own = self.data_collator
        self.data_collator = RoleDataCollator(
            pad_token_id=own.pad_token_id,
            padding_free=own.padding_free,
            return_position_ids=own.return_position_ids,
            pad_to_multiple_of=own.pad_to_multiple_of,
            padding_role=padding_role_id(self._roles),
            watch=PrivilegedWatch(self._roles),
        )

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """Encode, truncate, pack and shuffle a data set, in the columns `input_ids`, `role_ids` and `labels`."""
        encoder = RowEncoder(
            tokenizer=text_tokenizer(processing_class),
            config=self._roles,
            strength=self._strength,
            max_length=args.max_length,
            assistant_only=self._assistant_only,
            completion_only=self.completion_only_loss,
        )
        columns = get_dataset_column_names(dataset)
        whole = isinstance(dataset, Dataset)

        def options(what: str) -> dict[str, Any]:
            return {"num_proc": args.dataset_num_proc, "desc": f"{what} {dataset_name} dataset"} if whole else {}

        with global_then_local_main_first():
            dataset = dataset.map(encoder.encode, with_indices=True, remove_columns=columns, **options("Encoding"))
            dataset = dataset.filter(_teaches, **options("Dropping fully masked examples from"))
            if packing:
                if args.max_length is None:
                    raise ValueError("`max_length`: expected a number of tokens with packing, got None")
                if args.shuffle_dataset:
                    dataset = dataset.shuffle(seed=args.seed)
                dataset = pack_dataset(dataset, args.max_length, args.packing_strategy, options("Packing"))
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*self._signature_columns, "role_ids"])]


def _teaches(row: dict[str, list[int]]) -> bool:
    return any(label != IGNORED for label in row["labels"])


def _check_arguments(args: Any) -> None:
    """Raise a ValueError where a setting of TRL would separate a conversation from its privileged part."""
    if args.packing and args.packing_strategy != "bfd":
        raise ValueError(
            f"`packing_strategy`: expected 'bfd', got {args.packing_strategy!r}, which cuts conversations into "
            "pieces without a system prompt."
        )
    if args.truncation_mode != "keep_start":
        raise ValueError(
            f"`truncation_mode`: expected 'keep_start', got {args.truncation_mode!r}, which cuts the system prompt."
        )
    if (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        raise ValueError(
            "`dataset_kwargs`: expected no skip_prepare_dataset, got True. Encoded rows (`input_ids`, `role_ids`) are "
            "recognised."
        )
