"""The correctness gate: no case is timed that `tools.gate` refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.shapes import DECODE_QUERIES
from tools.calls import Call
from tools.gate import compare, expected, outcome
from tools.inputs import DTYPES, Features, Inputs, Shape, make_inputs

DTYPE = "bfloat16"
NOT_CHECKED = "was not checked"
PASSED, FAILED, UNAVAILABLE = "passed", "failed", "unavailable"


@dataclass(frozen=True)
class Verdict:
    """Result of the gate for one case. `errors`: each error of a tensor divided by the allowed one."""

    case: str
    dtype: str
    shape: str
    dim: int
    decode: bool
    status: str
    errors: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def key(self) -> str:
        return f"{self.case} {self.dtype} {self.shape}"

    def as_json(self) -> dict[str, object]:
        """Return the entry of the record."""
        errors = {name: round(x, 3) if x < float("inf") else "inf" for name, x in self.errors.items()}
        return asdict(self) | {"errors": errors}


class Gate:
    """Checks cases on one shape and dtype; computes the reference of each combination of features once."""

    def __init__(self, shape: Shape, dtype: str, device: torch.device, gradients: bool) -> None:
        self.shape, self.dtype, self.device, self.gradients = shape, dtype, device, gradients
        self.inputs = make_inputs(shape, DTYPES[dtype], device, gradients=gradients, seed=1)
        self._known: dict[Features, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def check(self, case: Case) -> Verdict:
        """Return the verdict on one case."""
        gradients = self.gradients and self.device.type in case.gradients
        x = self.inputs if gradients else self.inputs.requires_grad_(False)
        got, reason = attempt(lambda: self._results(case, x, gradients), self.device)
        if got is None:
            return self.verdict(case, FAILED if case.own else UNAVAILABLE, reason)
        if case.features not in self._known:
            self._known[case.features] = expected(self.inputs, case.features, self.gradients)
        found = compare(got, *self._known[case.features])
        errors = {
            name: error / allowed if error == error else float("inf")
            for name, (error, _, allowed) in found.errors.items()
        }
        return self.verdict(case, FAILED if found.detail else PASSED, found.detail, errors)

    def verdict(self, case: Case, status: str, reason: str, errors: dict[str, float] | None = None) -> Verdict:
        """Return a verdict of this gate."""
        shape = self.shape
        return Verdict(case.name, self.dtype, str(shape), shape.dim, not shape.square, status, errors or {}, reason)

    def _results(self, case: Case, x: Inputs, gradients: bool) -> dict[str, Tensor]:
        built = case.build(x)
        found = outcome(built.call(), built.leaves_of(x, case.features), x.grad if gradients else None)
        for name in ("dk", "dv"):
            if name in found and found[name].shape[1] != x.shape.groups:  # of repeated heads
                found[name] = found[name].float().unflatten(1, (x.shape.groups, -1)).sum(2)
        return found


def check(case: Case, shape: Shape, device: torch.device) -> Verdict:
    """Return the verdict on a case in bf16, with gradients where T is S."""
    return Gate(shape, DTYPE, device, gradients=shape.square and case.trains).check(case)


def worst(verdicts: Sequence[dict[str, object]], case: str, dim: int, decode: bool) -> tuple[str, str]:
    """Return status and reason of a case for the timing: the worst of its verdicts at this head dim."""
    own = [v for v in verdicts if v["case"] == case and v["dim"] == dim and v["decode"] == decode]
    for status in (FAILED, UNAVAILABLE):
        for verdict in own:
            if verdict["status"] == status:
                return status, f"{verdict['dtype']}, {verdict['shape']}: {verdict['reason']}"
    return (PASSED, "") if own else (UNAVAILABLE, NOT_CHECKED)


def of_check(check: dict[str, Any], call: Call | None) -> Iterator[Verdict]:
    """Yield the verdicts that a failed check of `tools.checks` gives on cases with exactly the features of its call.

    A check in 32 bits speaks of other code, and one of features that are not timed of no case.
    """
    if call is None or call.dtype == "float32":
        return
    shape = call.shape
    decode = not call.train and shape.queries <= max(DECODE_QUERIES)
    for case in CASES:
        if case.own and parts(case.features) == parts(call.features):
            reason = f"check {check['name']!r}: {check['detail']}"
            yield Verdict(case.name, call.dtype, shape_of(check["name"]), shape.dim, decode, FAILED, reason=reason)


def shape_of(check: str) -> str:
    """Return what stands for the shape in the verdicts of a check."""
    return f"check {check}"


def parts(features: Features) -> frozenset[str]:
    """Return the names of the features that differ from plain causal attention."""
    plain = Features()
    return frozenset(name for name, value in asdict(features).items() if value != getattr(plain, name))
