"""Links, files, commands and messages that the documentation names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from rolesafe.attacks import ATTACKS
from rolesafe.patching.families import FAMILIES
from rolesafe.presets import PRESETS
from rolesafe.tasks import FAMILIES as RULES
from rolesafe.tasks import SETS

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "kernels/README.md", "benchmarks/README.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [*(ROOT / "rolesafe").rglob("*.py"), *(ROOT / "kernels" / "rolesafe_kernels").rglob("*.py")]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

_LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
_FILE = re.compile(r"(?<![\w/.])((?:rolesafe|kernels|tests|benchmarks|docs|examples)/[\w./*-]+\.(?:py|md|json|png))")
_MODULE = re.compile(r"python -m ((?:benchmarks|rolesafe|tools)[\w.]*)")
_NAME = re.compile(r"`(rolesafe(?:_kernels)?(?:\.\w+)+)[`(]")
_CODE = re.compile(r"^```.*?^```$", re.S | re.M)


def slug(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    return {slug(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}


@pages
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in (a or b for a, b in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        known = not anchor or target.parent.name == "api" or anchor in anchors(target)
        if not target.exists() or not known:
            broken.append(link)
    assert broken == []


@pages
def test_named_files_exist(page: Path) -> None:
    missing = {name for name in _FILE.findall(page.read_text(encoding="utf-8")) if not list(ROOT.glob(name))}
    assert missing == set()


@pages
def test_named_modules_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in _MODULE.findall(text):
        paths = [base / name.replace(".", "/") for base in (ROOT, ROOT / "kernels")]
        assert any(p.with_suffix(".py").exists() or (p / "__main__.py").exists() for p in paths), name
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"(?:`|^ {4})make ([\w-]+)", text, re.M)
    assert set(named) <= set(targets)


@pages
def test_named_api_exists(page: Path) -> None:
    missing = []
    for name in sorted(set(_NAME.findall(page.read_text(encoding="utf-8")))):
        parts = name.split(".")
        for size in range(len(parts), 0, -1):
            try:
                found = importlib.util.find_spec(".".join(parts[:size]))
            except ModuleNotFoundError:
                continue
            if found is not None:
                break
        value = importlib.import_module(".".join(parts[:size]))
        for part in parts[size:]:
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
    assert missing == []


def test_contributing_answers_name_definitions_in_their_files() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line.startswith("| Where "))
    answers = re.findall(r"`(\w+)` in\s+`([\w/]+\.py)`", text)
    assert {"encode", "enter_model", "RoleIndex", "role_attn_bwd_dq_kernel"} <= {name for name, _ in answers}
    for name, path in answers:
        assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", (ROOT / path).read_text(encoding="utf-8"), re.M), (
            name
        )


def messages() -> list[str]:
    """Return every string of the sources, placeholders of f-strings as an ellipsis."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_headings_are_messages_of_the_code() -> None:
    known = messages()
    headings = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(headings) >= 30
    unknown = []
    for heading in headings:
        pattern = re.compile(".*?".join(re.escape(part) for part in heading.split("…")), re.S)
        if not any(pattern.search(message) for message in known):
            unknown.append(heading)
    assert unknown == []


def test_attacks_families_sets_and_presets_are_documented() -> None:
    attacks = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    for name, family in ATTACKS.items():
        if name != "none":
            (row,) = [line for line in attacks.splitlines() if line.startswith(f"| `{name}` |")]
            assert family.about in row
            assert row.endswith(f"| {len(family.grid)} |")
    tasks = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert [name for name in (*RULES, *SETS) if f"`{name}`" not in tasks] == []
    mechanisms = (ROOT / "docs" / "mechanisms.md").read_text(encoding="utf-8").replace("\\*", "*")
    for name, preset in PRESETS.items():
        assert f"| `{name}` | {preset.parameters} | {'yes' if preset.trained else 'no'} |" in mechanisms


def test_counts_in_the_readme_are_those_of_the_code() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    assert f"{len(FAMILIES)} architectures tested" in readme
    assert f"{len(FAMILIES)} model types" in (ROOT / "docs" / "patch.md").read_text(encoding="utf-8")
    assert f"{len(ATTACKS) - 1} attacks" in readme
