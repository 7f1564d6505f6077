"""Sampled rollouts with fresh continuations from several depths, and their file.

Legend of shapes: N rollouts, K depths, T largest number of new tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rolesafe.files import read_versioned, read_whole, write_whole
from rolesafe.typed_json import from_values

SCHEMA_VERSION = 1
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BranchSettings:
    """Settings that two calls must share for one to continue the other.

    Attributes:
        prompts: Digest of the tokens and roles of all conversations.
        conversations: Number of conversations.
        samples: Rollouts per conversation.
        max_new_tokens: T.
        depths: Depths, increasing.
        tokens: Recovery tokens; empty: recovery is not measured.
        seed: Seed.
        harm: Name of the harm function.
    """

    prompts: str
    conversations: int
    samples: int
    max_new_tokens: int
    depths: tuple[int, ...]
    tokens: tuple[int, ...]
    seed: int
    harm: str

    @property
    def rows(self) -> int:
        """Number of rollouts of a complete measurement."""
        return self.conversations * self.samples


@dataclass(frozen=True, kw_only=True)
class BranchRow:
    """One rollout and its continuations.

    Attributes:
        conversation: Index of the conversation.
        ids: Tokens of the rollout, with the token that ended it.
        branches: For each depth k the tokens after the first k of the rollout; those of the rollout itself where it
            ended within k tokens.
        recovery: Recovery probability after 0, 1, .. tokens of the rollout; empty if not measured.
        harm: Harm of the rollout; None before it is judged.
        branch_harm: Harm of each continued reply; empty before it is judged.
    """

    conversation: int
    ids: Ids
    branches: tuple[Ids, ...]
    recovery: tuple[float, ...] = ()
    harm: float | None = None
    branch_harm: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Branches:
    """Harm of rollouts and of a fresh continuation from each depth of each rollout.

    Estimators: :func:`rolesafe.depth.information`, :func:`rolesafe.depth.tail`, :func:`rolesafe.depth.horizon`,
    :func:`rolesafe.depth.recovery_by_depth`.

    Attributes:
        depths: K numbers of tokens, increasing.
        harm: (N,) harm of the rollouts, in [0, 1].
        branched: (N, K) harm of the replies that share the first ``depths[k]`` tokens with the rollout and are drawn
            anew after them.
        recovery: (N, T) recovery probability after 0..T-1 tokens of each rollout, NaN after its end; or None.
        settings: Settings of :func:`rolesafe.depth.sample_branches`; None for other sources.
        rows: Tokens of :func:`rolesafe.depth.sample_branches`, also of rollouts that are not judged yet.
    """

    depths: tuple[int, ...]
    harm: Tensor
    branched: Tensor
    recovery: Tensor | None = None
    settings: BranchSettings | None = None
    rows: tuple[BranchRow, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 0:
            raise ValueError(f"`depths`: expected increasing numbers >= 0, got {self.depths}.")
        if self.harm.ndim != 1 or tuple(self.branched.shape) != (len(self.harm), len(self.depths)):
            raise ValueError(
                f"`branched`: expected shape (N, {len(self.depths)}) with N of `harm` (N,), got "
                f"{tuple(self.branched.shape)} and {tuple(self.harm.shape)}."
            )
        for name, values in (("harm", self.harm), ("branched", self.branched)):
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"`{name}`: expected values in [0, 1], got others. Rescale the harm function.")

    @property
    def n(self) -> int:
        """Number of judged rollouts."""
        return len(self.harm)

    @property
    def complete(self) -> bool:
        """True if all rollouts of the settings are judged."""
        return self.settings is None or self.n == self.settings.rows

    @property
    def binary(self) -> bool:
        """True if all harm is 0 or 1."""
        return all(bool(((v == 0) | (v == 1)).all()) for v in (self.harm, self.branched))

    @property
    def discord(self) -> Tensor:
        """Squared difference of the harm of a rollout and of each of its continuations, (N, K)."""
        return (self.harm.unsqueeze(1) - self.branched).square()

    @classmethod
    def of_rows(cls, settings: BranchSettings, rows: Sequence[BranchRow]) -> Branches:
        """Build the arrays from the rows that are judged."""
        judged = [row for row in rows if row.harm is not None]
        count, length = len(settings.depths), settings.max_new_tokens
        recovery = None
        if settings.tokens:
            recovery = torch.full((len(judged), length), torch.nan, dtype=torch.float64)
            for i, row in enumerate(judged):
                recovery[i, : len(row.recovery)] = torch.tensor(row.recovery, dtype=torch.float64)
        return cls(
            depths=settings.depths,
            harm=torch.tensor([row.harm for row in judged], dtype=torch.float64),
            branched=torch.tensor([row.branch_harm for row in judged], dtype=torch.float64).reshape(-1, count),
            recovery=recovery,
            settings=settings,
            rows=tuple(rows),
        )


def save_branches(branches: Branches, path: str | os.PathLike[str]) -> Path:
    """Write the result of :func:`rolesafe.depth.sample_branches`, complete or not, as JSON.

    Raises:
        ValueError: It was made from arrays alone.
        OSError: It cannot be written.
    """
    if branches.settings is None:
        raise ValueError("`branches`: expected the result of sample_branches, got arrays without tokens.")
    content = {
        "schema_version": SCHEMA_VERSION,
        "settings": asdict(branches.settings),
        "rows": [asdict(row) for row in branches.rows],
    }
    return write_whole(path, json.dumps(content) + "\n")


def load_branches(path: str | os.PathLike[str]) -> Branches:
    """Return what :func:`save_branches` wrote.

    Raises:
        ValueError: It is another file.
        OSError: It cannot be read.
    """
    values = read_versioned(read_whole(path), SCHEMA_VERSION, "sampled branches")
    file = from_values(_File, values, os.fspath(path))
    return Branches.of_rows(file.settings, file.rows)


@dataclass(frozen=True)
class _File:
    settings: BranchSettings
    rows: tuple[BranchRow, ...]


def judged(row: BranchRow, harm: float, branch_harm: Sequence[float]) -> BranchRow:
    """Return `row` with its harm."""
    return replace(row, harm=harm, branch_harm=tuple(branch_harm))


def difference(one: BranchSettings, other: BranchSettings) -> str | None:
    """Return the first setting that differs, in words; None if all are equal."""
    ours, theirs = asdict(one), asdict(other)
    for name, value in ours.items():
        if theirs[name] != value:
            return f"{name} {value!r:.60} instead of {theirs[name]!r:.60}"
    return None
