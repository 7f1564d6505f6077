"""What the numbers depend on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import ROOT

MEASURED = (
    "kernels/rolesafe_kernels",
    "rolesafe/attention",
    "rolesafe/mechanisms",
    "rolesafe/patching",
    "benchmarks/throughput",
)
"""Sources whose change makes earlier numbers those of something else."""

NO_GPU = (
    "benchmarks.throughput needs an NVIDIA GPU of compute capability 8.0 or newer and a PyTorch built for CUDA; "
    "{found}.\n"
    "On a machine without one: python benchmarks/attention_cpu.py"
)


def why_no_gpu() -> str | None:
    """What stands against a run on this machine, with the way out; None if nothing does."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f"; this PyTorch ({torch.__version__}) is built without CUDA"
        return NO_GPU.format(found=f"no CUDA device was found{built}")
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return NO_GPU.format(found=f"{torch.cuda.get_device_name()} has {capability[0]}.{capability[1]}")
    return None


def environment(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Machine, versions, commit, launch table. `commit`: what to say instead of the checkout's."""
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or run("git", "rev-parse", "HEAD"),
        "uncommitted_changes": changes(),
        "sources": digest(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "transformers": version_of("transformers"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            **nvidia_smi(),
        }
    return found | {"launch": launches(device)}


def run(*command: str) -> str | None:
    """First line that a command prints in the repository; None where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def changes() -> bool | None:
    """Whether tracked files differ from the commit; None without a history."""
    if run("git", "rev-parse", "HEAD") is None:
        return None
    return run("git", "status", "--porcelain", "--", *MEASURED) is not None


def digest(root: Path = ROOT, folders: tuple[str, ...] = MEASURED) -> str:
    """Fingerprint of the measured sources: tells two states of one commit apart, and works without a history."""
    summary = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".json"):
                summary.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return summary.hexdigest()[:16]


def nvidia_smi() -> dict[str, str | None]:
    """Driver, clocks and power limit."""
    fields = {
        "driver": "driver_version",
        "sm_clock_max": "clocks.max.sm",
        "memory_clock_max": "clocks.max.mem",
        "power_limit": "power.limit",
        "temperature": "temperature.gpu",
    }
    line = run("nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader")
    values = [value.strip() for value in line.split(",")] if line else []
    if len(values) != len(fields):
        return dict.fromkeys(fields)
    return dict(zip(fields, values, strict=True))


def launches(device: torch.device) -> dict[str, Any]:
    """The launch table's entries that are used: rows, block, warps and stages of each kernel."""
    try:
        from rolesafe_kernels.launch import launch_of

        return {
            f"{str(dtype).removeprefix('torch.')}/{dim}": {
                kernel: list(tile) for kernel, tile in launch_of(device, dtype, dim)._asdict().items()
            }
            for dtype in (torch.bfloat16, torch.float16)
            for dim in (64, 128)
        }
    except (ImportError, LookupError, OSError) as error:
        return {"unavailable": f"{type(error).__name__}: {error}"}


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
