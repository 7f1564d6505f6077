"""Checks of the claims of "Token Democracy" (R. Young, 2025) on any causal language model, patched or not.

``audit(model, tokenizer) -> AuditReport``; on the command line ``rolesafe audit MODEL``. See docs/audit.md.
"""

from typing import Any

from rolesafe.audit.records import (
    SCHEMA_VERSION,
    AttentionMass,
    AuditReport,
    AuditSettings,
    CourtSweep,
    Dilution,
    MassLevel,
    Override,
    Position,
    SweepPoint,
    TokenEquality,
    Usefulness,
)
from rolesafe.audit.run import STAGES, audit
from rolesafe.evaluation.verdict import Measured, NotMeasured, Verdict

__all__ = [
    "SCHEMA_VERSION",
    "STAGES",
    "AttentionMass",
    "AuditReport",
    "AuditSettings",
    "CourtSweep",
    "Dilution",
    "MassLevel",
    "Measured",
    "NotMeasured",
    "Override",
    "Position",
    "SweepPoint",
    "TokenEquality",
    "Usefulness",
    "Verdict",
    "audit",
]


def __getattr__(name: str) -> Any:
    if name == "Change":
        raise ImportError("`Change`: removed. Use `Position.spread` and `Dilution.growth`.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
