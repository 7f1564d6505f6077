"""Find trainings without a privileged token, where parts of the role layer would have no effect."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rolesafe.config import RoleConfig

PARTS: Final = ("added_heads", "dedicated_heads", "share", "integrity", "position_gap", "own_positions")
"""Trained parts of the role layer, as fields of `RoleConfig`, that leave a text without privileged tokens alone."""
FIRST: Final = 64
"""Number of rows without a privileged token after which a training warns."""
_CONVERSATIONS: Final = ("messages", "prompt", "completion", "chosen", "rejected")


def privileged_parts(config: RoleConfig) -> tuple[str, ...]:
    """Return those of :data:`PARTS` that the role layer has."""
    return tuple(name for name in PARTS if getattr(config, name))


def _lack(config: RoleConfig, argument: str, rows: str) -> str:
    """Return the text of the error, or warning, that no row of `argument` has a privileged token."""
    parts = ", ".join(f"`{name}`" for name in privileged_parts(config))
    return (
        f"`{argument}`: expected rows with tokens of the privileged roles {list(config.privileged)}, got none {rows}. "
        f"Without them these parts of the role layer act on nothing and are not trained: {parts}. Give the rows a "
        "system turn (the default text of a chat template is not one), name the roles that are trusted in "
        "`privileged`, or disable these parts."
    )


def check_rows(config: RoleConfig, argument: str, *collections: Any) -> None:
    """Raise where the role layer has parts that act on privileged tokens, and no row has any.

    Reads rows up to the first one with a privileged token. Other collections than lists, tuples and
    ``datasets.Dataset``, and rows of unknown columns, are not judged: :class:`PrivilegedWatch` looks at their batches.

    Args:
        config: The model's role configuration.
        argument: Name of the data set in the error.
        *collections: Conversations or encoded rows of the data set; None is not judged.

    Raises:
        ValueError: No row has a privileged token.
    """
    count = sum(map(len, collections)) if all(map(_is_plain, collections)) else 0
    if not count or not privileged_parts(config):
        return
    if all(_is_privileged(row, config) is False for rows in collections for row in rows):
        raise ValueError(_lack(config, argument, f"in {count} rows"))


class PrivilegedWatch:
    """Warn, once, where the first rows of a training have no privileged token.

    It sees what a data collator does: streamed data too. A worker process of a data loader has its own copy.

    Args:
        config: The model's role configuration; None for a plain model.
    """

    def __init__(self, config: RoleConfig | None) -> None:
        self.start(config)

    def start(self, config: RoleConfig | None) -> None:
        """Begin again, with the rows of another training."""
        self.config = config
        self.left = FIRST if config is not None and privileged_parts(config) else 0

    def see(self, rows: Iterable[Any]) -> None:
        """Look at the role ids (T,) of some rows, lists or tensors.

        Warns:
            UserWarning: None of the first :data:`FIRST` rows has a privileged token.
        """
        for row in rows if self.left else ():
            assert self.config is not None
            if _has(row, self.config):
                self.left = 0
                return
            self.left -= 1
            if not self.left:
                warnings.warn(_lack(self.config, "train_dataset", f"in the first {FIRST} rows"), stacklevel=3)
                return


def _is_plain(rows: Any) -> bool:
    """Return True where reading rows has no side effect, such as a random transform."""
    kind: Any = getattr(sys.modules.get("datasets"), "Dataset", ())
    return isinstance(rows, (list, tuple)) or (isinstance(rows, kind) and rows.format["type"] != "custom")


def _is_privileged(row: Any, config: RoleConfig) -> bool | None:
    """Return True where a row has a privileged token, False where it has none, None where its columns do not tell."""
    if not isinstance(row, Mapping):
        return None
    columns = [row[name] for name in row if name.endswith("role_ids")]
    found: list[bool | None] = [None if ids is None else _has(ids, config) for ids in columns]
    for value in (row[name] for name in _CONVERSATIONS if row.get(name) is not None):
        if isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value):
            found.append(any(one.get("role") in config.privileged for one in value))
        else:
            found.append(_is_privileged(value, config))
    return any(found) if found and (True in found or None not in found) else None


def _has(role_ids: Any, config: RoleConfig) -> bool:
    ids = role_ids.tolist() if hasattr(role_ids, "tolist") else role_ids
    return not set(config.privileged_ids).isdisjoint(ids)
