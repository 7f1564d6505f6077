"""Report of how many tokens deep the alignment of a model goes.

``depth_report(model, tokenizer) -> DepthReport``; on the command line ``rolesafe depth MODEL``. See docs/depth.md.
"""

from rolesafe.depth_report.records import (
    SCHEMA_VERSION,
    DepthReport,
    DepthSettings,
    Divergence,
    Forced,
    Point,
    Rollouts,
    ShortestPrefix,
    Sweep,
)
from rolesafe.depth_report.run import STAGES, depth_report

__all__ = [
    "SCHEMA_VERSION",
    "STAGES",
    "DepthReport",
    "DepthSettings",
    "Divergence",
    "Forced",
    "Point",
    "Rollouts",
    "ShortestPrefix",
    "Sweep",
    "depth_report",
]
