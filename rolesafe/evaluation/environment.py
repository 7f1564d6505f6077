"""Versions, hardware and commit of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rolesafe.evaluation.records import Environment

_PACKAGES = ("torch", "transformers", "tokenizers")


def environment() -> Environment:
    """Return versions, hardware and, in a source checkout, the commit."""
    import rolesafe

    versions = [("python", platform.python_version()), ("rolesafe", rolesafe.__version__)]
    versions += [(name, found) for name in _PACKAGES if (found := _version(name)) is not None]
    return Environment(versions=tuple(versions), hardware=_hardware(), commit=checkout_commit())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    return (
        f"{platform.machine()} CPU, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}, {platform.system()}"
    )


def checkout_commit() -> str | None:
    """Return the commit hash of the checkout with this file; None for an installed package.

    The environment variable ROLESAFE_COMMIT overrides it, for copies of a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if said := os.environ.get("ROLESAFE_COMMIT"):
        return said
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
