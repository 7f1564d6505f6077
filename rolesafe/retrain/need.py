"""Choice of dedicated heads in a retraining: those that the base model needs least on the ordinary rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rolesafe.config import RoleConfig
from rolesafe.retrain.batching import encode_rows
from rolesafe.retrain.config import RetrainConfig
from rolesafe.retrain.preparation import Prepared
from rolesafe.training import RoleCollator, choose_dedicated

MOST_ROWS: Final = 64
"""Number of rows that the choice is measured on, at most."""


def choose(
    model: Any,
    config: RetrainConfig,
    roles: RoleConfig,
    prepared: Prepared,
    tokenizer: Any,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> RoleConfig:
    """Return `roles` with the dedicated heads that `model` needs least for the replies of ordinary rows.

    Ordinary rows are the clean and plain ones with a privileged turn, the first :data:`MOST_ROWS` in training order.

    Args:
        model: Base model, which stays as it is.
        config: Recipe.
        roles: Role configuration with a number or share of dedicated heads.
        prepared: Prepared rows with replies.
        tokenizer: Tokenizer with a chat template.
        progress: Callback for the number of passes done and their total.

    Raises:
        ValueError: There is no ordinary row, or as :func:`rolesafe.training.choose_dedicated`.
    """
    ordinary = [
        row
        for row in prepared.rows
        if row.kind in ("clean", "plain") and any(m["role"] in roles.privileged for m in row.messages)
    ]
    if not ordinary:
        raise ValueError(
            "`dedicated`: expected 'clean' rows, or 'plain' ones with a system turn, to choose heads on, got none. "
            "Raise their share in `shares`, or set dedicated to 'first'."
        )
    encoded = encode_rows(ordinary[:MOST_ROWS], replace(config, bad_rows="drop"), tokenizer)
    collator = RoleCollator(tokenizer=tokenizer, config=roles)
    return choose_dedicated(model, roles, [collator([row]) for row in encoded.rows], progress=progress)
