"""Everything that decides the outcome of the study."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from benchmarks.override_resistance.arms import ARMS, SECOND_SIZE, USUAL_ARMS
from rolesafe.tasks import FAMILIES, Difficulty
from rolesafe.training import FitSettings


@dataclass(frozen=True)
class Size:
    """A llama to train, and how.

    Attributes:
        fit: How it is trained.
        hidden, layers, heads, head_dim: Its shape, where it is trained from nothing.
        text_share: Share of ordinary text, `Study.text`, among the training rows. With it the tokenizer is made of
            pieces of words (BPE), as a large model's is; without it, of the words of the tasks.
        annealed: Share of the steps over which a role layer comes in, for a checkpoint that was trained without.
    """

    fit: FitSettings
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    head_dim: int = 16
    text_share: float = 0.0
    annealed: float = 0.0


def _fit(steps: int, learning_rate: float, **more: Any) -> FitSettings:
    return FitSettings(
        steps=steps,
        learning_rate=learning_rate,
        role_learning_rate=learning_rate,
        **{"position_gap": 640, "group_by_length": True, **more},
    )


PRETRAINED = "pretrained"
"""The size of a checkpoint that was trained already, `Study.base`."""

SIZES: dict[str, Size] = {
    "0.1M": Size(_fit(1200, 3e-3)),
    "0.4M": Size(_fit(1000, 3e-3), hidden=96, heads=6),
    "30M": Size(
        _fit(2500, 1e-3, batch_size=64, mixed_precision=True),
        hidden=512,
        layers=8,
        heads=8,
        head_dim=64,
        text_share=0.5,
    ),
    PRETRAINED: Size(_fit(900, 2e-3, max_length=400, checkpoints=5), annealed=0.5),
}
"""Models by label: millions of parameters without embeddings, roughly. The first two are for a CPU, "30M" for a GPU."""


SEARCHES: dict[str, dict[str, Any]] = {
    "gcg": {"objective": "ce", "carrier": "request", "topk": 32},
    "gcg-attention": {"objective": "attention", "carrier": "injection", "topk": 32},
    # a tiny model expects next to nothing of what users write: at temperature 1 all beams are the same
    "beam": {"carrier": "injection", "beams": 8, "branches": 40, "temperature": 4.0},
    "prefill": {"k": 8},
    "best-of-n": {"n": 64, "augment": "words"},
    "worst-insertion": {"words": 35},
    "soft-prompt": {"carrier": "injection"},
    "gcg-injection": {"objective": "ce", "carrier": "injection", "topk": 32},
    "gcg-mellowmax": {"objective": "mellowmax", "carrier": "injection", "topk": 32},
    "gcg-role-shift": {"objective": "role-shift", "carrier": "injection", "topk": 32},
    "gcg-prefix": {"objective": "ce", "carrier": "injection", "topk": 32, "place": "prefix"},
    "gcg-long": {"objective": "ce", "carrier": "injection", "topk": 32, "length": 48},
}
"""The searches by name, and how they differ from the attack of the name's first part. The objectives "attention" and
"role-shift" know the defence; the carrier "injection" states the contrary rule in front of what is searched for."""

USUAL = ("gcg", "gcg-attention", "beam", "best-of-n", "worst-insertion", "prefill", "soft-prompt")
"""The searches of the study; the other variants of GCG are there to be asked for."""


PLACES = ("first", "last")
"""Of the system text; in the middle it would need more messages than the examples have."""

PLANNED = ("sizes", "seeds", "arms", "candidate")
"""More of these, or another candidate, are more records of the same study, or the same seen differently."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run.

    Args:
        sizes: Labels out of :data:`SIZES`. Where no arms are asked for the first gets the usual ones, the others some.
        seeds: Every arm is trained once for each.
        arms: Names out of :data:`benchmarks.override_resistance.arms.ARMS`; what needs no training stands on
            the plain model.
        families: Task families.
        training: Dials of the training conversations; each is drawn up to its value.
        triggers: Share of training conversations with the words of attacks in harmless sentences.
        noise: Share of training conversations with random words in the attacker's message, up to 24 of them.
        examples: Test examples of each seed, half of them protected (those are attacked).
        place: Where the system text of the test examples stands: ``"first"`` or ``"last"``.
        searched: The first so many protected examples are attacked by searches too (GCG, beam, ...).
        searches: Names of the searches, see :data:`SEARCHES`.
        gcg_steps, gcg_width: Budget of every gradient attack: steps, and candidates a step.
        candidate: The arm whose targets are checked.
        base: The checkpoint of the size "pretrained": a path or hub id.
        text: A file of ordinary text, for sizes that are trained on it too.
        quick: A few steps and examples of everything: shows that it works, and nothing else.
    """

    sizes: tuple[str, ...] = ("0.1M", "0.4M")
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = USUAL_ARMS
    families: tuple[str, ...] = ("access", "form", "data")
    training: Difficulty = field(default_factory=lambda: Difficulty(place="any"))
    triggers: float = 0.1
    noise: float = 0.3
    examples: int = 120
    place: str = "first"
    searched: int = 3
    searches: tuple[str, ...] = USUAL
    gcg_steps: int = 100
    gcg_width: int = 64
    candidate: str = "channel"
    base: str | None = None
    text: str | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"`place`: expected one of {PLACES}, got {self.place!r}")
        if self.candidate not in ARMS:
            raise ValueError(f"`candidate`: unknown {self.candidate!r}; expected one of {tuple(ARMS)}")
        for name, known in (("sizes", SIZES), ("arms", ARMS), ("families", FAMILIES), ("searches", SEARCHES)):
            chosen = getattr(self, name)
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"`{name}`: expected distinct names, at least one, got {chosen}")
            for value in chosen:
                if value not in known:
                    raise ValueError(f"`{name}`: unknown {value!r}; expected some of {tuple(known)}")
        if (self.base is not None) != (PRETRAINED in self.sizes):
            raise ValueError(
                f"`base`: expected a checkpoint for the size {PRETRAINED!r} and for no other, got {self.base!r} with "
                f"sizes {self.sizes}"
            )
        mixed = [size for size in self.sizes if SIZES[size].text_share]
        if (self.text is not None) != bool(mixed):
            raise ValueError(
                f"`text`: expected a file of ordinary text for sizes that are trained on it and for no other, got "
                f"{self.text!r} with sizes {self.sizes}, of which {mixed} are"
            )
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
            if size == self.sizes[0] or arm in SECOND_SIZE or self.arms != USUAL_ARMS
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
        for name in ("base", "text"):
            if (path := getattr(self, name)) is not None:
                words += [f"--{name}", PurePath(path).name]
        for name, option in (("sizes", "size"), ("arms", "arm"), ("searches", "search")):
            if getattr(self, name) != getattr(default, name):
                words += [word for value in getattr(self, name) for word in (f"--{option}", value)]
        if self.seeds != default.seeds:
            words += ["--seeds", str(len(self.seeds)), *(["--first-seed", str(self.seeds[0])] if self.seeds[0] else [])]
        for name in ("searched", "examples", "place", "gcg_steps", "gcg_width", "candidate"):
            if getattr(self, name) != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        return shlex.join([*words, *(["--quick"] if self.quick else []), "--out", "DIR"])

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all that two records must have in common to stand in one table."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in PLANNED}
        names = {k: None if values[k] is None else PurePath(values[k]).name for k in ("base", "text")}
        return {**values, **names, "models": {size: asdict(model) for size, model in SIZES.items()}}

    def training_of(self, size: str) -> dict[str, Any]:
        """JSON values of all that a trained model of this size comes from, but for its arm and seed."""
        names = ("families", "training", "triggers", "noise", "base", "text", "quick")
        values = json.loads(json.dumps(self.to_dict()))
        return {**{name: values[name] for name in names}, "model": values["models"][size]}
