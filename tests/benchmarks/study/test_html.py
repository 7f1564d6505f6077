"""HTML report of a run: self-contained, well formed, escaped, with the numbers of the record."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from benchmarks.override_resistance.run_report import html as html_report
from benchmarks.override_resistance.run_report.build import build_comparison
from benchmarks.override_resistance.run_report.charts import draw_overview, draw_panels
from benchmarks.override_resistance.run_report.html import render_comparison
from benchmarks.override_resistance.run_report.markdown import render_markdown
from benchmarks.override_resistance.targets import worst_outcomes
from rolesafe.attacks import Rate
from rolesafe.evaluation import Results, Run, holm, seed_mean, versus
from rolesafe.evaluation.evidence import worst_mean
from rolesafe.report.view import percent
from tests.benchmarks.study.drawn import POINTS, measured, study
from tests.report.html_reader import Reader

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
summary table thead tbody tr th td dl dt dd pre picture source img"""


@pytest.fixture(scope="module")
def small() -> Results:
    return study(("plain", "air", "channel"), (0, 1), ("0.2M", "1.5M"))


def without_drawing(patch: pytest.MonkeyPatch) -> None:
    """Replace the charts by an empty image: drawing takes most of the time."""
    for name in ("draw_overview", "draw_panels"):
        patch.setattr(html_report, name, lambda *args, **named: b"\x89PNG")


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawing(monkeypatch)


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
    with pytest.MonkeyPatch.context() as patch:
        without_drawing(patch)
        return Reader(rendered(spoiled(small, "harmless")))


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_page_hostile_text_is_escaped(small: Results, harmless: Reader, text: str) -> None:
    html = rendered(spoiled(small, text))
    page = Reader(html)
    assert page.faults == []
    assert page.tags == harmless.tags, "the text made or broke an element"
    assert set(page.tags) <= set(TAGS.split())
    named = [name for name, _ in page.attributes]
    assert named == [name for name, _ in harmless.attributes], "the text made or broke an attribute"
    assert not [name for name in named if name.startswith("on") or name in ("href", "action", "formaction")]
    assert all(v.startswith("data:image/png;base64,") for n, v in page.attributes if n in ("src", "srcset"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", html)
    html.encode("utf-8")
    styles = [value for name, value in page.attributes if name == "style"]
    assert styles
    assert all(re.fullmatch(r"--v: \d+\.\d%", style) for style in styles)


@pytest.mark.usefixtures("no_drawing")
def test_page_hostile_text_is_visible(small: Results) -> None:
    """Escaped, not swallowed: as a name, a message, a reply, a setting and a command."""
    page = Reader(rendered(spoiled(small, HOSTILE[0])))
    assert page.text.count(HOSTILE[0]) > 100
    assert "<script" not in rendered(spoiled(small, HOSTILE[0]))


@pytest.mark.usefixtures("no_drawing")
def test_page_huge_replies_are_cut(small: Results) -> None:
    text = "W" * 20_000
    huge = replace(small, runs=tuple(_with_replies(run, text) for run in small.runs))
    assert len(rendered(huge)) < len(rendered(small)) + 2 * 60 * 4_200
    assert "characters left out" in rendered(huge)


def _with_replies(run: Run, text: str) -> Run:
    return replace(
        run, attacks=tuple(replace(p, samples=tuple(replace(s, reply=text) for s in p.samples)) for p in run.attacks)
    )


def test_page_loads_nothing_external(small: Results) -> None:
    html = rendered(small)
    page = Reader(html)
    assert page.faults == []
    assert "script" not in page.tags
    loaded = [value for name, value in page.attributes if name in ("src", "srcset")]
    assert len(loaded) == 2 * 2 * 5, "light and dark: the overview and four curves of two sizes"
    for value in loaded:
        assert base64.b64decode(value.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        html = html.replace(value, "")
    for outside in ("http:", "https:", "//", "url(", "@import", "href=", "data:image", "@font-face"):
        assert outside not in html, outside
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")
    assert "script-src" not in policy.group(1)
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html


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


@pytest.mark.usefixtures("no_drawing")
def test_page_table_matches_the_record(small: Results) -> None:
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


def test_p_values_are_holm_corrected() -> None:
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


@pytest.mark.usefixtures("no_drawing")
def test_heatmap_is_the_worst_case_by_family(small: Results) -> None:
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


@pytest.mark.usefixtures("no_drawing")
def test_tables_have_utility_before_attack_success(small: Results) -> None:
    shown = [" ".join(table[0]) for table in tables(rendered(small)) if "worst case" in " ".join(table[0])]
    assert len(shown) == 4, "two tables for each of two sizes"
    assert all(head.index("utility") < head.index("worst case") for head in shown)


@pytest.mark.usefixtures("no_drawing")
def test_alternative_text_has_the_numbers_of_a_chart(small: Results) -> None:
    curves = build_comparison(small).sizes[0].curves[0]
    described = [value for name, value in Reader(rendered(small)).attributes if name == "alt"]
    (text,) = [value for value in described if value.startswith(curves.title)][:1]
    for line in curves.lines:
        for x, mean in line:
            assert f"{x:g}: {percent(mean.value)}" in text
    assert "channel: worst case" in described[0]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:24]))
def test_charts_hostile_names_can_be_drawn(text: str) -> None:
    (size,) = build_comparison(spoiled(study(("plain", "channel"), (0,), ("",)), text)).sizes
    assert draw_overview(size.mechanisms, dpi=40).startswith(b"\x89PNG")
    assert draw_panels(size.curves[0], size, f"plain {text}", dpi=40).startswith(b"\x89PNG")


def test_charts_draw_other_results_differently(small: Results) -> None:
    sizes = build_comparison(small).sizes
    assert draw_overview(sizes[0].mechanisms, dpi=40) == draw_overview(sizes[0].mechanisms, dpi=40)
    assert draw_overview(sizes[0].mechanisms, dpi=40) != draw_overview(sizes[1].mechanisms, dpi=40)
    for one, other in zip(sizes[0].curves, sizes[1].curves, strict=True):
        drawn = draw_panels(one, sizes[0], "plain", dpi=40)
        assert drawn == draw_panels(one, sizes[0], "plain", dpi=40)
        assert drawn != draw_panels(other, sizes[1], "plain", dpi=40)
        assert drawn != draw_panels(one, sizes[0], "air", dpi=40), "the baseline is drawn behind"


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


@pytest.mark.usefixtures("no_drawing")
def test_attention_mass_is_the_mean_over_seeds(small: Results) -> None:
    mass = build_comparison(small).sizes[0].masses[0]
    maps = [run.attention_mass for run in small.of("0.2M", "plain")]
    assert mass.layers[1][2] == pytest.approx(sum(m[1][2] for m in maps if m) / 2)
    assert "Attention mass on privileged tokens" in rendered(small)


# ------------------------------------------------------------------------------------------------ what is not there


@pytest.mark.usefixtures("no_drawing")
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
def test_page_incomplete_results_render(small: Results, changes: dict[str, Any]) -> None:
    changes = {"settings": {}, **changes}
    results = replace(small, **changes)
    page = Reader(rendered(results))
    assert page.faults == []
    assert ("Partial results" in page.text) == (not results.complete or not all(run.complete for run in results.runs))
    assert "nan" not in page.text.lower().replace("finan", "")
    render_markdown(build_comparison(results))


def test_notes_name_missing_attacks(small: Results) -> None:
    """A mechanism that was spared an attack looks better than it is."""
    spared = replace(small.runs[0], attacks=tuple(p for p in small.runs[0].attacks if p.attack != "gcg"))
    one = replace(small, runs=tuple(r for r in small.runs if r.model != "plain"))
    notes = build_comparison(replace(one, runs=(spared, *one.runs))).notes
    assert any(note == "Not attacked with gcg: plain." for note in notes)
    assert build_comparison(small).notes == ()


def test_notes_count_failed_and_left_out(small: Results) -> None:
    point = small.runs[0].attacks[1]
    changed = replace(point, n_left_out=3, failed=(("a", "out of memory"), ("b", "out of memory")))
    run = replace(small.runs[0], attacks=(small.runs[0].attacks[0], changed, *small.runs[0].attacks[2:]))
    notes = build_comparison(replace(small, runs=(run, *small.runs[1:]))).notes
    assert notes == (
        "3 attacked conversations did not fit into a model's context and are not counted.",
        "2 attacks failed and are not counted: out of memory.",
    )


@pytest.mark.usefixtures("no_drawing")
def test_page_after_json_round_trip_is_equal(small: Results) -> None:
    assert rendered(Results.from_json(small.to_json())) == rendered(small)
