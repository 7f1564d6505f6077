"""The documentation site builds without a warning and loads nothing from another host."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "rolesafe", "rolesafe.roles", "rolesafe.attention", "rolesafe.mechanisms", "rolesafe.patching", "rolesafe.training",
    "rolesafe.tasks", "rolesafe.attacks", "rolesafe.depth", "rolesafe.court", "rolesafe.evaluation", "rolesafe.report",
    "rolesafe.audit", "rolesafe.depth_report", "rolesafe.demo", "rolesafe_kernels",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'rolesafe[docs]'")
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def test_site_loads_nothing_from_another_host(site: Path) -> None:
    loading = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]+", re.I)
    assert [hit for page in site.rglob("*.html") for hit in loading.findall(page.read_text(encoding="utf-8"))] == []
    styles = [page.read_text(encoding="utf-8") for page in site.rglob("*.css")]
    assert [hit for style in styles for hit in re.findall(r"url\([\"']?https?://[^)]+\)", style)] == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    missing = []
    for part in PARTS:
        page = site / "api" / f"{part.removeprefix('rolesafe.').replace('rolesafe_', '')}.html"
        shown = set(re.findall(r'id="(?:[\w.]*\.)?(\w+)"', page.read_text(encoding="utf-8")))
        missing += [f"{part}.{name}" for name in importlib.import_module(part).__all__ if name not in shown]
    assert missing == ["rolesafe.__version__"]


def test_pages_show_no_raw_markup(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r":(?:class|func|meth|mod|data):", text), page.name
        assert "--8&lt;--" not in text, page.name
        assert not re.search(r"<td[^>]*>(?:<!--|&lt;!--)", text), page.name
        assert not re.search(r"<p>\|", text), f"{page.name}: a table that is not drawn as one"
