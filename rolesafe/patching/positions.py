"""Positions of tokens with `position_gap` (a gap between channels) or `own_positions` (counted per channel).

Positions are computed from the roles and the padding of the whole sequence at every call. So left padding, chunked
prefill, generation and a second turn on a kept cache give the positions of one long call. (Public code of PFT adds a
gap per label to the given positions, and labels every cached step as part of the reply.)

Legend: B batch, N tokens from the first one, T of them new.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rolesafe.attention.problem import is_privileged
from rolesafe.config import RoleConfig
from rolesafe.patching import families
from rolesafe.patching.caches import given_cache
from rolesafe.patching.guards import demand


def role_positions(
    config: RoleConfig,
    strength: float,
    role_ids: Tensor,
    padding: Tensor | None,
    past: int | Tensor,
    length: int,
    given: Tensor | None = None,
) -> Tensor:
    """Return the positions (B, T) int64 of the new tokens.

    Args:
        config: With `position_gap` or `own_positions`.
        strength: Fraction of the distance from the ordinary positions, in [0, 1]; rounded.
        role_ids: (B, N') with N' >= N = past + T.
        padding: (B, >= N), 0 where a token is padding, which is not counted; None: no padding.
        past: Number of tokens before the new ones.
        length: T.
        given: Ordinary positions (B | 1, T) of the new tokens; None: counted. Without a cache they may jump (training
            with random gaps), and `own_positions` counts the jumps.

    Raises:
        ValueError: `padding` or `given` do not fit the tokens, or the positions cannot be counted per channel.
    """
    total = role_ids.shape[1] if isinstance(past, Tensor) else past + length
    roles = role_ids[:, :total]
    device, batch = roles.device, roles.shape[0]
    if padding is None:
        real = torch.ones_like(roles, dtype=torch.bool)
    else:
        if padding.ndim != 2 or padding.shape[0] != batch or (padding.shape[1] < total and isinstance(past, int)):
            raise ValueError(
                f"`attention_mask`: expected shape {(batch, total)}, one number per token, got {tuple(padding.shape)}"
            )
        real = padding[:, :total].to(device) != 0
        real = torch.nn.functional.pad(real, (0, total - real.shape[1]))
    steps = real.long()
    counted = (steps.cumsum(1) - 1).clamp(min=0)
    at = torch.arange(length, device=device) + (past.to(device) if isinstance(past, Tensor) else past)
    ordinary = counted[:, at]
    if given is not None:
        if given.ndim != 2 or given.shape[0] not in (1, batch) or given.shape[1] != length:
            raise ValueError(
                f"`position_ids`: expected shape {(batch, length)}, one position per new token, got "
                f"{tuple(given.shape)}. Leave them out to have them counted."
            )
        given = given.to(device).long().expand(batch, -1)
        if isinstance(past, int) and past == 0:
            steps = _steps(given, real)
        elif config.own_positions:
            _check_counted(given, ordinary, real, at)
        ordinary = given
    privileged = is_privileged(roles, config.privileged_ids)
    target = ordinary
    if config.own_positions:
        own, other = (((steps * channel).cumsum(1) - 1).clamp(min=0) for channel in (privileged, ~privileged))
        target = torch.where(privileged, own, other)[:, at]
    target = target + config.position_gap * (~privileged[:, at])
    if strength == 1:
        return target
    return ordinary + ((target - ordinary).double() * strength).round().long()


def _steps(given: Tensor, real: Tensor) -> Tensor:
    """Return (B, N) distances from the token before; 0 at padding, 1 at the first token after padding."""
    steps = torch.nn.functional.pad(given[:, 1:] - given[:, :-1], (1, 0), value=1)
    after = torch.nn.functional.pad(real[:, :-1], (1, 0), value=False)  # True after a token that is no padding
    steps = torch.where(after, steps, 1) * real
    demand(
        (steps >= 0).all(),
        "`position_ids`: expected positions that never go down within a row, got some that do (several sequences "
        "packed into one row?). Give each conversation a row of its own.",
    )
    return steps


def _check_counted(given: Tensor, counted: Tensor, real: Tensor, at: Tensor) -> None:
    """Raise where positions with a cache jump: jumps in the cached part are unknown. Padding may be counted or not."""
    now = real[:, at]
    ahead = given - counted
    pads = (~real).cumsum(1)[:, at]
    demand(
        ((ahead >= 0) & (ahead <= pads) | ~now).all(),
        "`position_ids`: expected consecutive positions with a cache, got others. `own_positions` counts cached tokens "
        "from `role_ids` and `attention_mask`, so jumps would be lost. Leave `position_ids` out, or run without a "
        "cache.",
    )


def with_positions(
    config: RoleConfig, strength: float, role_ids: Tensor, tokens: Tensor, given: dict[str, Any], positions: Any
) -> dict[str, Any]:
    """Return `given`, the arguments of a forward pass, with the `position_ids` of the configuration.

    `positions` are those of `prepare_inputs_for_generation`, where the padding was still known; None: computed here.
    """
    cache, mask = given_cache(given), given.get("attention_mask")
    past = 0 if cache is None else cache.get_seq_length()
    if positions is None:
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise ValueError(
                "`attention_mask`: expected shape (B, N), one number per token, got a mask of another form. "
                "`position_gap` and `own_positions` count positions from the padding."
            )
        positions = role_positions(
            config, strength, role_ids.to(tokens.device), mask, past, tokens.shape[1], given.get("position_ids")
        )
    if mask is None and cache is None:
        # Without a mask transformers reads jumps as the borders of packed sequences.
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    return {**given, "position_ids": positions, "attention_mask": mask}


def check_positions(model: PreTrainedModel, config: RoleConfig) -> None:
    """Raise a ValueError where the positions of a model cannot be moved, or moving them would break the guarantee."""
    if not config.moves_positions:
        return
    part = "own_positions" if config.own_positions else "position_gap"
    name = type(model).__name__
    reason = families.why_no_positions(model)
    if reason is not None:
        raise ValueError(f"`{part}`: {name} {reason}. Use own_positions=False and position_gap=0.")
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if isinstance(longest, int) and config.position_gap >= longest:
        raise ValueError(
            f"`position_gap`: expected less than the {longest} positions of {name}, got {config.position_gap}"
        )
    if config.own_positions:
        changing = families.rope_types(model) & {"dynamic", "longrope"}
        if changing:
            raise ValueError(
                f"`own_positions`: the rotary positions of {name} ({', '.join(sorted(changing))}) depend on the length "
                "of the whole sequence, so other text would still change the positions of privileged tokens. Use "
                "own_positions=False."
            )
