"""StageProgress of a report that is measured in stages, and its interruption."""

from __future__ import annotations

from collections.abc import Callable

StageProgress = Callable[[str, int, int], None]
"""Called with the stage, the number of finished steps and their total."""


class Interrupted(Exception):
    """Interruption by the user; finished measurements are in the report."""
