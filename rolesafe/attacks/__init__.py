"""Attacks on role separation: ``attack(model, tokenizer, examples, GCGConfig(num_steps=250)) -> AttackResult``.

Each attack has one configuration class, see :data:`ATTACKS`. Roles come from the messages and are passed to a
role-aware model. An attack either builds its messages or searches for them with the model; in both cases they are
judged by a greedy reply.
"""

from typing import Any

from rolesafe.attacks.best_of_n import BestOfNConfig
from rolesafe.attacks.config import AttackConfig, SearchAttackConfig, TextAttackConfig
from rolesafe.attacks.consistency import Consistency, consistency
from rolesafe.attacks.depth import (
    BannedDecodingConfig,
    PrefillDepthConfig,
    SpanInsertionConfig,
    WorstSpanInsertionConfig,
)
from rolesafe.attacks.encodings import EncodedConfig
from rolesafe.attacks.forcing import Continuation, ForcedPrompt
from rolesafe.attacks.forging import ForgingRecord, RoleForgingConfig, forge
from rolesafe.attacks.gradient import BeastConfig, GCGConfig, SoftPromptConfig
from rolesafe.attacks.judge import contains, same
from rolesafe.attacks.mimicry import FakeSystemConfig, MimicryConfig, NearDelimitersConfig, NoAttackConfig
from rolesafe.attacks.placement import DilutionConfig, FillerConfig, InsertionConfig, PlacementConfig, PositionConfig
from rolesafe.attacks.progress import progress_bar
from rolesafe.attacks.rates import Rate, wilson_interval
from rolesafe.attacks.redirection import (
    CombinedConfig,
    EscapeCharactersConfig,
    FakeCompletionConfig,
    IgnoreGeneralConfig,
    IgnorePreviousConfig,
    PersonaConfig,
)
from rolesafe.attacks.registry import ATTACKS, TEXT_ATTACKS, suite
from rolesafe.attacks.replies import replies
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.attacks.run import attack, attackable, attacked, transfer
from rolesafe.attacks.search import Found, SearchContext
from rolesafe.attacks.trajectory import PrefillConfig, WorstInsertionConfig

__all__ = [
    "ATTACKS",
    "TEXT_ATTACKS",
    "AttackConfig",
    "AttackResult",
    "BannedDecodingConfig",
    "BeastConfig",
    "BestOfNConfig",
    "CombinedConfig",
    "Consistency",
    "Continuation",
    "DilutionConfig",
    "EncodedConfig",
    "EscapeCharactersConfig",
    "FakeCompletionConfig",
    "FakeSystemConfig",
    "FillerConfig",
    "ForcedPrompt",
    "ForgingRecord",
    "Found",
    "GCGConfig",
    "IgnoreGeneralConfig",
    "IgnorePreviousConfig",
    "InsertionConfig",
    "MimicryConfig",
    "NearDelimitersConfig",
    "NoAttackConfig",
    "Outcome",
    "PersonaConfig",
    "PlacementConfig",
    "PositionConfig",
    "PrefillConfig",
    "PrefillDepthConfig",
    "Rate",
    "RoleForgingConfig",
    "SearchAttackConfig",
    "SearchContext",
    "SoftPromptConfig",
    "SpanInsertionConfig",
    "TextAttackConfig",
    "WorstInsertionConfig",
    "WorstSpanInsertionConfig",
    "attack",
    "attackable",
    "attacked",
    "consistency",
    "contains",
    "forge",
    "progress_bar",
    "replies",
    "same",
    "suite",
    "transfer",
    "wilson_interval",
]

_MOVED = {
    "AttackFamily": "TextAttackConfig or SearchAttackConfig, one subclass per attack",
    "Search": "SearchAttackConfig.search",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise ImportError(f"`rolesafe.attacks.{name}`: expected {_MOVED[name]}, got a name of an earlier version")
    raise AttributeError(f"module 'rolesafe.attacks' has no attribute {name!r}")
