"""Settings of an evaluation, which determine its rows. Records with equal settings are comparable, pair by pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from benchmarks.pretrained.goals import DEFAULT, chosen
from rolesafe.arguments import is_integer
from rolesafe.audit.load import Dtype

ROOT: Final = Path(__file__).parents[2]
DATA: Final = ROOT.parent / "shared" / "data"
"""Default folder of the published sets."""

CASES: Final = ("core", "all")
DTYPES: Final = get_args(Dtype)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an evaluation.

    Args:
        limit: Maximum number of rows of each published set, drawn with the seed; default: all.
        seed: Seed of rows, goals and phrasings. A comparison of models requires the same one.
        cases: Injected texts: ``"core"``, or ``"all"`` methods at all places in both styles.
        tool: True to put untrusted data into a tool turn instead of the user turn.
        goals: Names of the goals of injections.
        dtype: Dtype of the weights, one of :data:`DTYPES`.
        secrets: Number of secrets of the leak suite.
        ifeval_tokens: Maximum length of an IFEval reply in tokens.
        adaptive: Number of examples of each adaptive attack.
        gcg_steps: Number of GCG steps.
        gcg_width: Number of candidates of a GCG step.
        beams: Number of BEAST beams, and of branches of each.
        best_of: Number of variants of best-of-n.

    Raises:
        ValueError: A value is out of range.
    """

    limit: int | None = None
    seed: int = 0
    cases: str = "core"
    tool: bool = False
    goals: tuple[str, ...] = DEFAULT
    dtype: Dtype = "auto"
    secrets: int = 200
    ifeval_tokens: int = 512
    adaptive: int = 8
    gcg_steps: int = 100
    gcg_width: int = 64
    beams: int = 8
    best_of: int = 64

    def __post_init__(self) -> None:
        if self.limit is not None and not is_integer(self.limit, 1):
            raise ValueError(
                f"`limit`: expected a number of rows >= 1, or None for all, got {self.limit!r}. Correct it."
            )
        for name in ("secrets", "ifeval_tokens", "adaptive", "gcg_steps", "gcg_width", "beams", "best_of"):
            if not is_integer(value := getattr(self, name), 1):
                raise ValueError(f"`{name}`: expected a whole number >= 1, got {value!r}. Correct it.")
        if not is_integer(self.seed, 0):
            raise ValueError(f"`seed`: expected a whole number >= 0, got {self.seed!r}. Correct it.")
        for name, known in (("cases", CASES), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"`{name}`: expected one of {known}, got {value!r}. Choose one.")
        object.__setattr__(self, "goals", tuple(self.goals))
        chosen(self.goals)

    def of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return some of the settings as JSON values."""
        values = asdict(self)
        return {name: list(v) if isinstance(v := values[name], tuple) else v for name in names}
