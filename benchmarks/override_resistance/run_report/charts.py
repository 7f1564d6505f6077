"""Charts of the page: worst case and utility of all mechanisms, and a panel for each mechanism along one parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.override_resistance.run_report.view import Curves, Mechanism, SizeView
from benchmarks.override_resistance.run_report.wording import NOTHING
from rolesafe.evaluation import SeedMean
from rolesafe.report.chart import COLOURS, DARK, LIGHT, Theme, clean, draw_png, short
from rolesafe.report.view import interval, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTACK = COLOURS[0]
USE = {LIGHT: COLOURS[1], DARK: COLOURS[5]}
"""Colour of utility by theme; that of attack success is readable in both."""

COLUMNS = 2
"""Panels in a row: readable on a phone."""

DPI = 150
_WIDTH, _ROW, _PANEL = 5.4, 0.5, 1.65  # inches


def draw_overview(mechanisms: tuple[Mechanism, ...], *, theme: Theme = LIGHT, dpi: int = DPI) -> bytes:
    """Return a PNG of worst-case attack success (disc) and utility (diamond) with 95% intervals, a row each."""

    def draw(figure: Figure, theme: Theme) -> None:
        height = figure.get_figheight()
        axes = figure.add_axes((0.06, 0.35 / height, 0.87, 1 - 0.65 / height))
        use = USE[theme]
        for x, title, colour in ((80, "worst case", ATTACK), (100, "utility", use)):
            axes.text(x, -0.75, title, ha="right", fontsize=9, color=colour)
        for y, one in enumerate(mechanisms):
            weight = "bold" if one.part == "candidate" else "normal"
            axes.text(0, y - 0.25, short(one.name), fontsize=10, fontweight=weight)
            axes.axhline(y, color=theme.grid, linewidth=1, zorder=0)
            for mean, colour, x, marker in ((one.utility, use, 100, "D"), (one.worst, ATTACK, 80, "o")):
                text = NOTHING if mean is None else percent(mean.value)
                axes.text(x, y - 0.25, text, ha="right", fontsize=9, color=colour)
                if mean is not None:
                    axes.plot([100 * mean.low, 100 * mean.high], [y, y], color=colour, alpha=0.55, linewidth=1.8)
                    axes.plot(100 * mean.value, y, marker, color=colour, markersize=5, clip_on=False)
        axes.set_xlim(0, 100)
        axes.set_ylim(max(len(mechanisms), 1) - 0.5, -0.6)
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks([])
        axes.xaxis.set_major_formatter("{x:.0f}%")
        clean(axes, theme, "x")

    return draw_png(draw, (_WIDTH, 0.65 + _ROW * len(mechanisms)), theme=theme, dpi=dpi)


def draw_panels(curves: Curves, size: SizeView, baseline: str, *, theme: Theme = LIGHT, dpi: int = DPI) -> bytes:
    """Return a PNG with one panel per measured mechanism; the dashed line is the baseline."""
    names = [one.name for one in size.mechanisms]
    shown = [i for i, line in enumerate(curves.lines) if line]
    behind = curves.lines[names.index(baseline)] if baseline in names else ()
    rows = -(-len(shown) // COLUMNS)

    def draw(figure: Figure, theme: Theme) -> None:
        figure.subplots_adjust(
            left=0.09, right=0.97, wspace=0.3, top=1 - 0.3 / (rows * _PANEL), bottom=0.25 / (rows * _PANEL), hspace=0.5
        )
        for place, index in enumerate(shown):
            axes = figure.add_subplot(rows, COLUMNS, place + 1)
            one = size.mechanisms[index]
            useful = NOTHING if one.utility is None else f"{100 * one.utility.value:.0f}%"
            axes.set_title(short(one.name), loc="left", fontsize=9, fontweight="bold")
            axes.set_title(f"utility {useful}", loc="right", fontsize=8, color=USE[theme])
            if one.name != baseline and behind:
                _line(axes, curves, behind, theme.soft, behind=True)
            _line(axes, curves, curves.lines[index], ATTACK, behind=False)
            _axis(axes, curves, theme)

    return draw_png(draw, (_WIDTH, rows * _PANEL), theme=theme, dpi=dpi)


def _line(axes: Axes, curves: Curves, line: tuple[tuple[float, SeedMean], ...], colour: str, *, behind: bool) -> None:
    x, y = [at for at, _ in line], [100 * mean.value for _, mean in line]
    low, high = [100 * mean.low for _, mean in line], [100 * mean.high for _, mean in line]
    marker = "o" if len(line) <= len(curves.ticks) else ""
    if behind:
        style = "" if curves.scale == "places" else "--"
        axes.plot(x, y, linestyle=style, marker="o" if not style else "", color=colour, linewidth=1.1, mfc="none")
    elif curves.scale == "places":
        axes.vlines(x, low, high, color=colour, alpha=0.55)
        axes.plot(x, y, "o", color=colour, markersize=4, clip_on=False)
    else:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, y, marker=marker, color=colour, linewidth=1.7, markersize=3.5, clip_on=False)


def _axis(axes: Axes, curves: Curves, theme: Theme) -> None:
    if curves.scale == "log":
        axes.set_xscale("log", base=2)
    axes.set_xticks(*zip(*_spread_out(curves), strict=True))
    axes.minorticks_off()
    if curves.scale == "places":
        axes.set_xlim(-0.5, len(curves.ticks) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_yticks((0, 50, 100))
    axes.yaxis.set_major_formatter("{x:.0f}%")
    axes.tick_params(labelsize=8)
    clean(axes, theme, "y")


def _spread_out(curves: Curves) -> list[tuple[float, str]]:
    """Return the ticks, every second one where there are many."""
    ticks = list(curves.ticks)
    while len(ticks) > 4 and curves.scale != "places":
        ticks = ticks[::2] if len(ticks) % 2 else [ticks[0], *ticks[1:-1:2], ticks[-1]]
    return ticks


def describe_overview(mechanisms: tuple[Mechanism, ...]) -> str:
    """Return the alternative text of :func:`draw_overview`: all its numbers."""
    return "Worst-case attack success and utility. " + "; ".join(f"{one.name}: {_numbers(one)}" for one in mechanisms)


def describe_panels(curves: Curves, size: SizeView) -> str:
    """Return the alternative text of :func:`draw_panels`: all its numbers."""
    labels = dict(curves.ticks)
    parts = []
    for one, line in zip(size.mechanisms, curves.lines, strict=True):
        points = ", ".join(f"{labels.get(x, f'{x:g}')}: {percent(m.value)} ({interval(m)})" for x, m in line)
        parts.append(f"{short(one.name)}: {points or 'not measured'}")
    return f"{curves.title}. {'; '.join(parts)}"


def _numbers(one: Mechanism) -> str:
    worst = "not measured" if one.worst is None else f"{percent(one.worst.value)} ({interval(one.worst)})"
    useful = "not measured" if one.utility is None else percent(one.utility.value)
    return f"worst case {worst}, utility {useful}"
