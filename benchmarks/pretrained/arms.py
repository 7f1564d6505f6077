"""Arms of the comparison: one recipe for each, on the same base, data, steps and seeds.

Equal seeds give equal rows in equal order, apart from "clean SFT", which has no injected row. The published mechanisms
start with their published values and without annealing. Learning rates are starting values: tune each arm alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.pretrained.data import FILES
from rolesafe.retrain import RetrainConfig
from rolesafe.training.rates import DEFAULTS, SOME_ROLES

MODEL: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
TRAINING: Final = "alpaca_5000.json"
"""Training data, below the data folder."""
STEPS: Final = 120
BATCH: Final = 8
"""The default budget: 144,000 tokens at 150 a row. A core without bf16 units trains on 60 to 100 a second."""
RATE: Final = 1e-4
LENGTH: Final = 256
FLOOR: Final = 0.3
DEDICATED: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Arm of the comparison.

    Attributes:
        name: Name of its directory and on the command line.
        about: Description in one line.
        changes: Values of its recipe that differ from the common ones; None: the base model, untouched.
    """

    name: str
    about: str
    changes: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.name} SFT" if self.name in ("plain", "clean") else self.name

    def recipe(self, common: RetrainConfig) -> RetrainConfig | None:
        """Return the recipe of this arm; None for the untouched model."""
        if self.changes is None:
            return None
        return RetrainConfig.from_dict({**common.to_dict(), **self.changes})


_TABLES: Final = 1e-2
"""Learning rate of bias tables and shares: 120 Adam steps move a number by about 1 at most."""
_VECTORS: Final = 1e-3
_WEIGHTS: Final = 5e-4
"""Learning rate of whole projections: added heads, DRIP's shift."""


def _published(name: str, about: str, rate: float, **roles: Any) -> Arm:
    changes = {"preset": name, "role_config": roles, "role_learning_rate": rate, "anneal": 0.0}
    return Arm(name=name, about=about, changes=changes)


ARMS: Final[Mapping[str, Arm]] = {
    arm.name: arm
    for arm in (
        Arm(name="base", about="the model, untouched", changes=None),
        Arm(name="plain", about="supervised fine-tuning on all rows", changes={"preset": "plain"}),
        Arm(
            name="clean",
            about="supervised fine-tuning without injected and benign-instruction rows: no defence training",
            changes={"preset": "plain", "shares": {"clean": 0.8, "plain": 0.2}},
        ),
        Arm(
            name="bias",
            about="a bias per layer, head and pair of roles",
            changes={"preset": "bias", "role_learning_rate": 5 * _TABLES},
        ),
        Arm(
            name="vectors",
            about="a role vector before each layer, zero at the start",
            changes={"preset": "embedding", "role_learning_rate": _TABLES},
        ),
        Arm(
            name="pretrained",
            about="the preset: a vector of tool results before each layer, zero at the start; other roles have none",
            changes={"preset": "pretrained", "role_learning_rate": SOME_ROLES},
        ),
        Arm(
            name="combined",
            about="added heads, bias, and a role vector before each layer; all zero at the start",
            changes={
                "preset": "added",
                "role_config": {"bias": True, "embedding": "layers"},
                "role_learning_rate": {part: DEFAULTS[part] for part in ("added", "bias", "embedding")},
            },
        ),
        Arm(
            name="added",
            about="a quarter more heads, privileged keys only, zero at the start",
            changes={"preset": "added", "role_learning_rate": _WEIGHTS},
        ),
        Arm(
            name="share",
            about=f"bias, and a reserved share that rises from 0 to a floor of {FLOOR:g} over half of the steps",
            changes={
                "preset": "bias",
                "role_config": {"share": FLOOR, "share_floor": FLOOR},
                "role_learning_rate": _TABLES,
            },
        ),
        Arm(
            name="dedicated",
            about="bias, and a quarter of the heads dedicated, those that the base needs least, annealed",
            changes={
                "preset": "bias",
                "role_config": {"dedicated_heads": DEDICATED},
                "dedicated": "chosen",
                "role_learning_rate": _TABLES,
            },
        ),
        Arm(
            name="channel",
            about="half of the heads dedicated, a share of 0.5, role vectors, bias, integrity; annealed",
            changes={"preset": "channel", "role_learning_rate": _VECTORS},
        ),
        _published("ise", "a role vector at the input (ISE)", _VECTORS, embedding_std=0.01),
        _published("aside", "embeddings of data rotated by 90 degrees (ASIDE)", _VECTORS),
        _published("air", "a role vector before each layer and after the last (AIR)", _VECTORS, embedding_std=0.02),
        _published("pft", "positions of other tokens moved by 512 (PFT)", _VECTORS),
        _published("drip", "a learned shift of the embeddings of data (DRIP, its token-wise half)", _WEIGHTS),
    )
}
"""All arms by name, in the order of training."""


def common(
    data: Path,
    *,
    model: str = MODEL,
    training: str | None = None,
    steps: int = STEPS,
    batch_size: int = BATCH,
    seed: int = 0,
    **changes: Any,
) -> RetrainConfig:
    """Return the recipe that all arms share, that of plain training.

    Args:
        data: Folder with the test sets, whose rows are not trained on, and with the training data.
        model: Base model.
        training: Training data; default: :data:`TRAINING` in `data`.
        steps: Optimizer steps.
        batch_size: Rows of a step.
        seed: Training seed.
        **changes: Other values of the recipe.

    Raises:
        ValueError: A value is out of range, or `data` has no test set.
    """
    held_out = sorted({str(data / file) for file in FILES.values() if Path(file).suffix != ".txt"})
    if missing := [path for path in held_out if not Path(path).is_file()]:
        raise ValueError(f"`data`: expected a folder with the test sets, got {str(data)!r} without {missing[0]!r}.")
    values: dict[str, Any] = {
        "model": model,
        "data": training or str(data / TRAINING),
        "preset": "plain",
        "held_out": held_out,
        "rows": steps * batch_size,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": RATE,
        "max_length": LENGTH,
        "bad_rows": "drop",
        "seed": seed,
        "save_steps": max(1, steps // 3),
        **changes,
    }
    return RetrainConfig(**values)
