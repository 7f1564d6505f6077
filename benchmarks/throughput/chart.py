"""Chart of TFLOP/s against T and bandwidth against S, as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.throughput.markdown import cells_of

# Okabe and Ito's colours; the fused kernel is drawn in full, its peers dashed.
LINES: dict[str, dict[str, Any]] = {
    "off": {"color": "#1c2127", "marker": "o"},
    "bias": {"color": "#0072b2", "marker": "s", "linewidth": 2.4},
    "half dedicated": {"color": "#009e73", "marker": "D"},
    "sdpa flash": {"color": "#e69f00", "marker": "^", "linestyle": "--"},
    "sdpa cudnn": {"color": "#d55e00", "marker": "v", "linestyle": "--"},
    "sdpa default": {"color": "#8c8c8c", "marker": "x", "linestyle": "--"},
    "flex causal": {"color": "#56b4e9", "marker": "P", "linestyle": "--"},
    "flex bias": {"color": "#cc79a7", "marker": "*", "linestyle": "--"},
}
TITLES = {"forward": "Forward", "backward": "Backward", "decode graph": "Decoding, one query"}


def panels(record: dict[str, Any]) -> list[tuple[str, int, int | None]]:
    """Return suite, head dim and batch (decoding) of the panels that have data."""
    found: list[tuple[str, int, int | None]] = [
        (suite, dim, None) for dim in (128, 64) for suite in ("forward", "backward") if cells_of(record, suite, dim)
    ]
    batches = {cell["shape"]["batch"] for cell in cells_of(record, "decode graph", 128)}
    return found + [("decode graph", 128, batch) for batch in sorted(batches)]


def points(record: dict[str, Any], suite: str, dim: int, batch: int | None, case: str) -> list[tuple[int, float]]:
    """Return S, and TFLOP/s or the percentage of the copy bandwidth."""
    found = []
    for cell in cells_of(record, suite, dim):
        shape, known = cell["shape"], cell["cases"].get(case, {})
        if batch is None and "p50_ms" in known:
            found.append((shape["keys"], known["tflops"]))
        elif batch is not None and shape["queries"] == 1 and shape["batch"] == batch and known.get("of_copy"):
            found.append((shape["keys"], 100 * known["of_copy"]))
    return found


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the chart as a PNG.

    Raises:
        ValueError: The record holds nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # late: it is an extra
    from matplotlib.figure import Figure

    shown = panels(record)
    if not shown:
        raise ValueError("`--chart`: expected a record with a cell of forward, backward or decoding, got none")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(6.2 * columns, 4.2 * rows), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[len(shown) :]:
        spare.set_axis_off()
    labels: dict[str, Any] = {}
    for axis, (suite, dim, batch) in zip(axes, shown, strict=False):
        for case, style in LINES.items():
            line = points(record, suite, dim, batch, case)
            if line:
                drawn = axis.plot(*zip(*line, strict=True), label=case, **{"linewidth": 1.6, "markersize": 5, **style})
                labels.setdefault(case, drawn[0])
        dress(axis, record, suite, dim, batch)
    where = record["environment"]
    figure.suptitle(f"{where['gpu']}, torch {where['torch']}, bf16, causal, H=32, G=8", fontsize=10, x=0.01, ha="left")
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def dress(axis: Any, record: dict[str, Any], suite: str, dim: int, batch: int | None) -> None:
    """Draw titles, ticks and the measured ceiling of a panel."""
    title = f"{TITLES[suite]}, D={dim}" + ("" if batch is None else f", B={batch}")
    axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
    ticks = sorted({cell["shape"]["keys"] for cell in cells_of(record, suite, dim)})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("Keys" if batch is not None else "Tokens per sequence (32k a batch)")
    axis.set_ylabel("TFLOP/s" if batch is None else "k and v read, % of copy bandwidth")
    ceiling = record["ceilings"].get("matmul_tflops") if batch is None else 100.0
    if ceiling:
        axis.axhline(ceiling, color="#8c8c8c", linewidth=1, linestyle=":")
        axis.annotate(
            "measured ceiling", (1, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e3e7eb")
