"""Chart of the report: attack success against repetitions of the injection, and utility. Shared chart style."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from rolesafe.report.view import Row, View, percent
from rolesafe.terminal import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, safe for colour-blind readers; markers differ as well.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
MARKERS = "osD^vP*"

LONGEST_NAME = 26
"""Longest name that fits next to a bar, in characters."""

LONGEST_LABEL = 60
"""Longest row label that fits above its bars, in characters."""

_TITLE: dict[str, Any] = {"loc": "left", "fontweight": "bold"}


@dataclass(frozen=True)
class Theme:
    """Colours of a chart."""

    paper: str
    ink: str
    soft: str
    grid: str


LIGHT = Theme(paper="#ffffff", ink="#1c2127", soft="#5c6670", grid="#e3e7eb")
DARK = Theme(paper="#1b2026", ink="#e8ebee", soft="#a4adb6", grid="#343b43")


def require_matplotlib() -> None:
    """Raise if no chart can be drawn. Call it before long work that ends in a chart.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('the chart needs matplotlib, which is missing: pip install "rolesafe[demo]"') from error


def draw_png(
    draw: Callable[[Figure, Theme], None], size: tuple[float, float], *, theme: Theme = LIGHT, dpi: int = 220
) -> bytes:
    """Return what `draw` draws as a PNG image, in the colours of `theme`.

    Args:
        draw: Fills the figure.
        size: Width and height in inches.
        theme: Colours.
        dpi: Pixels per inch.

    Raises:
        ImportError: matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "text.parse_math": False,  # a "$" in a model's name is a "$"
        "font.size": 11,
        "text.color": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.paper,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
    }
    with rc_context(settings), catch_warnings():
        filterwarnings("ignore", "Glyph", UserWarning)  # a name in a script that the font lacks
        figure = Figure(figsize=size, dpi=dpi, facecolor=theme.paper)
        FigureCanvasAgg(figure)  # pyplot has global state and opens windows
        draw(figure, theme)
        target = io.BytesIO()
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def data_uris(png: Callable[[Theme], bytes]) -> tuple[str, str]:
    """Return an image as ``data:`` URIs: in the light theme, in the dark theme."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(png(theme)).decode('ascii')}" for theme in (LIGHT, DARK))
    return light, dark


def draw_chart(view: View, *, theme: Theme = LIGHT, dpi: int = 220) -> bytes:
    """Return the chart of `view` as a PNG image.

    Raises:
        ImportError: matplotlib is missing.
    """
    utility = [row for row in view.rows if row.kind == "utility"]
    bars = 0.4 + 0.27 * len(utility) * (len(view.models) + 1.15)

    def draw(figure: Figure, theme: Theme) -> None:
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.12, hspace=0.04))
        top, bottom = figure.subplots(2, 1, height_ratios=[4.4, bars])
        top.set_title("Attack success when the injection is repeated", pad=26, fontsize=13, **_TITLE)
        above = {"xycoords": "axes fraction", "textcoords": "offset points"}
        top.annotate(_note(view), (0, 1), (0, 9), fontsize=9.5, color=theme.soft, **above)
        _draw_curves(top, view, theme)
        _draw_utility(bottom, view, utility, theme)

    return draw_png(draw, (5.8, 4.6 + bars), theme=theme, dpi=dpi)


def _note(view: View) -> str:
    trials = sorted({mean.n for curve in view.curves for _, mean in curve.points})
    span = " to ".join(str(n) for n in dict.fromkeys([trials[0], trials[-1]])) if trials else "0"
    thin = " (thin lines)" if view.n_seeds > 1 else ""
    note = f"Mean over {view.seeds}{thin}; n = {span} a point; band: 95% interval"
    return note if view.partial is None else f"PARTIAL. {note}"


def _draw_curves(axes: Axes, view: View, theme: Theme) -> None:
    ticks = sorted({x for curve in view.curves for x, _ in curve.points})
    for curve in view.curves:
        style = _style(view, curve.model)
        points = sorted(curve.points, key=lambda point: point[0])
        x = [repetitions for repetitions, _ in points]
        shares = [mean for _, mean in points]
        low, high = [100 * e.low for e in shares], [100 * e.high for e in shares]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        label = short(curve.model)
        if len({len(e.per_seed) for e in shares}) == 1 and view.n_seeds > 1:  # each seed has every point
            for seed in zip(*(e.per_seed for e in shares), strict=True):
                axes.plot(x, [100 * value for value in seed], color=style["color"], alpha=0.4, linewidth=0.8)
        axes.plot(x, [100 * e.value for e in shares], label=label, linewidth=2.2, markersize=6, clip_on=False, **style)
    if ticks:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel("Repetitions of the injection")
    axes.set_ylabel("Attack success (lower is better)")
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    axes.yaxis.set_major_formatter("{x:.0f}%")
    clean(axes, theme, "y")
    if view.curves:
        axes.legend(frameon=False, loc="best", labelcolor=theme.ink)


def _draw_utility(axes: Axes, view: View, rows: list[Row], theme: Theme) -> None:
    axes.set_title("Utility of the same models", fontsize=12, **_TITLE)
    y = 0.0
    for row in rows:
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        axes.text(0, y, short(row.label, LONGEST_LABEL), va="center", fontsize=10, color=theme.soft, bbox=box)
        for model, mean in zip(view.models, row.means, strict=True):
            y += 1
            if mean is None:
                axes.text(0, y, f"{short(model.name)}: not measured", va="center", fontsize=10, color=theme.soft)
                continue
            low, high = 100 * mean.low, 100 * mean.high
            axes.barh(y, 100 * mean.value, height=0.72, color=_style(view, model.name)["color"], alpha=0.85)
            axes.plot([low, high], [y, y], color=theme.ink, linewidth=1.4, solid_capstyle="butt")
            label = f"{percent(mean.value)}  {short(model.name)}"
            axes.text(max(100 * mean.value, high) + 1.2, y, label, va="center", fontsize=10)
        y += 1.15
    axes.set_ylim(max(y, 1.0) - 0.5, -0.6)
    axes.set_xlim(0, 142)
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks([])
    axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.set_xlabel("Share of the questions (higher is better); line: 95% interval")
    clean(axes, theme, "x")


def short(name: str, limit: int = LONGEST_NAME) -> str:
    """Return `name` on one line of at most `limit` characters; a leading underscore would hide its legend entry."""
    text = visible(name).replace("\n", " ").lstrip("_")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _style(view: View, model: str) -> dict[str, Any]:
    index = [line.name for line in view.models].index(model)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def clean(axes: Axes, theme: Theme, grid: str) -> None:
    """Remove frame and tick marks; draw the grid of axis `grid`, ``"x"`` or ``"y"``."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)
    axes.grid(axis=grid, color=theme.grid, linewidth=1)  # type: ignore[arg-type]
    axes.spines["bottom"].set_zorder(0)  # under a line that runs along 0%
    axes.set_axisbelow(True)
