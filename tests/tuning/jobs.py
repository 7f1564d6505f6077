"""What the processes of a `Crew` do in the tests."""

from __future__ import annotations

import os
import time


def work_on(job: str) -> str:
    """The job in capitals; or an error, a death, or no answer."""
    if job == "error":
        raise ValueError("no such tile")
    if job == "death":
        os._exit(7)
    if job == "hang":
        time.sleep(60)
    return job.upper()
