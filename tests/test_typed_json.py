"""The decoder of records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import pytest

from rolesafe.attacks import Rate
from rolesafe.evaluation.verdict import Measured, NotMeasured
from rolesafe.typed_json import from_values


@dataclass(frozen=True, kw_only=True)
class Record:
    REMOVED_FIELDS: ClassVar = ("old",)

    rate: Rate | NotMeasured
    value: Measured | NotMeasured | None = None
    unit: Literal["ratio", "points"] = "ratio"
    names: tuple[str, ...] = ()
    pairs: tuple[tuple[str, Rate], ...] = ()
    free: Mapping[str, Any] | None = None
    messages: tuple[dict[str, str], ...] = ()
    number: float = 0.0
    count: int = 0
    complete: bool = True


FULL = Record(
    rate=Rate(1, 2),
    value=Measured(value=0.5, interval=(0.1, 0.9), unit="points"),
    names=("a", "b"),
    pairs=(("x", Rate(0, 3)),),
    free={"a": [1, {"b": None}]},
    messages=({"role": "user", "content": "?"},),
    number=1.5,
    count=3,
)
RATE = {"k": 1, "n": 2}


@pytest.mark.parametrize(
    "record", [FULL, Record(rate=NotMeasured("no memory")), Record(rate=Rate(0, 0), value=NotMeasured("none"))]
)
def test_from_values_of_asdict_is_equal(record: Record) -> None:
    assert from_values(Record, json.loads(json.dumps(asdict(record)))) == record


def test_from_values_int_becomes_float() -> None:
    found = from_values(Record, {"rate": RATE, "number": 3})
    assert type(found.number) is float


def test_from_values_removed_field_is_skipped() -> None:
    assert from_values(Record, {"rate": RATE, "old": 1}) == Record(rate=Rate(1, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"`text`: expected an object, got \[\]"),
        ({}, "`text.rate`: expected this field"),
        ({"rate": {"k": 1}}, "`text.rate.n`: expected this field"),
        ({"rate": {"k": 3, "n": 2}}, "`text.rate`: `k`, `n`: expected 0 <= k <= n"),
        ({"rate": 3}, "`text.rate`: expected an object, got 3"),
        ({"rate": {"other": 1}}, "`text.rate.k`: expected this field"),
        ({"rate": RATE, "extra": 1}, r"`text`: unknown fields \['extra'\]"),
        ({"rate": {**RATE, "extra": 1}}, r"`text.rate`: unknown fields \['extra'\]"),
        ({"rate": RATE, "unit": "metres"}, "`text.unit`: .*metres"),
        ({"rate": RATE, "names": "ab"}, "`text.names`: expected a list, got 'ab'"),
        ({"rate": RATE, "names": {"a": 1}}, "`text.names`: expected a list"),
        ({"rate": RATE, "names": ["a", 1]}, r"`text.names\[1\]`: expected str, got 1"),
        ({"rate": RATE, "pairs": [["x", RATE, 1]]}, r"`text.pairs\[0\]`: Too many values"),
        ({"rate": RATE, "pairs": [["x", {"k": 1}]]}, r"`text.pairs\[0\]\[1\].n`: expected this field"),
        ({"rate": RATE, "free": 3}, "`text.free`: expected"),
        ({"rate": RATE, "number": True}, "`text.number`: expected float, got True"),
        ({"rate": RATE, "count": True}, "`text.count`: expected int, got True"),
        ({"rate": RATE, "count": 1.0}, "`text.count`: expected int, got 1.0"),
        ({"rate": RATE, "complete": 1}, "`text.complete`: expected bool, got 1"),
    ],
)
def test_from_values_misfit_names_the_field(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_values(Record, values)
