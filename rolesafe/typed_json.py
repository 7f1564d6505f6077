"""Frozen dataclasses from JSON values: the one decoder of all records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

if TYPE_CHECKING:
    from cattrs import Converter

T = TypeVar("T")


def from_values(kind: type[T], values: Any, where: str = "text") -> T:
    """Build a dataclass from the JSON values that ``dataclasses.asdict`` and ``json.dumps`` made of it.

    Types are checked strictly: no text is taken for a number, no ``bool`` for an ``int``, no text for a list.
    An ``int`` is taken for a ``float``. Unknown fields are refused, except those in the class attribute
    ``REMOVED_FIELDS``: fields of earlier versions, which are skipped.

    Args:
        kind: The dataclass. Its fields may be dataclasses, unions of dataclasses with fields of their own, tuples,
            mappings, literals and plain values.
        values: JSON values.
        where: Name of `values` in error messages.

    Raises:
        ValueError: The values do not fit; the message has the path to each field that does not.
    """
    from cattrs import transform_error

    try:
        return _converter().structure(values, kind)
    except Exception as error:  # cattrs raises groups of whatever the hooks and `__post_init__` raise
        found = (line.rpartition(" @ ") for line in transform_error(error, where, _reason))
        raise ValueError("; ".join(f"`{path}`: {reason}" for reason, _, path in found)) from error


@cache
def _converter() -> Converter:
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn

    converter = Converter()
    tuples = converter.get_structure_hook(tuple[Any, ...])

    def record(kind: Any) -> Callable[[Any, Any], Any]:
        removed = frozenset(getattr(kind, "REMOVED_FIELDS", ()))
        structure = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

        def build(values: Any, _: Any) -> Any:
            _expect(isinstance(values, dict), "an object", values)
            return structure({name: value for name, value in values.items() if name not in removed}, kind)

        return build

    def several(kind: Any) -> bool:
        return get_origin(kind) in (Union, UnionType) and sum(map(is_dataclass, get_args(kind))) > 1

    def one_of(values: Any, kind: Any) -> Any:
        # cattrs' own choice asks for one field in an order that differs between processes, and so do its errors
        if values is None and type(None) in get_args(kind):
            return None
        _expect(isinstance(values, dict), "an object", values)
        kinds: list[Any] = [one for one in get_args(kind) if is_dataclass(one)]
        return converter.structure(values, max(kinds, key=lambda one: len({f.name for f in fields(one)} & set(values))))

    def row(values: Any, kind: Any) -> Any:
        _expect(isinstance(values, (list, tuple)), "a list", values)
        return tuples(values, kind)

    def is_tuple(kind: Any) -> bool:
        return get_origin(kind) is tuple

    def plain(value: Any, kind: Any) -> Any:
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
        _expect(fits and (kind is bool or not isinstance(value, bool)), kind.__name__, value)
        return kind(value)

    converter.register_structure_hook_factory(is_dataclass, record)
    converter.register_structure_hook_func(several, one_of)
    converter.register_structure_hook_func(is_tuple, row)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, plain)
    return converter


def _expect(holds: bool, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"expected {what}, got {value!r:.80}")


def _reason(error: BaseException, kind: Any) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, KeyError):
        return "expected this field, got none"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown fields {sorted(error.extra_fields)}"
    if isinstance(error, ValueError):
        return str(error)
    return f"expected {getattr(kind, '__name__', kind)}, got something else ({error})"
