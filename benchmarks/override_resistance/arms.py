"""Mechanisms of the study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rolesafe.config import RoleConfig

Kind = Literal["plain", "published", "steering", "part", "combination"]


@dataclass(frozen=True)
class Arm:
    """One mechanism in the comparison.

    Attributes:
        name: Name in the report.
        kind: Group; "steering" arms need no training and patch the trained plain model.
        config: Role configuration; None for the plain model.
    """

    name: str
    kind: Kind
    config: RoleConfig | None


def _preset(name: str, kind: Kind, **changes: object) -> Arm:
    return Arm(name, kind, RoleConfig.preset(name, **changes))


def _dedicated(share: float) -> Arm:
    return Arm(f"dedicated-{share:.0%}".rstrip("%"), "part", RoleConfig.preset("dedicated", dedicated_heads=share))


PLAIN = Arm("plain", "plain", None)

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        PLAIN,
        # the papers draw role vectors at random instead of starting from zero
        _preset("ise", "published", embedding_std=0.01),
        _preset("air", "published", embedding_std=0.02),
        _preset("aside", "published"),
        # all arms are trained with jumps of up to 640 positions, which would hide the paper's gap of 512
        _preset("pft", "published", position_gap=1024),
        _preset("drip", "published"),
        # the papers' factors; the presets are weaker, so that chat models keep their fluency
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
"""Arms by name, in the order of the report."""

ON_TOP = ("separate", "channel+aside")
"""Arms that add to "channel"."""

USUAL_ARMS = tuple(name for name in ARMS if name not in ON_TOP)
"""Default arms; more would need over an hour on two cores."""

BASELINES = tuple(name for name, arm in ARMS.items() if arm.kind == "published")
"""Published trained mechanisms, the reference of a target."""

SECOND_SIZE = ("plain", "air", "pft", "channel")
"""Default arms of all sizes except the first: the two best published ones of the first size."""


def trained(name: str) -> str:
    """Return the arm that provides the weights: "plain" for steering, `name` itself otherwise."""
    return PLAIN.name if ARMS[name].kind == "steering" else name
