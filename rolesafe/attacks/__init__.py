"""Attacks on role separation, all behind one signature.

``attack(model, tokenizer, conversations, goal, AttackConfig(name=...)) -> AttackResult``. Roles come from the messages
and are passed to a role-aware model: an attack without them would be an attack on another model. An attack either
builds its messages or searches for them with the model; what it found is judged by a greedy reply in both cases.
"""

from rolesafe.attacks.family import AttackFamily
from rolesafe.attacks.forging import ForgingRecord, forge
from rolesafe.attacks.judge import contains, same
from rolesafe.attacks.progress import progress_bar
from rolesafe.attacks.rates import Rate, wilson_interval
from rolesafe.attacks.registry import ATTACKS, TEXT_ATTACKS, AttackConfig, suite
from rolesafe.attacks.replies import replies
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.attacks.run import attack, attackable, attacked, transfer
from rolesafe.attacks.search import Found, Search

__all__ = [
    "ATTACKS",
    "TEXT_ATTACKS",
    "AttackConfig",
    "AttackFamily",
    "AttackResult",
    "ForgingRecord",
    "Found",
    "Outcome",
    "Rate",
    "Search",
    "attack",
    "attackable",
    "attacked",
    "contains",
    "forge",
    "progress_bar",
    "replies",
    "same",
    "suite",
    "transfer",
    "wilson_interval",
]
