"""What decides the rows of an evaluation. Rows of records with equal settings are comparable, pair by pair."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.pretrained.goals import DEFAULT, chosen
from rolesafe.arguments import is_integer

ROOT: Final = Path(__file__).parents[2]
DATA: Final = ROOT.parent / "shared" / "data"
"""Where the published sets are, unless `--data` says otherwise."""

CASES: Final = ("core", "all")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an evaluation.

    Args:
        limit: Most rows of each published set, drawn with the seed; default: all.
        seed: Draws rows, goals and phrasings. Give the same one for every model that is compared.
        cases: Injected texts: ``"core"``, or ``"all"`` methods at all places in both styles.
        tool: Put untrusted data into a tool turn instead of the user turn.
        goals: Names of the goals that injections ask for.
        dtype: Of the weights, one of :data:`DTYPES`.
        secrets: Secrets of the leak suite.
        ifeval_tokens: Longest IFEval reply, in tokens.
        adaptive: Examples of each adaptive attack.
        gcg_steps: Steps of GCG.
        gcg_width: Candidates of a GCG step.
        beams: Beams of BEAST, and branches of each.
        best_of: Variants of best-of-n.

    Raises:
        ValueError: A value is out of range.
    """

    limit: int | None = None
    seed: int = 0
    cases: str = "core"
    tool: bool = False
    goals: tuple[str, ...] = DEFAULT
    dtype: str = "auto"
    secrets: int = 200
    ifeval_tokens: int = 512
    adaptive: int = 8
    gcg_steps: int = 100
    gcg_width: int = 64
    beams: int = 8
    best_of: int = 64

    def __post_init__(self) -> None:
        if self.limit is not None and not is_integer(self.limit, 1):
            raise ValueError(f"`limit`: expected a number of rows >= 1, or none for all, got {self.limit!r}")
        for name in ("secrets", "ifeval_tokens", "adaptive", "gcg_steps", "gcg_width", "beams", "best_of"):
            if not is_integer(value := getattr(self, name), 1):
                raise ValueError(f"`{name}`: expected a whole number >= 1, got {value!r}")
        if not is_integer(self.seed, 0):
            raise ValueError(f"`seed`: expected a whole number >= 0, got {self.seed!r}")
        for name, known in (("cases", CASES), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"`{name}`: expected one of {known}, got {value!r}")
        object.__setattr__(self, "goals", tuple(self.goals))
        chosen(self.goals)

    def of(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return some of the settings as JSON values."""
        values = asdict(self)
        return {name: list(v) if isinstance(v := values[name], tuple) else v for name in names}
