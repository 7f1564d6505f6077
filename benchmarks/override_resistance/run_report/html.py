"""The report as one self-contained page; see :mod:`rolesafe.report.jinja` for the escaping of untrusted text."""

from __future__ import annotations

from benchmarks.override_resistance.run_report.charts import (
    describe_overview,
    describe_panels,
    draw_overview,
    draw_panels,
)
from benchmarks.override_resistance.run_report.view import ComparisonView, Curves, SizeView
from benchmarks.override_resistance.run_report.wording import (
    NOTHING,
    against,
    configuration,
    detail,
    measured,
    outcome,
    titles,
)
from rolesafe.evaluation import SeedMean
from rolesafe.report.chart import data_uris, short
from rolesafe.report.jinja import render


def render_comparison(view: ComparisonView) -> str:
    """Return `view` as an HTML page without scripts, fonts or images from elsewhere.

    Raises:
        ImportError: matplotlib is missing.
    """

    def overview(size: SizeView) -> tuple[str, str]:
        return data_uris(lambda theme: draw_overview(size.mechanisms, theme=theme))

    def panels(curves: Curves, size: SizeView) -> tuple[str, str]:
        return data_uris(lambda theme: draw_panels(curves, size, view.baseline, theme=theme))

    return render(
        "run_report.html",
        package="benchmarks.override_resistance.run_report",
        view=view,
        titles=titles(view.verdicts),
        overview=overview,
        panels=panels,
        describe_overview=describe_overview,
        describe_panels=describe_panels,
        short=short,
        whole=_whole,
        measured=measured,
        outcome=outcome,
        detail=detail,
        against=against,
        configuration=configuration,
    )


def _whole(mean: SeedMean | None) -> str:
    """Return a share in whole percent; "<1" and ">99" instead of a rounded 0 and 100."""
    if mean is None:
        return NOTHING
    share = 100 * mean.value
    if 0 < share < 0.5:
        return "<1"
    return ">99" if 99.5 <= share < 100 else f"{share:.0f}"
