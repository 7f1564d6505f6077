"""The correctness gate: no case is timed that `tools.gate` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import Case
from tools.gate import compare, expected, outcome
from tools.inputs import DTYPES, Features, Shape, make_inputs

SQUARE = (Shape(2, 8, 2, 384, 384, 128), Shape(2, 8, 2, 384, 384, 64))
DECODE = (Shape(2, 8, 2, 1, 611, 128), Shape(2, 8, 2, 4, 611, 128))
HALF = ("bfloat16", "float16")

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
        about = (case.name, self.dtype, str(self.shape), self.shape.dim, not self.shape.square)
        got, reason = attempt(
            lambda: outcome(case.build(x).call(), x.leaves(case.features), x.grad if gradients else None), self.device
        )
        if got is None:
            return Verdict(*about, FAILED if case.own else UNAVAILABLE, reason=reason)
        if case.features not in self._known:
            self._known[case.features] = expected(self.inputs, case.features, self.gradients)
        found = compare(got, *self._known[case.features])
        errors = {
            name: error / allowed if error == error else float("inf")
            for name, (error, _, allowed) in found.errors.items()
        }
        return Verdict(*about, FAILED if found.detail else PASSED, errors, found.detail)


def checked(gate: Gate, cases: Sequence[Case]) -> list[Case]:
    """Return the cases of a gate. A decoding model uses more of the kernel than is timed; fp16 is checked on less."""
    here = [case for case in cases if gate.device.type in case.devices]
    if gate.gradients:
        return [case for case in here if case.trains]
    return [case for case in here if case.decodes or (case.own and case.compiles and gate.dtype == "bfloat16")]


def gates(device: torch.device, dims: Sequence[int], square: bool, decode: bool) -> list[Gate]:
    """Return all gates of a run. fp16 is not timed, and checked at the first of `dims` alone: each check compiles."""
    made = []
    for dtype in HALF:
        some = dims if dtype == "bfloat16" else dims[:1]
        made += [Gate(shape, dtype, device, gradients=True) for shape in SQUARE * square if shape.dim in some]
        made += [Gate(shape, dtype, device, gradients=False) for shape in DECODE * decode]
    return made


def worst(verdicts: Sequence[dict[str, object]], case: str, dim: int, decode: bool) -> tuple[str, str]:
    """Return status and reason of a case for the timing: the worst of its verdicts at this head dim."""
    own = [v for v in verdicts if v["case"] == case and v["dim"] == dim and v["decode"] == decode]
    for status in (FAILED, UNAVAILABLE):
        for verdict in own:
            if verdict["status"] == status:
                return status, f"{verdict['dtype']}, {verdict['shape']}: {verdict['reason']}"
    return (PASSED, "") if own else (UNAVAILABLE, "was not checked")
