"""The mechanisms that are compared, and which of them need a training of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.config import RoleConfig

Kind = Literal["plain", "published", "steering", "part", "combination"]


@dataclass(frozen=True)
class Arm:
    """One mechanism in the comparison.

    Attributes:
        name: As the report calls it.
        kind: What it is to the reader; "steering" needs no training and stands on the trained plain model.
        config: What is patched in; None for the plain model.
    """

    name: str
    kind: Kind
    config: RoleConfig | None


def _preset(name: str, kind: Kind, **changes: object) -> Arm:
    return Arm(name, kind, RoleConfig.preset(name, **changes))  # type: ignore[arg-type]


def _dedicated(share: float) -> Arm:
    return Arm(f"dedicated-{share:.0%}".rstrip("%"), "part", RoleConfig.preset("dedicated", dedicated_heads=share))


PLAIN = Arm("plain", "plain", None)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        PLAIN,
        # what the papers start from: role vectors are drawn, not zero
        _preset("ise", "published", embedding_std=0.01),
        _preset("air", "published", embedding_std=0.02),
        _preset("aside", "published"),
        # all arms are trained with jumps of up to 640 positions: the paper's gap of 512 would be lost among them
        _preset("pft", "published", position_gap=1024),
        _preset("drip", "published"),
        # the factors of the papers, which the presets weaken for models that have to speak
        _preset("instaboost", "steering", boost=9.0),
        _preset("pasta", "steering", dampen=0.01),
        _preset("spotlight", "steering"),
        _preset("embedding", "part"),
        _preset("bias", "part"),
        _preset("share", "part"),
        _preset("integrity", "part"),
        _dedicated(0.25),
        _dedicated(0.5),
        _dedicated(0.75),
        _preset("channel", "combination"),
        _preset("separate", "combination"),
        Arm("channel+aside", "combination", RoleConfig.preset("channel", rotation=RoleConfig.preset("aside").rotation)),
    )
}
"""The arms by name, in the order of the report."""

ON_TOP = ("separate", "channel+aside")
"""More on top of "channel"."""

USUAL_ARMS = tuple(name for name in ARMS if name not in ON_TOP)
"""The arms of the study where none are asked for: with more, two cores would need more than an hour."""

BASELINES = tuple(name for name, arm in ARMS.items() if arm.kind == "published")
"""The published mechanisms that the target compares with."""

SECOND_SIZE = ("plain", "air", "pft", "channel")
"""The arms of every size but the first, where no arms are asked for: the two best published ones of the first."""


def trained(name: str) -> str:
    """The arm whose weights `name` stands on: itself, or "plain" for what needs no training."""
    return PLAIN.name if ARMS[name].kind == "steering" else name
