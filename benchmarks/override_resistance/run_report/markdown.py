"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.override_resistance.run_report.view import Against, ComparisonView, SizeView
from benchmarks.override_resistance.run_report.wording import NOTHING, against, detail, measured, outcome, titles
from rolesafe.evaluation import SeedMean
from rolesafe.evaluation.verdict import Verdict
from rolesafe.report.markdown import cell, escape, line
from rolesafe.report.view import percent


def render_markdown(view: ComparisonView) -> str:
    """Return `view` as Markdown tables with their notes; untrusted text is escaped."""
    parts = []
    if view.partial is not None:
        parts += [f"**Partial:** {escape(view.partial)}", ""]
    parts += target_lines(view.verdicts, [size.label for size in view.sizes])
    for size in view.sizes:
        if size.label:
            parts += ["", f"### Size {escape(size.label)}"]
        parts += ["", *_mechanisms(view, size), "", *_families(size)]
    parts += [
        "",
        f"Mean over {view.seeds}; in parentheses 95% intervals. Worst case: per example, over all attacks that can be "
        "typed. Against another one: ratio of the worst cases on the same examples and seeds, p of McNemar's exact "
        "test / of a paired bootstrap over seeds and examples, Holm-corrected. Untyped: what nobody can type.",
        *(escape(note) for note in view.notes),
    ]
    return "\n".join([*parts, ""])


def target_lines(rows: Sequence[Sequence[Verdict]], sizes: Sequence[str]) -> list[str]:
    """Return the table of the targets as lines.

    Args:
        rows: For each target the verdicts of all sizes.
        sizes: Labels of the sizes.
    """
    several = len(sizes) > 1
    header = ["target", *(["size"] if several else []), "to reach", "measured", "", ""]
    lines = [line(header), line([":--"] * len(header))]
    for title, row in zip(titles(rows), rows, strict=True):
        for size, one in zip(sizes, row, strict=True):
            label = [escape(size)] if several else []
            value, span = measured(one)
            values = [one.target, f"{value} ({span})" if span else value, f"**{outcome(one)}**", escape(detail(one))]
            lines.append(line([escape(title), *label, *values]))
    return lines


def _mechanisms(view: ComparisonView, size: SizeView) -> list[str]:
    best = size.best or "the best published"
    header = ["", "utility", "worst case", f"against {escape(view.baseline)}", f"against {escape(best)}"]
    header += ["with untyped", "false refusals", "SEP", "SEP, all probes"]
    lines = [line(header), line([":--", *["--:"] * (len(header) - 1)])]
    for one in size.mechanisms:
        name = f"**{escape(one.name)}**" if one.part == "candidate" else escape(one.name)
        tests = [_test(one.against_baseline), _test(one.against_best)]
        cells = [_cell(mean) for mean in (one.bound, one.refused, one.sep, one.sep_all)]
        lines.append(line([name, _cell(one.utility), _cell(one.worst), *tests, *cells]))
    return lines


def _families(size: SizeView) -> list[str]:
    header = [
        "attack success",
        "utility",
        "worst case",
        *(f"{escape(f)}{' (untyped)' * (f in size.heat.untyped)}" for f in size.heat.families),
    ]
    lines = [line(header), line([":--", *["--:"] * (len(header) - 1)])]
    for one, row in zip(size.mechanisms, size.heat.rows, strict=True):
        cells = [NOTHING if mean is None else percent(mean.value) for mean in (one.utility, one.worst, *row)]
        lines.append(line([escape(one.name), *cells]))
    return lines


def _test(test: Against | None) -> str:
    value, span, p = against(test)
    return f"{value} ({span}), {p}" if span else ", ".join(part for part in (value, p) if part) or NOTHING


def _cell(mean: SeedMean | None) -> str:
    return NOTHING if mean is None else cell(mean)
