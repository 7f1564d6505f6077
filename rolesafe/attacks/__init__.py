"""Attacks on role separation, all behind one signature.

``attack(model, tokenizer, conversations, goal, AttackConfig(name=...)) -> AttackResult``. Roles come from the messages
and are passed to a role-aware model: an attack without them would be an attack on another model.
"""

from rolesafe.attacks.judge import contains, same
from rolesafe.attacks.rates import Rate, wilson_interval
from rolesafe.attacks.registry import ATTACKS, AttackConfig, AttackFamily, suite
from rolesafe.attacks.replies import replies
from rolesafe.attacks.result import AttackResult, Outcome
from rolesafe.attacks.run import attack, attackable, attacked

__all__ = [
    "ATTACKS",
    "AttackConfig",
    "AttackFamily",
    "AttackResult",
    "Outcome",
    "Rate",
    "attack",
    "attackable",
    "attacked",
    "contains",
    "replies",
    "same",
    "suite",
    "wilson_interval",
]
