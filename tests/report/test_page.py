"""HTML page: self-contained, with untrusted text escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest

from rolesafe.report.view import Curve, ModelLine, Reply, Transcript, View

pytest.importorskip("matplotlib")

from rolesafe.report.jinja import LONGEST_MESSAGE
from rolesafe.report.page import render_page
from tests.report.html_reader import Reader

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</div></article></main><iframe src=javascript:alert(1)>",
    "--><style>body{display:none}</style>",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;script&gt;",
    "<a href='https://evil.example/?q='>",
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "\u202e\u200b\x1b[31m\x00",
)
TAGS = """html head meta title style body main h1 h2 h3 p ul li span b figure picture source img div table thead tr th
tbody td article pre details summary dl dt dd"""


def hostile_view(make_view: Callable[..., View], text: str) -> View:
    """A view with `text` in every place that takes text."""
    view = make_view()
    names = {"plain": f"plain {text}", "role-aware": f"role-aware {text}"}
    return make_view(
        models=tuple(ModelLine(name=names[model.name], about=text) for model in view.models),
        curves=tuple(Curve(model=names[curve.model], points=curve.points) for curve in view.curves),
        rows=tuple(type(row)(label=text, kind=row.kind, means=row.means) for row in view.rows),
        headline=text,
        partial=text,
        notes=(text,),
        command=text,
        settings=((text, ((text, text),)),),
        transcripts=(
            Transcript(
                title=text,
                messages=(("system", text), (text, text)),
                replies=tuple(Reply(model=name, text=text, leaked=True) for name in names.values()),
            ),
        ),
    )


@pytest.fixture(scope="module")
def harmless_tags(make_view: Callable[..., View]) -> list[str]:
    return Reader(render_page(hostile_view(make_view, "harmless"))).tags


@pytest.mark.parametrize("text", HOSTILE)
def test_page_hostile_text_is_escaped(make_view: Callable[..., View], harmless_tags: list[str], text: str) -> None:
    html = render_page(hostile_view(make_view, text))
    page = Reader(html)
    assert set(page.tags) <= set(TAGS.split())
    assert page.tags == harmless_tags
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("href", "action", "formaction")
    ]
    spelled = text.replace("\u202e", "\\u202e").replace("\u200b", "\\u200b").replace("\x1b", "\\x1b")
    assert page.text.count(spelled.replace("\x00", "\\x00")) >= 10, "the text is there, for a reader to see"
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b\u202a-\u202e\u2066-\u2069]", html)


def test_page_loads_nothing_external(make_view: Callable[..., View]) -> None:
    html = render_page(make_view())
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    page = Reader(html)
    loaded = [value for name, value in page.attributes if name in ("src", "srcset", "href", "data", "poster")]
    assert len(loaded) == 2
    for value in loaded:
        assert base64.b64decode(value.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_page_policy_forbids_scripts_and_loading(make_view: Callable[..., View]) -> None:
    html = render_page(make_view())
    policy = dict(Reader(html).attributes)  # the last of a name wins; the policy is looked up below
    assert "Content-Security-Policy" in html
    assert policy
    content = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert content is not None
    assert content.group(1).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_page_has_viewport_and_dark_theme(make_view: Callable[..., View]) -> None:
    html = render_page(make_view())
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    assert '<html lang="en">' in html


def test_page_has_utility_before_attack_success(make_view: Callable[..., View]) -> None:
    text = Reader(render_page(make_view())).text
    assert text.index("Utility (higher is better)") < text.index("Attack success (lower is better)")
    for figure in (
        "97.0%",
        "95.0%",
        "not measured",
        "3 seeds",
        "rolesafe demo --seeds 3",
        "embedding",
        "abc123",
        "heron",
    ):
        assert figure in text
    assert "attack succeeded" in text
    assert "held" in text


def test_page_marks_a_partial_run(make_view: Callable[..., View]) -> None:
    assert "Partial results" not in Reader(render_page(make_view())).text
    text = Reader(render_page(make_view(partial="stopped after 2 of 3 seeds"))).text
    assert "Partial results: stopped after 2 of 3 seeds" in text


def test_page_empty_run_renders(make_view: Callable[..., View]) -> None:
    html = render_page(make_view(rows=(), curves=(), transcripts=(), settings=(), command="", partial="nothing yet"))
    assert "nothing yet" in html


def test_page_long_message_is_cut(make_view: Callable[..., View]) -> None:
    transcript = Transcript(title="long", messages=(("user", "x" * (LONGEST_MESSAGE + 77)),), replies=())
    assert "77 characters left out" in Reader(render_page(make_view(transcripts=(transcript,)))).text
