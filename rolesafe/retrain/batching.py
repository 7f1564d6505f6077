"""Tokenization of prepared rows, and their order in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from rolesafe.config import RoleConfig
from rolesafe.retrain.config import KINDS, RetrainConfig
from rolesafe.retrain.row import PreparedRow
from rolesafe.training import RoleCollator
from rolesafe.training.privileged import check_rows

_WINDOW: Final = 32
"""Number of batches that are sorted by length together: less padding, nearly the order of the epochs."""

Encoded = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Tokenized rows.

    Attributes:
        rows: `input_ids`, `attention_mask`, `role_ids` and `labels` of each row.
        counts: Number of rows of each kind.
        dropped: Reasons for the rows left out; each names its row.
    """

    rows: tuple[Encoded, ...]
    counts: Mapping[str, int]
    dropped: tuple[str, ...]


def encode_rows(
    rows: Sequence[PreparedRow],
    config: RetrainConfig,
    tokenizer: Any,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedRows:
    """Tokenize rows once, for all epochs, and return them with the reasons for those left out.

    Args:
        rows: Prepared rows with replies.
        config: Recipe; `bad_rows` selects between an error and dropping rows longer than `max_length`.
        tokenizer: Tokenizer with a chat template.
        progress: Callback for the number of rows done and their total.

    Raises:
        ValueError: A row is longer than `max_length` or is not supported by the chat template, with `bad_rows` "error";
            or no row is left, or none has a role whose tokens the role layer changes or reads.
    """
    roles = config.roles()
    collator = RoleCollator(tokenizer=tokenizer, config=roles or RoleConfig())
    found: list[Encoded] = []
    dropped: list[str] = []
    counts = dict.fromkeys(KINDS, 0)
    for i, row in enumerate(rows):
        name = f"row {row.id!r} (from {row.source})"
        try:
            one = collator.encode({"messages": row.conversation}, name, live_markers=row.live)
        except ValueError as error:
            if config.bad_rows == "error":
                raise
            dropped.append(str(error))
            continue
        if len(one["input_ids"]) <= config.max_length:
            found.append(one)
            counts[row.kind] += 1
        else:
            dropped.append(f"{name} has {len(one['input_ids'])} tokens")
        if progress is not None and (i % 64 == 63 or i + 1 == len(rows)):
            progress(i + 1, len(rows))
    if dropped and (config.bad_rows == "error" or not found):
        raise ValueError(
            f"`max_length`: expected rows of at most {config.max_length} tokens that the chat template prints, got: "
            f"{dropped[0]}, and {len(dropped) - 1} more. Raise max_length up to the model's context, shorten the rows, "
            "or leave them out (bad_rows: drop)."
        )
    if roles is not None and roles.embedding_ids is not None:
        _check_roles(found, roles.embedding_ids, roles.roles)
    if roles is not None:
        check_rows(roles, "data", found)
    return EncodedRows(rows=tuple(found), counts=counts, dropped=tuple(dropped))


def _check_roles(rows: Sequence[Encoded], wanted: Sequence[int], names: Sequence[str]) -> None:
    """Raise a ValueError where no row has a token of one of the `wanted` roles: their vectors would not be trained."""
    seen = {int(role) for row in rows for role in row["role_ids"]}
    if not seen.intersection(wanted):
        expected, got = ([names[role] for role in some] for some in (wanted, sorted(seen)))
        raise ValueError(
            f"`data`: expected rows with text of the roles {expected}, which have the role vectors "
            f"(`embedding_roles`), got rows of {got}. Put the data into turns of these roles (`tool_share`), name "
            "other roles, or choose another preset."
        )


def count_steps(config: RetrainConfig, rows: int) -> int:
    """Return the number of optimizer steps of a run over `rows` prepared rows."""
    if config.steps is not None:
        return config.steps
    each = config.batch_size * config.gradient_accumulation
    return max(1, round((config.epochs or 1) * rows / each))


def schedule(lengths: Sequence[int], config: RetrainConfig, steps: int) -> list[int]:
    """Return the row indices of all forward passes in order, ``steps * batch * accumulation`` of them.

    Every epoch is a permutation of all rows. Rows of similar length share a batch.

    Args:
        lengths: Number of tokens of each row.
        config: Recipe.
        steps: Number of optimizer steps.
    """
    rng = Random(f"retrain/order/{config.seed}")
    count = steps * config.batch_size * config.gradient_accumulation
    order: list[int] = []
    while len(order) < count:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        order += epoch
    order = order[:count]
    size, found = config.batch_size, []
    for start in range(0, count, size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lambda i: (lengths[i], i))
        batches = [window[i : i + size] for i in range(0, len(window), size)]
        rng.shuffle(batches)
        found += [i for batch in batches for i in batch]
    return found
