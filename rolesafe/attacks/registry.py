"""All attacks by name, and the suites made of them."""

from __future__ import annotations

from collections.abc import Sequence

from rolesafe.attacks.best_of_n import BestOfNConfig
from rolesafe.attacks.config import AttackConfig, TextAttackConfig, look_up
from rolesafe.attacks.depth import (
    BannedDecodingConfig,
    PrefillDepthConfig,
    SpanInsertionConfig,
    WorstSpanInsertionConfig,
)
from rolesafe.attacks.encodings import EncodedConfig
from rolesafe.attacks.forging import RoleForgingConfig
from rolesafe.attacks.gradient import BeastConfig, GCGConfig, SoftPromptConfig
from rolesafe.attacks.mimicry import FakeSystemConfig, MimicryConfig, NearDelimitersConfig, NoAttackConfig
from rolesafe.attacks.placement import DilutionConfig, FillerConfig, InsertionConfig, PlacementConfig, PositionConfig
from rolesafe.attacks.redirection import (
    CombinedConfig,
    EscapeCharactersConfig,
    FakeCompletionConfig,
    IgnoreGeneralConfig,
    IgnorePreviousConfig,
    PersonaConfig,
)
from rolesafe.attacks.trajectory import PrefillConfig, WorstInsertionConfig

_ALL: tuple[type[AttackConfig], ...] = (
    NoAttackConfig,
    # semantic redirection
    IgnorePreviousConfig,
    IgnoreGeneralConfig,
    PersonaConfig,
    FakeCompletionConfig,
    EscapeCharactersConfig,
    EncodedConfig,
    CombinedConfig,
    # mimicry
    MimicryConfig,
    FakeSystemConfig,
    NearDelimitersConfig,
    RoleForgingConfig,
    # dilution and position
    DilutionConfig,
    FillerConfig,
    PositionConfig,
    PlacementConfig,
    # trajectory
    InsertionConfig,
    WorstInsertionConfig,
    PrefillConfig,
    # inside the reply
    PrefillDepthConfig,
    SpanInsertionConfig,
    WorstSpanInsertionConfig,
    BannedDecodingConfig,
    # search and gradient
    BestOfNConfig,
    BeastConfig,
    GCGConfig,
    SoftPromptConfig,
)

ATTACKS: dict[str, type[AttackConfig]] = {kind.name: kind for kind in _ALL}
"""The configuration class of each attack, by the attack's name, in the order of reports."""

TEXT_ATTACKS: tuple[str, ...] = tuple(kind.name for kind in _ALL if issubclass(kind, TextAttackConfig))
"""Names of the attacks that need the model's replies only, one per example; includes ``"none"``."""


def suite(
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 16,
) -> list[AttackConfig]:
    """Return configurations of the attacks at all points of their grids.

    Args:
        names: Names in :data:`ATTACKS`; default: all, including gradient attacks. :data:`TEXT_ATTACKS` cost one reply
            per example. Include ``"none"`` as the baseline.
        quick: Use fewer points, and smaller budgets of the searches.
        seed: See :class:`AttackConfig`.
        batch_size: See :class:`AttackConfig`.
        max_new_tokens: See :class:`AttackConfig`.

    Raises:
        ValueError: `names` is empty, or holds an unknown name.

    >>> [config.label for config in suite(["dilution"], quick=True)]
    ['dilution(repeats=1)', 'dilution(repeats=8)', 'dilution(repeats=32)']
    """
    if isinstance(names, str) or (names is not None and not names):
        raise ValueError(f"`names`: expected a sequence of names out of {sorted(ATTACKS)}, or None, got {names!r}")
    return [
        kind(**point, seed=seed, batch_size=batch_size, max_new_tokens=max_new_tokens)
        for kind in map(look_up, ATTACKS if names is None else names)
        for point in (kind.quick if quick else kind.grid)
    ]
