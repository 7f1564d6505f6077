"""Everything that decides the outcome of the study."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.override_resistance.arms import ARMS, SECOND_SIZE
from rolesafe.tasks import FAMILIES, Difficulty
from rolesafe.training import FitSettings


@dataclass(frozen=True)
class Size:
    """A llama to train from scratch, and how."""

    hidden: int
    layers: int
    heads: int
    fit: FitSettings


SIZES: dict[str, Size] = {
    "0.1M": Size(64, 3, 4, FitSettings(steps=1200, learning_rate=3e-3, role_learning_rate=3e-3, position_gap=640)),
    "0.5M": Size(96, 4, 6, FitSettings(steps=1200, learning_rate=2e-3, role_learning_rate=2e-3, position_gap=640)),
}
"""Model sizes by label (millions of parameters)."""


SEARCHES: dict[str, dict[str, Any]] = {
    "gcg": {"objective": "ce", "carrier": "injection"},
    "gcg-attention": {"objective": "attention", "carrier": "injection"},
    "beam": {"carrier": "injection"},
    "best-of-n": {"n": 64, "augment": "words"},
    "worst-insertion": {"words": 35},
    "soft-prompt": {"carrier": "injection"},
    "gcg-request": {"objective": "ce", "carrier": "request"},
    "gcg-mellowmax": {"objective": "mellowmax", "carrier": "injection"},
    "gcg-role-shift": {"objective": "role-shift", "carrier": "injection"},
}
"""The searches by name, and how they differ from the attack of the name's first part. The objectives "attention" and
"role-shift" know the defence; the carrier "injection" states the contrary rule in front of what is searched for."""

USUAL = tuple(SEARCHES)[:6]
"""The searches of the study; the other variants of GCG are there to be asked for."""


PLANNED = ("sizes", "seeds", "arms")
"""More of these are more records of the same study."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run.

    Args:
        sizes: Labels out of :data:`SIZES`; the first one gets all arms.
        seeds: Every arm is trained once for each.
        arms: Names out of :data:`benchmarks.override_resistance.arms.ARMS`; what needs no training stands on
            the plain model.
        families: Task families.
        training: Dials of the training conversations; each is drawn up to its value.
        triggers: Share of training conversations with the words of attacks in harmless sentences.
        noise: Share of training conversations with random words in the attacker's message, up to 24 of them.
        examples: Test examples of each seed, half of them protected (those are attacked).
        searched: The first so many protected examples are attacked by searches too (GCG, beam, ...).
        searches: Names of the searches, see :data:`SEARCHES`.
        gcg_steps, gcg_width: Budget of every gradient attack: steps, and candidates a step.
        candidate: The arm whose targets are checked.
        quick: A few steps and examples of everything: shows that it works, and nothing else.
    """

    sizes: tuple[str, ...] = tuple(SIZES)
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    families: tuple[str, ...] = ("access", "form", "data")
    training: Difficulty = field(default_factory=lambda: Difficulty(place="any"))
    triggers: float = 0.1
    noise: float = 0.3
    examples: int = 120
    searched: int = 8
    searches: tuple[str, ...] = USUAL
    gcg_steps: int = 100
    gcg_width: int = 128
    candidate: str = "channel"
    quick: bool = False

    def __post_init__(self) -> None:
        for name, known in (("sizes", SIZES), ("arms", ARMS), ("families", FAMILIES), ("searches", SEARCHES)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"`{name}`: expected distinct names, at least one, got {chosen}")
            for value in chosen:
                if value not in known:
                    raise ValueError(f"`{name}`: unknown {value!r}; expected some of {tuple(known)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds`: expected distinct seeds, at least one, got {self.seeds}")
        for name in ("noise", "triggers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}`: expected a share in [0, 1], got {getattr(self, name)}")
        if self.examples < 2 * len(self.families) or self.examples % 2:
            raise ValueError(f"`examples`: expected an even number >= {2 * len(self.families)}, got {self.examples}")
        for name in ("gcg_steps", "gcg_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected a number >= 1, got {getattr(self, name)}")
        if not 0 <= self.searched <= self.examples // 2:
            raise ValueError(f"`searched`: expected 0 to {self.examples // 2}, got {self.searched}")

    @property
    def jobs(self) -> tuple[tuple[str, str, int], ...]:
        """Size, arm and seed of every record, the plain models first: what needs no training stands on them."""
        return tuple(
            (size, arm, seed)
            for arm in self.arms
            for size in self.sizes
            if size == self.sizes[0] or arm in SECOND_SIZE
            for seed in self.seeds
        )

    def fit(self, size: str) -> FitSettings:
        """How models of this size are trained."""
        how = SIZES[size].fit
        return FitSettings(**{**how.to_dict(), "steps": 20}) if self.quick else how

    @property
    def command(self) -> str:
        """The command line of these settings."""
        default = Study()
        words = ["python", "-m", "benchmarks.override_resistance"]
        for name, option in (("sizes", "size"), ("arms", "arm"), ("searches", "search")):
            if getattr(self, name) != getattr(default, name):
                words += [word for value in getattr(self, name) for word in (f"--{option}", value)]
        if self.seeds != default.seeds:
            words += ["--seeds", str(len(self.seeds))]
        for name in ("searched", "examples", "gcg_steps", "gcg_width"):
            if getattr(self, name) != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        return shlex.join([*words, *(["--quick"] if self.quick else []), "--out", "DIR"])

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all that two records must have in common to stand in one table."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in PLANNED}
        return {**values, "models": {size: asdict(model) for size, model in SIZES.items()}}
