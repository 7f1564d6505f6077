"""The correctness gate: nothing is timed that disagrees with the specification.

A case passes where, for its output and every gradient, ``max |x - ref| <= 2 max |eager - ref| + eps/2 max |ref|``:
`ref` is ``rolesafe.role_attention(impl="reference")`` in fp64, `eager` the same formula in the precision of the case,
and the last term one rounding of the largest number in its dtype, after the tests of flash-attention.

B batch, H query heads, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

import rolesafe
from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.cases import Case, expand, options
from benchmarks.throughput.inputs import Inputs, Parts, make_inputs
from benchmarks.throughput.shapes import Shape

PRIVILEGED = 0
"""The privileged role that occurs: system."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SQUARE = (Shape(2, 8, 2, 384, 384, 128), Shape(2, 8, 2, 384, 384, 64))
DECODE = (Shape(2, 8, 2, 1, 611, 128), Shape(2, 8, 2, 4, 611, 128))

PASSED, FAILED, UNAVAILABLE = "passed", "failed", "unavailable"


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a case. `errors`: the largest error of each tensor by what is allowed."""

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


def eager(x: Inputs, parts: Parts) -> Tensor:
    """(B, H, T, D): the formula of the specification, every step in the dtype of q."""
    q, (batch, heads, length, dim) = x.q, x.q.shape
    k, v = expand(x, x.k), expand(x, x.v)
    scores = q @ k.transpose(-1, -2) * dim**-0.5  # (B, H, T, S)
    if parts.bias:
        table = x.bias.to(q.dtype)
        scores = scores + table[:, x.q_roles[:, :, None], x.k_roles[:, None, :]].transpose(0, 1)
    seen = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - length)[None, None]
    privileged = seen & (x.k_roles == PRIVILEGED)[:, None, None, :]
    ordinary, reserved = weights(scores, seen) @ v, weights(scores, privileged) @ v
    alone = (torch.arange(heads, device=q.device) < parts.dedicated_heads(heads))[None, :, None, None]
    if parts.integrity:
        alone = alone | (x.q_roles == PRIVILEGED)[:, None, :, None]
    if parts.share:
        share = x.share.to(q.dtype)[:, None, None] * privileged.any(-1, keepdim=True)
        ordinary = (1 - share) * ordinary + share * reserved
    return torch.where(alone.expand(batch, heads, length, 1), reserved, ordinary)


def weights(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the keys in sight; 0 where there is none."""
    hidden = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return torch.softmax(hidden, dim=-1) * seen


def outcome(out: Tensor, x: Inputs, parts: Parts, gradients: bool) -> dict[str, Tensor]:
    """Output and gradients in fp64."""
    found = {"out": out.detach().double()}
    if gradients:
        leaves = x.leaves(parts)
        given = torch.autograd.grad(out, list(leaves.values()), x.grad.to(out.dtype))
        found |= {f"d{name}": g.double() for name, g in zip(leaves, given, strict=True)}
    return found


def exact(x: Inputs) -> Inputs:
    """The same numbers in fp64."""
    names = ("q", "k", "v", "bias", "share", "grad")
    wide = {name: getattr(x, name).detach().double().requires_grad_(getattr(x, name).requires_grad) for name in names}
    return replace(x, **wide)


def compare(
    got: dict[str, Tensor], ref: dict[str, Tensor], yardstick: dict[str, Tensor], eps: float
) -> dict[str, float]:
    """The largest error of each tensor by what is allowed; infinite where it holds a NaN."""
    found = {}
    for name, x in got.items():
        allowed = 2 * (yardstick[name] - ref[name]).abs().max() + eps / 2 * ref[name].abs().max()
        error = float((x - ref[name]).abs().max() / allowed)
        found[name] = error if error == error else float("inf")
    return found


class Gate:
    """Checks cases on one shape and dtype; the reference of each combination of parts is computed once."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, gradients: bool) -> None:
        self.shape, self.dtype, self.device, self.gradients = shape, dtype, device, gradients
        self.inputs = make_inputs(shape, dtype, device, gradients, seed=1)[0]
        self._known: dict[Parts, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def expected(self, parts: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the specification gives in fp64, and the eager formula in the dtype of the case."""
        if parts not in self._known:
            x, wide = self.inputs, exact(self.inputs)
            ref = rolesafe.role_attention(
                wide.q, wide.k, wide.v, wide.q_roles, wide.k_roles, impl="reference", **options(wide, parts)
            )
            self._known[parts] = (
                outcome(ref, wide, parts, self.gradients),
                outcome(eager(x, parts), x, parts, self.gradients),
            )
        return self._known[parts]

    def check(self, case: Case) -> Verdict:
        """The verdict on one case."""
        gradients = self.gradients and self.device.type in case.gradients
        x = self.inputs if gradients else without_gradients(self.inputs)
        name = str(self.dtype).removeprefix("torch.")
        about = (case.name, name, str(self.shape), self.shape.dim, not self.shape.square)
        got, reason = attempt(lambda: outcome(case.build(x).call(), x, case.parts, gradients), self.device)
        if got is None:
            return Verdict(*about, FAILED if case.own else UNAVAILABLE, reason=reason)
        errors = compare(got, *self.expected(case.parts), torch.finfo(self.dtype).eps)
        wrong = {key: round(value, 2) for key, value in errors.items() if not value <= 1}
        if wrong:
            return Verdict(*about, FAILED, errors, f"errors beyond what is allowed, times: {wrong}")
        return Verdict(*about, PASSED, errors)


def without_gradients(x: Inputs) -> Inputs:
    """The same inputs, asking for no gradients."""
    return replace(x, **{name: getattr(x, name).detach() for name in ("q", "k", "v", "bias", "share")})


def checked(gate: Gate, cases: Sequence[Case]) -> list[Case]:
    """Cases that a gate is for. In decoding a model uses more of the kernel than is timed; fp16 is checked on less."""
    here = [case for case in cases if gate.device.type in case.devices]
    if gate.gradients:
        return [case for case in here if case.trains]
    return [case for case in here if case.decodes or (case.own and case.compiles and gate.dtype == torch.bfloat16)]


def gates(
    device: torch.device, dims: Sequence[int], square: bool, decode: bool, dtypes: Sequence[str] = tuple(DTYPES)
) -> list[Gate]:
    """All gates of a run. fp16 is not timed, and checked at the first of `dims` alone: each check compiles."""
    made = []
    for dtype in dtypes:
        some = dims if dtype == "bfloat16" else dims[:1]
        squares = [shape for shape in SQUARE * square if shape.dim in some]
        made += [Gate(shape, DTYPES[dtype], device, gradients=True) for shape in squares]
        made += [Gate(shape, DTYPES[dtype], device, gradients=False) for shape in DECODE * decode]
    return made


def verdict_of(verdicts: Sequence[dict[str, object]], case: str, dim: int, decode: bool) -> tuple[str, str]:
    """Status and reason of a case for the timing: the worst of its verdicts at this head dim."""
    own = [v for v in verdicts if v["case"] == case and v["dim"] == dim and v["decode"] == decode]
    for status in (FAILED, UNAVAILABLE):
        for verdict in own:
            if verdict["status"] == status:
                return status, f"{verdict['dtype']}, {verdict['shape']}: {verdict['reason']}"
    return (PASSED, "") if own else (UNAVAILABLE, "was not checked")


def as_json(verdict: Verdict) -> dict[str, object]:
    """A verdict as it is written down."""
    values = asdict(verdict)
    values["errors"] = {name: round(x, 3) if x < float("inf") else "inf" for name, x in verdict.errors.items()}
    return values
