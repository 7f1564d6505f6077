"""Files about the project: CI matrix, citation, issue forms, links of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_matrix_has_every_supported_version() -> None:
    setup = read("setup.py")
    matrix = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", setup)
    (oldest,) = [one["oldest"] for one in matrix["include"] if "oldest" in one]
    for name, version in (pair.split("==") for pair in oldest.split()):
        assert f'"{name}>={version.removesuffix(".0")}"' in setup


def test_ci_runs_the_targets_of_the_makefile() -> None:
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"].values()
    runs = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    used = set(re.findall(r"\bmake ([\w.-]+)$", "\n".join(runs), re.M))
    assert used == {"lint", "test", "docs"}
    assert all(re.search(rf"^{target}:", read("Makefile"), re.M) for target in used)


def test_citation_has_required_keys() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] in read("setup.py")
    assert "version" not in citation  # it would be written twice


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_forms_are_valid(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        return
    assert form.keys() == {"name", "description", "body"}
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert ids
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("url, code", [("https://example.org/r/", 0), ("", 0), ("http://example.org", 1)])
def test_package_links_follow_the_repository(tmp_path: Path, url: str, code: int) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    environment = {**os.environ, "ROLESAFE_URL": url}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == code, done.stderr[-2000:]
    if code:
        assert "ROLESAFE_URL: expected an https address, got 'http://example.org'" in done.stderr
        return
    about = message_from_string((tmp_path / "rolesafe.egg-info" / "PKG-INFO").read_text(encoding="utf-8"))
    links = dict(link.split(", ") for link in about.get_all("Project-URL", []))
    assert links.get("Source") == ("https://example.org/r" if url else None)
    assert ("Security" in links) == bool(url)
