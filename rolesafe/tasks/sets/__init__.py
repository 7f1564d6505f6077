"""Loaders of published sets, in their published formats, as :class:`rolesafe.tasks.Example`.

Each module documents one kind of set: fields, examples, and success of an attack.

========================  ===================================================================  ======================
name                      content                                                              module
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

Without a right reply in the set, `Example.reply` is empty and :func:`rolesafe.evaluation.utility` skips the example.
Policies are the system text and the injected order, see :mod:`.assemble`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from rolesafe.arguments import is_integer
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
"""Names of the sets."""


def load_set(
    name: str, path_or_hub: str | Path, n: int | None = None, seed: int = 0, *, skip: bool = False
) -> list[Example]:
    """Return the examples of a published set.

    Args:
        name: One of :data:`SETS`.
        path_or_hub: File that ends in .json, .jsonl or .csv, folder of such files, or data set on the hub,
            ``owner/name``, ``owner/name@revision``, ``owner/name:split`` (needs `datasets`).
        n: Number of rows, drawn with the seed; default: all, in order. A row gives one example, or a protected one and
            its benign twin; rows without an example (such as AlpacaFarm rows without an input) do not count.
        seed: Seed for drawing rows and missing parts (a password, an opening).
        skip: Leave out rows that cannot become an example (missing or malformed field, no witness of success) instead
            of raising. Compare the number of examples with that of the set before you report numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The hub is asked for and `datasets` is not installed.
        ValueError: The name is unknown, a file is malformed, a row is malformed (the message names row and field), or
            the set has fewer than `n` usable rows.
    """
    if name not in _READERS:
        raise ValueError(f"`name`: expected one of {', '.join(SETS)}, got {name!r}")
    if n is not None and not is_integer(n, 1):
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
            raise RowError(f"`path_or_hub`: {error}. Pass skip=True to leave such rows out.") from error
        examples += found
        used += bool(found)
    if not examples:
        raise ValueError(f"`path_or_hub`: expected rows of {name!r}, got {len(rows)} others in {str(path_or_hub)!r}")
    if n is not None and used < n:
        raise ValueError(f"`n`: expected at most {used}, the usable rows of {str(path_or_hub)!r}, got {n}")
    return examples


__all__ = ["SETS", "Row", "RowError", "load_set", "read"]
