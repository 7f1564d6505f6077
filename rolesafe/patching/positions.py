"""Where tokens stand in a model whose configuration moves them: a gap between channels, positions counted per channel.

Positions are made anew from the roles and the padding of the whole sequence at every call. So left padding, a prompt
fed in chunks, generated tokens and a second turn on a kept cache all come out at the places they have in one long call.
(Public code of PFT adds a gap per label to whatever came, and labels every cached step as part of the reply.)

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


def role_positions(
    config: RoleConfig,
    strength: float,
    role_ids: Tensor,
    padding: Tensor | None,
    past: int | Tensor,
    length: int,
    given: Tensor | None = None,
) -> Tensor:
    """Positions (B, T) int64 of the new tokens.

    Args:
        config: With `position_gap` or `own_positions`.
        strength: How far tokens are moved from their ordinary positions: all the way at 1.
        role_ids: (B, N') with N' >= N = past + T.
        padding: (B, >= N), 0 where a token is padding, which is not counted; None: there is none.
        past: Number of tokens before the new ones.
        length: T.
        given: Ordinary positions (B | 1, T) of the new tokens; None: counted. Where there is no cache, the step from
            one token to the next may be any (training with jumps), and is what `own_positions` counts.

    Raises:
        ValueError: `padding` or `given` do not fit the tokens, or tell of something that is not counted here.
    """
    total = role_ids.shape[1] if isinstance(past, Tensor) else past + length
    roles = role_ids[:, :total]
    device, batch = roles.device, roles.shape[0]
    if padding is None:
        real = torch.ones_like(roles, dtype=torch.bool)
    else:
        if padding.ndim != 2 or padding.shape[0] != batch or (padding.shape[1] < total and isinstance(past, int)):
            raise ValueError(
                f"`attention_mask`: expected shape {(batch, total)}, one number per token, got {tuple(padding.shape)}; "
                "positions are counted from it"
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
                f"{tuple(given.shape)}; leave them out to have them counted"
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
    """(B, N) distance of every token from the one before it; 0 at padding, 1 at the first token after padding."""
    steps = torch.nn.functional.pad(given[:, 1:] - given[:, :-1], (1, 0), value=1)
    after = torch.nn.functional.pad(real[:, :-1], (1, 0), value=False)  # whether a token stands before it
    steps = torch.where(after, steps, 1) * real
    _demand(
        (steps >= 0).all(),
        "`position_ids`: expected positions that never go down within a row, got some that do (several sequences "
        "packed into one row?). `own_positions` and `position_gap` count one conversation per row: give each its own",
    )
    return steps


def _check_counted(given: Tensor, counted: Tensor, real: Tensor, at: Tensor) -> None:
    """Positions beside a cache must be the plain ones, padding counted or not: jumps before them are unknown."""
    now = real[:, at]
    ahead = given - counted
    pads = (~real).cumsum(1)[:, at]
    _demand(
        ((ahead >= 0) & (ahead <= pads) | ~now).all(),
        "`position_ids`: expected consecutive positions beside a cache, got others. With `own_positions` what is in "
        "the cache is counted from `role_ids` and `attention_mask`, so jumps would be lost; leave `position_ids` out, "
        "or run without a cache",
    )


def _demand(holds: Tensor, message: str) -> None:
    if holds.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not bool(holds):
        raise ValueError(message)


def place(
    config: RoleConfig, strength: float, role_ids: Tensor, tokens: Tensor, given: dict[str, Any], positions: Any
) -> dict[str, Any]:
    """`given`, the arguments of a forward pass, with `position_ids` as the configuration wants them.

    `positions` are those that `prepare_inputs_for_generation` made already, where the padding was still at hand.
    """
    cache, mask = given_cache(given), given.get("attention_mask")
    past = 0 if cache is None else cache.get_seq_length()
    if positions is None:
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            raise ValueError(
                "`attention_mask`: expected shape (B, N), one number per token, got a mask of another form; with "
                "`position_gap` or `own_positions` the padding has to be known to count positions"
            )
        positions = role_positions(
            config, strength, role_ids.to(tokens.device), mask, past, tokens.shape[1], given.get("position_ids")
        )
    if mask is None and cache is None:
        # transformers takes positions that do not go up by one for several packed sequences, unless there is a mask
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    return {**given, "position_ids": positions, "attention_mask": mask}


def check_positions(model: PreTrainedModel, config: RoleConfig) -> None:
    """Raise where the positions of a model cannot be moved, or where moving them would not do what it says."""
    if not config.moves_positions:
        return
    part = "own_positions" if config.own_positions else "position_gap"
    name = type(model).__name__
    reason = families.why_no_positions(model)
    if reason is not None:
        raise ValueError(f"`{part}`: {name} {reason}; use own_positions=False and position_gap=0")
    text = model.config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if isinstance(longest, int) and config.position_gap >= longest:
        raise ValueError(
            f"`position_gap`: expected less than the {longest} positions that {name} has, got {config.position_gap}"
        )
    if config.own_positions:
        changing = families.rope_types(model) & {"dynamic", "longrope"}
        if changing:
            raise ValueError(
                f"`own_positions`: the rotary positions of {name} ({', '.join(sorted(changing))}) depend on the length "
                "of the whole sequence, so that other text would still change where privileged tokens stand; use "
                "own_positions=False"
            )
