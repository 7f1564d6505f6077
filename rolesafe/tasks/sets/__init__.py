"""Loaders of published sets, in the formats they are published in, as :class:`rolesafe.tasks.Example`.

Each module describes one kind of set: what fields it reads, what the examples are, what counts as a success.

========================  ===================================================================  ======================
name                      what                                                                 module
========================  ===================================================================  ======================
sep                       a probe in the data or in the instruction                            :mod:`.sep`
alpacafarm-naive          an order in the data, alone                                          :mod:`.alpacafarm`
alpacafarm-ignore         the same after "ignore the rules above"
alpacafarm-completion     the same after a forged reply
tensortrust-hijacking     players make a guard say "Access Granted"                            :mod:`.extraction`
tensortrust-extraction    players get the access code
gandalf                   players get a password
rules                     rules that a program checks (RuLES)                                  :mod:`.rules`
advbench, harmbench       requests for harm                                                    :mod:`.harmful`
agentdojo                 orders in tool output                                                :mod:`.agentdojo`
========================  ===================================================================  ======================

Where a set has no right reply, `Example.reply` is empty, and :func:`rolesafe.evaluation.utility` says nothing: it
compares replies word by word. Policies are the system text and the injected order, see :mod:`.assemble`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from rolesafe.tasks.example import Example
from rolesafe.tasks.sets.agentdojo import agentdojo
from rolesafe.tasks.sets.alpacafarm import alpacafarm
from rolesafe.tasks.sets.extraction import gandalf, tensortrust
from rolesafe.tasks.sets.harmful import advbench, harmbench
from rolesafe.tasks.sets.read import Row, RowError, read
from rolesafe.tasks.sets.rules import rules
from rolesafe.tasks.sets.sep import sep

_READERS: Final[dict[str, Callable[[Row, str, int], list[Example]]]] = {
    "sep": sep,
    "alpacafarm-naive": alpacafarm,
    "alpacafarm-ignore": alpacafarm,
    "alpacafarm-completion": alpacafarm,
    "tensortrust-hijacking": tensortrust,
    "tensortrust-extraction": tensortrust,
    "gandalf": gandalf,
    "rules": rules,
    "advbench": advbench,
    "harmbench": harmbench,
    "agentdojo": agentdojo,
}

SETS: Final = tuple(_READERS)
"""The names of the sets."""


def load_set(
    name: str, path_or_hub: str | Path, n: int | None = None, seed: int = 0, *, skip: bool = False
) -> list[Example]:
    """The examples of a published set.

    Args:
        name: One of :data:`SETS`.
        path_or_hub: A file that ends in .json, .jsonl or .csv; a folder, for all such files in it; or a data set on
            the hub, ``owner/name``, ``owner/name@revision``, ``owner/name:split`` (needs the package `datasets`).
        n: Number of rows, drawn with the seed; default: all, in their order. A row may give two examples, a protected
            one and its benign twin; rows that give none (such as those of AlpacaFarm without an input) do not count.
        seed: Draws the rows, and what a set leaves open (a password, an opening).
        skip: Leave out rows that cannot become an example (a field is missing or malformed, nothing in the reply would
            tell a success) instead of raising. Compare the number of examples with the set's before you quote a figure.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The hub is asked for and `datasets` is not installed.
        ValueError: The name is unknown, a file is not in its format, a row lacks something or is malformed (it names
            the row and the field), or the set has fewer usable rows than asked for.
    """
    if name not in _READERS:
        raise ValueError(f"`name`: unknown set {name!r}; expected one of {', '.join(SETS)}")
    if n is not None and (not isinstance(n, int) or n < 1):
        raise ValueError(f"`n`: expected a number of rows >= 1, or None for all, got {n!r}")
    rows = read(path_or_hub)
    if n is not None:
        Random(f"{name}/{seed}").shuffle(rows)
    examples: list[Example] = []
    used = 0
    for row in rows:
        if used == n:
            break
        try:
            found = _READERS[name](row, name, seed)
        except RowError as error:
            if skip:
                continue
            raise RowError(f"`path_or_hub`: {error}; or leave such rows out with skip=True") from error
        examples += found
        used += bool(found)
    if not examples:
        raise ValueError(f"`path_or_hub`: none of the {len(rows)} rows of {str(path_or_hub)!r} is one of {name!r}")
    if n is not None and used < n:
        raise ValueError(f"`n`: expected at most {used}, the usable rows of {str(path_or_hub)!r}, got {n}")
    return examples


__all__ = ["SETS", "Row", "RowError", "load_set", "read"]
