"""A depth report as one self-contained page, with a chart of each measurement."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rolesafe.depth_report.records import DepthReport
from rolesafe.depth_report.rows import Section, cell, headline, sections
from rolesafe.files import write_whole
from rolesafe.report.chart import COLOURS, MARKERS, Theme, clean, data_uris, draw_png, short
from rolesafe.report.jinja import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _View:
    """Contents that the base template prints."""

    command: str
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def render_page(report: DepthReport) -> str:
    """Return `report` as an HTML page without scripts, fonts or images from elsewhere.

    Raises:
        ImportError: matplotlib is missing.
    """
    where = report.environment
    values = {**dict(where.versions), "hardware": where.hardware, "commit": where.commit or "not known"}
    settings = (
        ("Settings", tuple((name, str(value)) for name, value in asdict(report.settings).items())),
        ("Environment", tuple(values.items())),
    )
    found = list(sections(report))
    return render(
        "page.html",
        package="rolesafe.depth_report",
        view=_View(command=f"rolesafe depth {report.model}", settings=settings),
        report=report,
        headline=headline(report),
        sections=[(one, data_uris(_chart(one)) if one.columns else None) for one in found],
        cell=cell,
    )


def write_page(report: DepthReport, path: str | os.PathLike[str]) -> Path:
    """Write `report` to `path` as one self-contained HTML page.

    Raises:
        ImportError: matplotlib is missing.
    """
    return write_whole(path, render_page(report))


def _chart(section: Section) -> Callable[[Theme], bytes]:
    """Return a function that draws all curves of a table with their intervals, by theme."""
    scale = 100.0 if section.percent else 1.0

    def draw(figure: Figure, theme: Theme) -> None:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for i, (name, curve) in enumerate(section.columns):
            known = [point for point in curve if point.value is not None]
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            x = [point.at for point in known]
            axes.plot(
                x,
                [scale * (point.value or 0.0) for point in known],
                color=colour,
                marker=marker,
                label=short(name),
                linewidth=2,
                clip_on=False,
            )
            band = [point for point in known if point.low is not None and point.high is not None]
            axes.fill_between(
                [point.at for point in band],
                [scale * (point.low or 0.0) for point in band],
                [scale * (point.high or 0.0) for point in band],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xlabel(f"{section.axis} (number)" if section.axis == "forced" else section.axis)
        axes.set_xscale("symlog", base=2, linthresh=1)
        ticks = sorted({at for at, _ in section.rows if at in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        if section.percent:
            axes.set_ylim(0, 100)
            axes.yaxis.set_major_formatter("{x:.0f}%")
        clean(axes, theme, "y")
        axes.legend(frameon=False, loc="best", labelcolor=theme.ink, fontsize=9)

    return lambda theme: draw_png(draw, (6.4, 3.4), theme=theme, dpi=140)
