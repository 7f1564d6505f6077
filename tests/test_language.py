"""Docstrings use the words of the field: few phrases from a list, and no question word at the start."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rolesafe", "kernels", "benchmarks")

PHRASES = re.compile(
    r"\b(what is|what was|what it|what a|what the|stands?|standing|beside|told|tells?|who|whom|whose|leapt|owed)\b",
    re.IGNORECASE,
)
OPENERS = re.compile(r"(What|Which|Whether)\b")
MOST = 1.0
"""Phrases per 1,000 words of docstrings."""


def docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the place and the text of every docstring in the Python files of `folder`."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_have_few_listed_phrases(folder: str) -> None:
    found = list(docstrings(ROOT / folder))
    words = sum(len(text.split()) for _, text in found)
    hits = [f"{place}: {match[0]}" for place, text in found for match in PHRASES.finditer(text)]
    assert 1000 * len(hits) < MOST * words, f"{len(hits)} phrases in {words} words:\n" + "\n".join(hits)


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_open_without_question_word(folder: str) -> None:
    wrong = [f"{place}: {text.splitlines()[0]}" for place, text in docstrings(ROOT / folder) if OPENERS.match(text)]
    assert not wrong, "\n".join(wrong)
