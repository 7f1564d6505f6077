"""Parts of the documentation page on the theory of depth that come from the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "depth_theory.json"


def block(part: str) -> str:
    """Return the Markdown of a part of the record: `examples` or `coverage`."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return "\n".join(_examples(found["examples"]) if part == "examples" else _coverage(found))


def _examples(found: dict[str, Any]) -> list[str]:
    curvature, published, own = found["recovery_curvature"], found["published_objective"], found["own_prefixes"]
    minima, rest, shared = found["several_minima"], found["remainder"], found["incidental_recovery"]
    within, cost, prefix = found["within_horizon"], found["recovery_cost"], found["prefix_length"]
    kl = ", ".join(f"{value:.2f} ({base:g})" for base, value in zip(cost["base"], cost["kl"], strict=True))
    before, after = prefix["recovery_before_and_after"]
    rows = [
        (
            "Thm. 19: r' F^-1 r <= J",
            f"up to {curvature['largest_ratio']:.1e} times J in {curvature['draws']:,} random models",
        ),
        (
            "Thm. 20 describes the minimiser of Def. 17",
            "largest error of the recovery probability at positions 2, 3, 4: "
            f"{_list(published['thm20_error_by_position'])}; with Q = P: {_list(own['error_by_position'])}",
        ),
        (
            "Rem. 9: with the weight Q / P it does",
            f"largest error at positions 2, 3, 4: {_list(published['rem9_error_by_position'])}",
        ),
        (
            "Thm. 22: recovery of at least delta",
            f"{published['thm22_promised']:.3f} promised, {published['thm22_reached']:.3f} reached; violated in "
            f"{published['thm22_violated']:.0%} of {published['draws']} models",
        ),
        (
            "Def. 17 has one minimum",
            f"random starts end at several values in {minima['with_several']} of {minima['trials']} models, such as "
            + ", ".join(f"{value:.3f}" for value in minima["values"]),
        ),
        (
            "Proof of Thm. 22: the KL of recovery is monotone in the base probability",
            f"KL in nats by base probability, at a penalty of {cost['weight']:g}: {kl}",
        ),
        (
            "Cor. 23: x tokens suppress recovery",
            f"x = {prefix['position']:.2f} for 0.5, from 0.01, mu 10, gamma 0.9: recovery is {before:.3f} after "
            f"{prefix['forced'] - 1} forced tokens and {after:.3f} after {prefix['forced']}",
        ),
        (
            "Eq. 59: functional plus incidental KL",
            f"the remainder is negative at {rest['negative']:.0%} of positions, down to {rest['lowest_over_kl']:.0f} "
            "times the KL",
        ),
        (
            "A.4: incidental change leaves recovery unchanged",
            f"one distribution for all {shared['length']} positions, V = 3, Harm = [first token is 2], lambda "
            f"{shared['strength']:g}: recovery goes from {shared['base_recovery']:.3f} to {shared['recovery'][-1]:.4f} "
            f"at every position, KL {shared['kl'][-1]:.4f}",
        ),
        (
            "Prop. 29: optimum base * exp(-lambda h_t) within the horizon, h of the optimum",
            f"largest error of a probability at positions 1 to 4, mu 0, lambda {within['strength']:g}: "
            f"{_list(within['error_by_position'])}",
        ),
    ]
    return ["| statement | counterexample |", "| :-- | :-- |", *(f"| {one} | {other} |" for one, other in rows)]


def _coverage(found: dict[str, Any]) -> list[str]:
    coverage, speed = found["coverage"], found["speed"]
    length = coverage["length"]
    names = {"binary": "harm 0 or 1", "rare": "rare harm", "graded": "graded harm"}
    lines = [
        f"Share of {coverage['runs']:,} runs whose 95% interval holds the exact value; {coverage['rollouts']} rollouts "
        f"a run, V = {coverage['vocabulary']}, T = {length}, harm decided by the first {length - 1} tokens.",
        "",
        "| quantity | interval | " + " | ".join(f"{k}" for k in range(length)) + " |",
        "| :-- | :-- | " + " | ".join("--:" for _ in range(length)) + " |",
    ]
    for kind, row in coverage["harm"].items():
        label = f"{names[kind]}, mean {row['mean']:.2g}"
        one, other = ("t", "t") if kind == "graded" else ("Tango", "Clopper-Pearson")
        lines.append(_row(f"I of the next token, {label}", one, row["information"]))
        lines.append(_row(f"S, {label}", other, row["tail"]))
        lines.append(_row(f"horizon at tolerance 0.01, {label}", "fixed-sequence tests", row["horizon"], length))
    prefixes, nested = coverage["prefixes"], coverage["nested"]
    lines.append(_row("mean recovery probability", "Wilson", [None, *prefixes["recovery"]]))
    lines.append(_row("KL of the next token", "t", [None, *prefixes["kl"]]))
    between, within = nested["coverage"]
    lines += [
        "",
        "Columns are depths; the horizon has one value. The first column of the last two rows is exact.",
        "",
        f"Nested continuations, {nested['prefixes']} prefixes of {nested['depth']} tokens with "
        f"{nested['continuations']} each: coverage {between:.3f} for Var(h) and {within:.3f} for S. Var(h) is "
        f"{nested['exact_between']:.4f}; the mean of the estimates is {nested['mean_between']:.4f}, of the plug-in "
        f"variance {nested['mean_plug_in']:.4f}.",
        "",
        f"Martingale, gradient and standard optimum of V = {speed['vocabulary']}, T = {speed['length']}: "
        f"{speed['median_ms']:.1f} ms of one core ({found['environment']['hardware']}).",
    ]
    return lines


def _row(name: str, method: str, values: Sequence[float | None], columns: int = 0) -> str:
    cells = ["" if value is None else f"{value:.3f}" for value in values]
    cells += [""] * (columns - len(cells))
    return f"| {name} | {method} | " + " | ".join(cells) + " |"


def _list(values: Sequence[float]) -> str:
    return ", ".join("0" if value < 1e-9 else f"{value:.3f}" for value in values)
