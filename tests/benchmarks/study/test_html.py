"""The page of a study: self-contained, well formed, harmless, and its numbers are those of the records."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from benchmarks.override_resistance.run_report.build import build_comparison
from benchmarks.override_resistance.run_report.html import render_comparison
from benchmarks.override_resistance.run_report.markdown import render_markdown
from benchmarks.override_resistance.targets import worst_mean, worst_outcomes
from rolesafe.attacks import Rate
from rolesafe.evaluation import Results, Run, holm, seed_mean, versus
from rolesafe.report.view import percent
from tests.benchmarks.study.drawn import POINTS, measured, study
from tests.benchmarks.study.html_reader import Reader

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</text></svg></table></main><iframe src=javascript:alert(1)>",
    "</title></style><style>body{display:none}</style>",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;script&gt;&#60;script&#62;",
    "<a href='https://evil.example/?q='>",
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "<!-- --> ]]> <![CDATA[",
    "red; background: url(https://evil.example)",
    "\u202eesrever\u2066 \u200b\x1b[31m\x00\ud800",
    "W" * 20_000,
    "\u0e49" * 400 + "line\nline\r\n\t\u2028",
)
TAGS = """html head meta title style body main h1 h2 h3 h4 p b span div section article figure figcaption details
summary table thead tbody tr th td dl dt dd pre svg text line path circle"""


@pytest.fixture(scope="module")
def small() -> Results:
    return study(("plain", "air", "channel"), (0, 1), ("0.2M", "1.5M"))


def spoiled(results: Results, text: str) -> Results:
    """`text` in every place of a record that takes text."""

    def run(one: Run) -> Run:
        points = tuple(
            replace(
                point,
                attack=point.attack
                if point.attack in ("none", "dilution", "placement", "gcg")
                else f"{point.attack} {text}",
                parameters={**point.parameters, f"p {text}": text} if point.attack == "mimicry" else point.parameters,
                failed=(("x", text),),
                samples=tuple(
                    replace(
                        s, reply=text, messages=({"role": "system", "content": text}, {"role": text, "content": text})
                    )
                    for s in point.samples
                ),
            )
            for point in one.attacks
        )
        mechanism = {"embedding": text, text: 1} if one.mechanism is not None else None
        return replace(one, model=f"{one.model} {text}", size=f"{one.size} {text}", attacks=points, mechanism=mechanism)

    names = {"baseline": f"plain {text}", "candidate": f"channel {text}", "published": [f"air {text}"]}
    return replace(
        results,
        runs=tuple(run(one) for one in results.runs),
        settings={"command": text, text: text, "group": {text: text}, "comparison": names},
        environment=replace(results.environment, versions=((text, text),), hardware=text, commit=text),
        complete=False,
    )


def rendered(results: Results) -> str:
    return render_comparison(build_comparison(results))


@pytest.fixture(scope="module")
def harmless(small: Results) -> Reader:
    return Reader(rendered(spoiled(small, "harmless")))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_hostile_text_stays_text(small: Results, harmless: Reader, text: str) -> None:
    html = rendered(spoiled(small, text))
    page = Reader(html)
    assert page.faults == []
    assert page.tags == harmless.tags, "the text made or broke an element"
    assert set(page.tags) <= set(TAGS.split())
    named = [name for name, _ in page.attributes]
    assert named == [name for name, _ in harmless.attributes], "the text made or broke an attribute"
    assert not [name for name in named if name.startswith("on") or name in ("href", "src", "action", "formaction")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", html)
    html.encode("utf-8")
    styles = [value for name, value in page.attributes if name == "style"]
    assert styles
    assert all(re.fullmatch(r"--v: \d+\.\d%", style) for style in styles)


def test_hostile_text_can_be_read(small: Results) -> None:
    """Escaped, not swallowed: as a name, a message, a reply, a setting and a command."""
    page = Reader(rendered(spoiled(small, HOSTILE[0])))
    assert page.text.count(HOSTILE[0]) > 100
    assert "<script" not in rendered(spoiled(small, HOSTILE[0]))


def test_huge_texts_make_no_huge_page(small: Results) -> None:
    text = "W" * 20_000
    huge = replace(small, runs=tuple(_with_replies(run, text) for run in small.runs))
    assert len(rendered(huge)) < len(rendered(small)) + 2 * 60 * 4_200
    assert "characters left out" in rendered(huge)


def _with_replies(run: Run, text: str) -> Run:
    return replace(
        run, attacks=tuple(replace(p, samples=tuple(replace(s, reply=text) for s in p.samples)) for p in run.attacks)
    )


def test_page_needs_nothing_else(small: Results) -> None:
    html = rendered(small)
    page = Reader(html)
    assert page.faults == []
    assert "script" not in page.tags
    for outside in ("http:", "https:", "//", "url(", "@import", "src=", "href=", "data:image", "@font-face"):
        assert outside not in html.replace("img-src data:", ""), outside
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")
    assert "script-src" not in policy.group(1)
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html


def test_ids_of_the_drawings_do_not_clash(small: Results) -> None:
    assert [name for name, _ in Reader(rendered(small)).attributes if name == "id"] == []


# -------------------------------------------------------------------------------------------------------- the numbers


def tables(html: str) -> list[list[list[str]]]:
    """The cells of all tables in the page, as text with single spaces."""
    found = []
    for table in re.findall(r"<table[^>]*>(.*?)</table>", html, re.DOTALL):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
        found.append(
            [
                [
                    " ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split())
                    for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
                ]
                for row in rows
            ]
        )
    return found


def test_table_holds_the_figures_of_the_records(small: Results) -> None:
    lines = {row[0].split()[0]: row for row in tables(rendered(small))[0][1:]}
    assert list(lines) == ["plain", "air", "channel"]
    for name, row in lines.items():
        runs = small.of("0.2M", name)
        expected = [
            seed_mean([run.utility.benign for run in runs]),
            worst_mean(runs),
            seed_mean([run.bound or Rate(0, 0) for run in runs]),
            seed_mean([run.false_refusals or Rate(0, 0) for run in runs]),
            seed_mean([run.sep or Rate(0, 0) for run in runs]),
            seed_mean([run.sep_all or Rate(0, 0) for run in runs]),
        ]
        cells = [row[1], row[2], *row[5:]]
        for cell, mean in zip(cells, expected, strict=True):
            assert mean is not None
            assert cell == f"{percent(mean.value)} {100 * mean.low:.1f} to {100 * mean.high:.1f}"
    assert lines["plain"][3] == "\u2013", "nothing is compared with itself"
    worst = {name: worst_mean(small.of("0.2M", name)) for name in lines}
    ratio = worst["channel"].value / worst["plain"].value  # type: ignore[union-attr]
    assert float(lines["channel"][3].split("x")[0]) == pytest.approx(ratio, abs=0.006)


def test_tests_are_those_of_the_outcomes_corrected_for_their_number() -> None:
    results = study(("plain", "bias", "drip", "air", "channel"), (0, 1), ("",))
    lines = {one.name: one for one in build_comparison(results).sizes[0].mechanisms}
    for other, chosen in (("plain", "against_baseline"), ("air", "against_best")):
        names = [name for name in lines if name != other]
        raw = [versus(worst_outcomes(results.of("", n)), worst_outcomes(results.of("", other))) for n in names]
        exact, boot = (holm([getattr(one, p) for one in raw if one]) for p in ("p_mcnemar", "p_bootstrap"))
        assert exact != tuple(one.p_mcnemar for one in raw if one), "the correction changes something here"
        for name, one, p, q in zip(names, raw, exact, boot, strict=True):
            test = getattr(lines[name], chosen)
            assert (test.versus, test.p_mcnemar, test.p_bootstrap) == (one, p, q)
        assert getattr(lines[other], chosen) is None


def test_heatmap_is_the_worst_case_of_each_family(small: Results) -> None:
    html = rendered(small)
    heat = tables(html)[1]
    names = list(dict.fromkeys(attack for attack, *_ in POINTS if attack != "none"))
    assert heat[0][3:] == [f"{name} (untyped)" if name in ("prefill", "soft-prompt") else name for name in names]
    for row in heat[1:]:
        runs = small.of("0.2M", row[0])
        assert row[1] == f"{100 * seed_mean([r.utility.benign for r in runs]).value:.0f}"  # type: ignore[union-attr]
        assert row[2] == f"{100 * worst_mean(runs).value:.0f}"  # type: ignore[union-attr]
        for family, cell in zip(("ignore-previous", "persona"), row[3:5], strict=True):
            rates = []
            for run in runs:
                marks = [p.marks for p in run.attacks if p.attack == family]
                won = [any(one[i] == "1" for one in marks) for i in range(len(run.examples))]
                rates.append(sum(won) / len(won))
            value = 100 * sum(rates) / len(rates)
            assert cell == (f"{value:.0f}" if not 0 < value < 0.5 else "<1")


def test_attack_success_never_stands_without_utility(small: Results) -> None:
    html = rendered(small)
    for panel in re.findall(r"<figure>(.*?)</figure>", html, re.DOTALL):
        assert re.search(r"utility \d+%", panel)
    shown = [" ".join(table[0]) for table in tables(html) if "worst case" in " ".join(table[0])]
    assert len(shown) == 4, "two tables for each of two sizes"
    assert all(head.index("utility") < head.index("worst case") for head in shown)


def test_curves_say_what_they_draw(small: Results) -> None:
    """The words of every drawing hold its values, and the drawn points lie where the values are."""
    html = rendered(small)
    view = build_comparison(small)
    dilution = view.sizes[0].curves[0]
    labels = re.findall(r'aria-label="(Repetitions of the injection[^"]*)"', html)
    for line, label in zip(dilution.lines, labels, strict=False):
        for x, mean in line:
            assert f"{x:g}: {percent(mean.value)}" in label
    panel = re.findall(r'<svg[^>]*class="panel".*?</svg>', html, re.DOTALL)[1]
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="2.6" class="dot">', panel)]
    values = [mean.value for _, mean in dilution.lines[1]]
    assert len(heights) == len(values) == 7
    zero, full = 134 - 23, 9
    for y, value in zip(heights, values, strict=True):
        assert y == pytest.approx(zero - (zero - full) * value, abs=0.01)


def test_search_curve_is_cumulative(small: Results) -> None:
    curves = next(c for c in build_comparison(small).sizes[0].curves if "gcg" in c.title)
    for line, name in zip(curves.lines, ("plain", "air", "channel"), strict=True):
        shares = [mean.value for _, mean in line]
        assert shares == sorted(shares)
        for x, share in ((500, shares[-1]), (250, dict(line)[250.0].value)):
            won = []
            for run in small.of("0.2M", name):
                points = [list(zip(p.marks, p.n_steps, strict=True)) for p in run.attacks if p.attack == "gcg"]
                assert len(points) == 2, "two variants; the better one counts"
                won += [any(m == "1" and s <= x for m, s in both) for both in zip(*points, strict=True)]
            assert share == pytest.approx(sum(won) / len(won))


def test_mass_is_the_mean_of_the_seeds(small: Results) -> None:
    mass = build_comparison(small).sizes[0].masses[0]
    maps = [run.attention_mass for run in small.of("0.2M", "plain")]
    assert mass.layers[1][2] == pytest.approx(sum(m[1][2] for m in maps if m) / 2)
    assert "Attention mass on privileged tokens" in rendered(small)


# ------------------------------------------------------------------------------------------------ what is not there


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": (), "complete": False},
        {"settings": {}, "forging": None},
        {"runs": (measured("plain", 0),)},
        {"runs": (measured("plain", 0, attacks=(), worst_case=None, bound=None, attention_mass=None),)},
        {"runs": (measured("plain", 0), measured("channel", 0, complete=False, sep=None, false_refusals=None))},
    ],
    ids=["nothing", "no plan", "one run", "no attack", "unfinished"],
)
def test_what_is_missing_is_said(small: Results, changes: dict[str, Any]) -> None:
    changes = {"settings": {}, **changes}
    results = replace(small, **changes)
    page = Reader(rendered(results))
    assert page.faults == []
    assert ("Partial results" in page.text) == (not results.complete or not all(run.complete for run in results.runs))
    assert "nan" not in page.text.lower().replace("finan", "")
    render_markdown(build_comparison(results))


def test_other_suites_are_mentioned(small: Results) -> None:
    """A mechanism that was spared an attack looks better than it is."""
    spared = replace(small.runs[0], attacks=tuple(p for p in small.runs[0].attacks if p.attack != "gcg"))
    one = replace(small, runs=tuple(r for r in small.runs if r.model != "plain"))
    notes = build_comparison(replace(one, runs=(spared, *one.runs))).notes
    assert any(note == "Not attacked with gcg: plain." for note in notes)
    assert build_comparison(small).notes == ()


def test_failures_and_left_out_examples_are_mentioned(small: Results) -> None:
    point = small.runs[0].attacks[1]
    changed = replace(point, n_left_out=3, failed=(("a", "out of memory"), ("b", "out of memory")))
    run = replace(small.runs[0], attacks=(small.runs[0].attacks[0], changed, *small.runs[0].attacks[2:]))
    notes = build_comparison(replace(small, runs=(run, *small.runs[1:]))).notes
    assert notes == (
        "3 attacked conversations did not fit into a model's context and are not counted.",
        "2 attacks failed and are not counted: out of memory.",
    )


def test_results_out_of_their_file_look_the_same(small: Results) -> None:
    assert rendered(Results.from_json(small.to_json())) == rendered(small)
