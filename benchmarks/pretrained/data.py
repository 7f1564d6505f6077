"""Published test sets, read from a folder; see shared/data/README.md for sources and licences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from rolesafe.tasks import Example, load_set
from rolesafe.tasks.sets import read

T = TypeVar("T")

FILES = {
    "alpacafarm": "alpacafarm_davinci003.json",
    "sep": "sep_1000.json",
    "ifeval-user": "ifeval/ifeval_sep.jsonl",
    "ifeval-system": "ifeval/sys_ifeval.jsonl",
    "xstest": "xstest/xstest_prompts.csv",
    "wikitext": "wikitext2_valid.txt",
}
"""File of each set below the data folder."""


@dataclass(frozen=True)
class Task:
    """Row of AlpacaFarm.

    Attributes:
        source: Number of the row in its file, from 1.
        instruction: Trusted instruction.
        data: Untrusted data; empty where the row has no input.
        reference: Reference reply.
    """

    source: str
    instruction: str
    data: str
    reference: str


@dataclass(frozen=True)
class Constrained:
    """Row of IFEval.

    Attributes:
        source: Key of the row.
        prompt: Published prompt, an input of some checkers.
        instructions: Ids of the checkers.
        arguments: Arguments of each checker.
        messages: Conversation.
    """

    source: str
    prompt: str
    instructions: tuple[str, ...]
    arguments: tuple[dict[str, Any], ...]
    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Data:
    """Test sets in `folder`, each read on use.

    Attributes:
        folder: Folder with the files of :data:`FILES`.
        limit: Maximum number of rows of each set; None: all.
        seed: Seed of the drawn rows, which are the same for every model.
    """

    folder: Path
    limit: int | None = None
    seed: int = 0

    def path(self, name: str) -> Path:
        """Return the file of a set.

        Raises:
            ValueError: The file is missing.
        """
        path = self.folder / FILES[name]
        if not path.is_file():
            raise ValueError(
                f"`data`: expected a folder with {FILES[name]}, got {str(self.folder)!r}. Give the folder with --data, "
                "or leave out the suites that need this file."
            )
        return path

    def tasks(self, *, inputs: bool) -> list[Task]:
        """Return the rows of AlpacaFarm with an input, or those without."""
        rows = [
            Task(
                str(row.number),
                row.text("instruction_only", "instruction").strip(),
                row.text("input", empty=True).strip(),
                row.text("output", empty=True).strip(),
            )
            for row in read(self.path("alpacafarm"))
        ]
        return self._some("alpacafarm", [row for row in rows if bool(row.data) == inputs])

    def sep(self) -> list[tuple[str, Example, Example]]:
        """Return source, probe in the data, and probe in the instruction, for each row of SEP."""
        examples = load_set("sep", self.path("sep"))
        by_id = {example.id: example for example in examples}
        pairs = [(e.id.split("/")[-2], e, by_id[e.twin]) for e in examples if e.kind == "protected"]
        return self._some("sep", pairs)

    def ifeval(self, where: str) -> list[Constrained]:
        """Return the rows of IFEval with the constraints in the ``"user"`` or ``"system"`` turn."""
        rows = [
            Constrained(
                str(row.get("key")),
                row.text("prompt"),
                tuple(row.get("instruction_id_list")),
                tuple(dict(k) for k in row.get("kwargs")),
                tuple({"role": m["role"], "content": m["content"]} for m in row.messages()),
            )
            for row in read(self.path(f"ifeval-{where}"))
        ]
        return self._some("ifeval", rows, key=lambda row: row.source)

    def xstest(self) -> list[tuple[str, str]]:
        """Return id and prompt of XSTest's safe prompts."""
        rows = [
            (row.text("id"), row.text("prompt"))
            for row in read(self.path("xstest"))
            if row.text("label").strip() == "safe"
        ]
        if not rows:
            raise ValueError(
                f"`data`: expected prompts with the label 'safe' in {FILES['xstest']}, got none. Check that file."
            )
        return self._some("xstest", rows)

    def wikitext(self) -> str:
        """Return the validation text of WikiText-2."""
        return self.path("wikitext").read_text(encoding="utf-8")

    def _some(self, name: str, rows: Sequence[T], key: Callable[[T], Any] | None = None) -> list[T]:
        if not rows:
            raise ValueError(f"`data`: expected usable rows in {FILES.get(name, name)}, got none. Check that file.")
        if self.limit is None or self.limit >= len(rows):
            return list(rows)
        order = sorted(range(len(rows)), key=lambda i: key(rows[i])) if key else list(range(len(rows)))
        drawn = Random(f"{name}/{self.seed}").sample(order, self.limit)
        return [rows[i] for i in sorted(drawn)]
