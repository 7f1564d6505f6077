"""The cells of the benchmark in the order in which they are measured, and the checks that they need first.

B batch, T queries, S keys, D head dim
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.throughput.cases import CASES, Case
from benchmarks.throughput.shapes import GROUPS, HEADS, LENGTHS, decode_shapes, gate_shape, square_shapes
from tools.inputs import Shape

SUITES = ("forward", "backward", "decode", "model", "profile")
EXPECTED = {
    "forward": 8.0, "backward": 10.0, "decode graph": 6.0, "decode eager": 5.0, "train": 45.0, "generate": 60.0,
    "profile": 10.0,
}  # fmt: skip
"""Seconds of a cell before one of its suite was measured: guesses."""
MODEL_DIM = 64
MODEL_SHAPES = (Shape(2, HEADS, GROUPS, 4096, 4096, MODEL_DIM), Shape(1, HEADS, GROUPS, 1, 2048, MODEL_DIM))
"""Attention in the training step of the model and in its generation."""
PROFILED = (4096, 16_384)


class Cell(NamedTuple):
    """One entry of the record: what is timed together, and fits under one limit. A model's has no shape."""

    suite: str
    shape: Shape | None = None

    @property
    def key(self) -> str:
        """Name in the record."""
        return self.suite if self.shape is None else f"{self.suite} {self.shape}"

    @property
    def kind(self) -> str:
        """Suite as the command line names it."""
        return {"train": "model", "generate": "model"}.get(self.suite, self.suite.split()[0])

    @property
    def in_table(self) -> bool:
        """True where the table of README.md and the targets need the cell."""
        if self.shape is None:
            return self.suite == "train"
        if self.suite in ("forward", "backward"):
            return self.shape.dim == 128
        return self.suite == "decode graph" and self.shape.queries == 1 and self.shape.keys >= 4096


def all_cells(suites: Iterable[str] = SUITES) -> list[Cell]:
    """Return the cells of `suites`: those of the table first, and in both parts the most urgent first."""
    found: list[tuple[float, Cell]] = []
    for place, shape in enumerate(square_shapes((128, 64), LENGTHS)):
        found += [(place, Cell("forward", shape)), (place, Cell("backward", shape))]
        if shape.dim == 128 and shape.keys in PROFILED:
            found.append((2.2 + place / 10, Cell("profile", shape)))
    for place, shape in enumerate(decode_shapes()):
        found += [(0.5 + place / 4, Cell("decode graph", shape)), (0.5 + place / 4, Cell("decode eager", shape))]
    # generation takes long and comes late
    found += [(1.2, Cell("train")), (2.6, Cell("generate"))]
    cells = [cell for _, cell in sorted(found, key=lambda one: (not one[1].in_table, one[0]))]
    wanted = set(suites)
    return [cell for cell in cells if cell.kind in wanted]


class Check(NamedTuple):
    """A case on the shape on which the gate checks it, in bf16."""

    case: str
    shape: Shape


def checks_of(cell: Cell) -> list[Check]:
    """Return what the gate has to pass before `cell` is timed."""
    if cell.shape is None:
        # generation uses both shapes: it reads the prompt and then decodes
        shapes = MODEL_SHAPES[:1] if cell.suite == "train" else MODEL_SHAPES
        return [Check(case.name, gate_shape(shape)) for shape in shapes for case in CASES if case.own and case.compiles]
    return [Check(case.name, gate_shape(cell.shape)) for case in cases_of(cell)]


def cases_of(cell: Cell) -> list[Case]:
    """Return the cases of a cell with a shape, less those that are not tried there."""
    assert cell.shape is not None
    if cell.suite == "profile":
        return [case for case in CASES if case.name == "bias"]
    here = [case for case in CASES if (case.trains if cell.shape.square else case.decodes)]
    return [case for case in here if not case.skipped(cell.shape)]


def all_checks(cells: Iterable[Cell]) -> list[Check]:
    """Return the checks of `cells`, each once, in the order in which the cells need them."""
    return list(dict.fromkeys(check for cell in cells for check in checks_of(cell)))


def compiled_ahead(cells: Iterable[Cell]) -> list[tuple[Case, Cell]]:
    """Return the peers that compile for every shape, each with the first cell that needs it.

    The fused kernel is not among them: the gate compiles it in the variants of the cells.
    """
    found: dict[tuple[str, Shape], tuple[Case, Cell]] = {}
    for cell in cells:
        for case in cases_of(cell) if cell.shape is not None else ():
            if case.compiles and not case.own and cell.suite != "decode eager":
                # the backward compiles the forward too
                whole = cell._replace(suite="backward") if cell.suite == "forward" else cell
                found.setdefault((case.name, cell.shape), (case, whole))
    return list(found.values())
