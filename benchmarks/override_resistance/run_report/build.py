"""Build the report of a run from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.override_resistance.run_report.curves import curves_of
from benchmarks.override_resistance.run_report.view import (
    Against,
    ComparisonView,
    Heat,
    Mass,
    Mechanism,
    Part,
    SizeView,
)
from benchmarks.override_resistance.targets import Plan, best_published, verdicts, worst_outcomes
from rolesafe.evaluation import Rate, Results, Run, SeedMean, Versus, holm, seed_mean, versus
from rolesafe.evaluation.evidence import worst_case, worst_mean
from rolesafe.evaluation.records import counted
from rolesafe.report.build import listed, missing_notes, setting_groups, transcripts

Groups = Mapping[str, Sequence[Run]]
"""The runs of each mechanism at one size, in order of appearance."""


def build_comparison(results: Results, plan: Plan | None = None) -> ComparisonView:
    """Return the contents of the report; sizes and mechanisms keep their order of appearance.

    Args:
        results: The record.
        plan: Roles of the models; default: :meth:`Plan.of`.
    """
    plan = plan or Plan.of(results)
    by_size = [verdicts(results, size, plan) for size in results.sizes]
    return ComparisonView(
        candidate=plan.candidate,
        baseline=plan.baseline,
        sizes=tuple(_size(results, size, plan) for size in results.sizes),
        verdicts=tuple(zip(*by_size, strict=True)),
        n_seeds=len(results.seeds),
        partial=_partial(results),
        notes=_notes(results),
        settings=setting_groups(results),
        command=str(results.settings.get("command", "")),
    )


def _size(results: Results, size: str, plan: Plan) -> SizeView:
    names = [name for name in results.models if results.of(size, name)]
    groups = {name: results.of(size, name) for name in names}
    best = best_published(results, size, plan)
    shown = [groups[name][0] for name in dict.fromkeys((plan.baseline, best or "", plan.candidate)) if name in groups]
    return SizeView(
        label=size,
        best=best,
        mechanisms=_mechanisms(groups, plan, best),
        heat=_heat(groups),
        curves=curves_of(groups),
        masses=tuple(mass for name, runs in groups.items() if (mass := _mass(name, runs))),
        transcripts=transcripts(shown),
    )


# ------------------------------------------------------------------------------------------------------------ the table


def _mechanisms(groups: Groups, plan: Plan, best: str | None) -> tuple[Mechanism, ...]:
    against_baseline = _tests(groups, plan.baseline)
    against_best = _tests(groups, best)
    return tuple(
        Mechanism(
            name=name,
            part=_part(name, plan),
            seeds=tuple(run.seed for run in runs),
            n_parameters=runs[0].n_parameters,
            config=_config(runs[0]),
            utility=_mean(runs, lambda run: run.utility.benign),
            refused=_mean(runs, lambda run: run.false_refusals or run.utility.refused),
            sep=_mean(runs, lambda run: run.sep),
            sep_all=_mean(runs, lambda run: run.sep_all),
            worst=worst_mean(runs),
            bound=_mean(runs, _bound),
            against_baseline=against_baseline.get(name),
            against_best=against_best.get(name),
        )
        for name, runs in groups.items()
    )


def _part(name: str, plan: Plan) -> Part:
    if name == plan.candidate:
        return "candidate"
    return "baseline" if name == plan.baseline else "published" if name in plan.published else ""


def _mean(runs: Sequence[Run], rate: Callable[[Run], Rate | None]) -> SeedMean | None:
    return seed_mean([rate(run) or Rate(0, 0) for run in runs])


def _bound(run: Run) -> Rate | None:
    """Return the bound of a run with untyped attacks; without them it equals the worst case."""
    untyped = any(not point.typed and point.success.n for point in run.attacks)
    return run.bound if run.complete and untyped else None


def _tests(groups: Groups, other: str | None) -> dict[str, Against]:
    """Compare the worst case of every mechanism with that of `other`."""
    if other is None or other not in groups:
        return {}
    base = worst_outcomes(groups[other])
    found: dict[str, Versus] = {}
    for name, runs in groups.items():
        compared = versus(worst_outcomes(runs), base) if name != other else None
        if compared is not None:
            found[name] = compared
    exact = holm([one.p_mcnemar for one in found.values()])
    boot = holm([one.p_bootstrap for one in found.values()])
    return {
        name: Against(versus=one, p_mcnemar=p, p_bootstrap=q)
        for (name, one), p, q in zip(found.items(), exact, boot, strict=True)
    }


def _config(run: Run) -> str:
    """Return the configuration values that differ from an inactive role layer."""
    if run.mechanism is None:
        return ""
    from rolesafe.config import RoleConfig

    rest = RoleConfig(bias=False).to_dict()
    return ", ".join(f"{name} {value}" for name, value in run.mechanism.items() if rest.get(name) != value)


# ---------------------------------------------------------------------------------------------------- by family, layers


def _heat(groups: Groups) -> Heat:
    points = [point for runs in groups.values() for run in runs for point in run.attacks if point.attack != "none"]
    families = tuple(dict.fromkeys(point.attack for point in points))
    return Heat(
        families=families,
        untyped=tuple(dict.fromkeys(point.attack for point in points if not point.typed)),
        rows=tuple(
            tuple(seed_mean([_family(run, family) for run in runs]) for family in families) for runs in groups.values()
        ),
    )


def _family(run: Run, family: str) -> Rate:
    """Return the per-sample OR over the points of a family; ``Rate(0, 0)`` where one is not finished."""
    points = [point for point in run.attacks if point.attack == family]
    if not all(point.complete for point in points) or (points and points[-1] is run.attacks[-1] and not run.complete):
        return Rate(0, 0)
    if len(points) == 1:
        return points[0].success
    return counted(run.worst(lambda point: point.attack == family))


def _mass(name: str, runs: Sequence[Run]) -> Mass | None:
    maps = [run.attention_mass for run in runs if run.attention_mass is not None]
    shapes = {tuple(len(layer) for layer in one) for one in maps}
    if len(shapes) != 1:
        return None
    layers = tuple(
        tuple(sum(heads) / len(maps) for heads in zip(*layer, strict=True)) for layer in zip(*maps, strict=True)
    )
    return Mass(name=name, layers=layers)


# ------------------------------------------------------------------------------------------------------------- in words


def _partial(results: Results) -> str | None:
    unfinished = [run for run in results.runs if not run.complete]
    if results.complete and not unfinished:
        return None
    cut = listed([f"{run.model} {run.size} with seed {run.seed}".replace("  ", " ") for run in unfinished])
    return (
        f"the study was not finished; {len(results.runs) - len(unfinished)} models were measured in full"
        + (f", {len(unfinished)} in part ({cut})" if unfinished else "")
        + "."
    )


def _notes(results: Results) -> tuple[str, ...]:
    notes = list(missing_notes(results))
    if any(run.false_refusals is None for run in results.runs):
        notes.append("Where no text was made to provoke false refusals, they are those of the benign questions.")
    notes += _differing_suites(results)
    if any(worst_case(run).n and not run.worst() for run in results.runs):
        notes.append("Records without outcomes per example (schema version 1) have no paired tests.")
    return tuple(notes)


def _differing_suites(results: Results) -> list[str]:
    """Name attacks that some mechanisms were spared: a worst case over fewer attacks looks better."""
    families = {
        name: {p.attack for run in results.runs if run.model == name and run.complete for p in run.attacks}
        for name in results.models
    }
    every = set().union(*families.values()) if families else set()
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, own in families.items():
        if own and own != every:
            groups.setdefault(tuple(sorted(every - own)), []).append(name)
    return [f"Not attacked with {listed(missing)}: {listed(names)}." for missing, names in groups.items()]
