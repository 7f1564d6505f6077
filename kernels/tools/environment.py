"""Facts that the numbers of a run depend on: machine, versions, commit, sources (the launch tables included)."""

from __future__ import annotations

import hashlib
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import triton

from rolesafe.evaluation.environment import checkout_commit
from rolesafe.evaluation.environment import environment as recorded
from tools import ROOT

MEASURED = (
    "kernels/rolesafe_kernels",
    "kernels/tools",
    "rolesafe/attention",
    "rolesafe/mechanisms",
    "rolesafe/patching",
    "benchmarks/throughput",
)
"""Sources: a change of any makes earlier numbers stale."""


def find_commit(given: str | None = None) -> str:
    """Return the commit to record: `given`, else ROLESAFE_COMMIT of the environment, else the one that is checked out.

    Raises:
        ValueError: None of them is there, as in a copy of a checkout without its history, or it is no hash.
    """
    found = given or checkout_commit()
    if found is None or not re.fullmatch("[0-9a-f]{7,64}", found):
        raise ValueError(
            f"`--commit`: expected the hash of the commit that is measured, got {found!r}. Pass "
            "`--commit $(git rev-parse HEAD)`, or set ROLESAFE_COMMIT to it."
        )
    return found


def uncommitted_changes() -> bool | None:
    """Return True where a measured source differs from the commit; None without a git checkout."""
    if not (ROOT / ".git").exists() or first_line_of("git", "rev-parse", "HEAD") is None:
        return None
    return first_line_of("git", "status", "--porcelain", "--", *MEASURED) is not None


def environment(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Return date, machine, versions and commit. `commit` replaces the one that is checked out."""
    about = recorded()
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or about.commit,
        "uncommitted_changes": uncommitted_changes(),
        "sources": digest(),
        **dict(about.versions),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    if device.type != "cuda":
        return found | {"gpu": about.hardware}
    properties = torch.cuda.get_device_properties(device)
    found |= {
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }
    return found | nvidia_smi() | gpu()


def gpu() -> dict[str, Any]:
    """Return the current CUDA device and the versions that timings hold for."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": nvidia_smi()["driver"],
        "triton": triton.__version__,
        "torch": torch.__version__,
    }


def first_line_of(*command: str) -> str | None:
    """Return the first line that a command prints in the repository; None where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def digest(root: Path = ROOT, folders: tuple[str, ...] = MEASURED) -> str:
    """Return the fingerprint of the measured sources, also of uncommitted ones and without a history."""
    summary = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".json"):
                summary.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return summary.hexdigest()[:16]


def nvidia_smi() -> dict[str, str | None]:
    """Return driver, clocks, power limit and temperature; None where they are unknown."""
    fields = {
        "driver": "driver_version",
        "sm_clock_max": "clocks.max.sm",
        "memory_clock_max": "clocks.max.mem",
        "power_limit": "power.limit",
        "temperature": "temperature.gpu",
    }
    line = first_line_of("nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader")
    values = [value.strip() for value in line.split(",")] if line else []
    if len(values) != len(fields):
        return dict.fromkeys(fields)
    return dict(zip(fields, values, strict=True))
