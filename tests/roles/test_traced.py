"""`Traced`: every operation equals that of `str`, and keeps the sources."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rolesafe.roles.traced import Kind, Source, Traced, join, printed, traced
from rolesafe.roles.traced_data import to_json

TEMPLATE, CONTENT, OTHER = Source(Kind.TEMPLATE, 0, 1), Source(Kind.CONTENT, 1), Source(Kind.CONTENT, 2)
TEXT = st.text("ab \n.,xX", max_size=8)


@st.composite
def traced_texts(draw):
    pieces = draw(st.lists(st.tuples(TEXT, st.sampled_from([TEMPLATE, CONTENT, OTHER])), min_size=1, max_size=4))
    return join("", [Traced.of(text, source) for text, source in pieces])


def characters(text: str) -> list[tuple[str, Source]]:
    out, at = [], 0
    for length, source in traced(text)._runs:
        out += [(c, source) for c in str.__str__(text)[at : at + length]]
        at += length
    assert at == len(text)
    return out


OPERATIONS = {
    "strip": lambda s: s.strip(),
    "lstrip": lambda s: s.lstrip(" a"),
    "rstrip": lambda s: s.rstrip("\n"),
    "slice": lambda s: s[1:-1],
    "step": lambda s: s[::-1],
    "upper": lambda s: s.upper(),
    "title": lambda s: s.title(),
    "prefix": lambda s: s.removeprefix("a"),
    "suffix": lambda s: s.removesuffix("b"),
    "last of split": lambda s: s.split("a")[-1],
    "first of words": lambda s: (s.split() or [s])[0],
    "rsplit": lambda s: s.rsplit("b", 1)[0],
    "lines": lambda s: s.splitlines()[-1] if s.splitlines() else s,
    "partition": lambda s: s.partition("x")[2],
    "rpartition": lambda s: s.rpartition("x")[0],
    "twice": lambda s: s * 2,
    "added": lambda s: s + s,
    "joined": lambda s: s.join([s, s]),
    "letters": lambda s: "".join(list(s)) if type(s) is str else join("", list(s)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=traced_texts())
@settings(max_examples=60, deadline=None)
def test_traced_operation_equals_str_and_keeps_sources(name, text):
    got = OPERATIONS[name](text)
    assert str.__str__(got) == OPERATIONS[name](str.__str__(text))
    known = {(c.casefold(), source) for c, source in characters(text)}
    assert {(c.casefold(), source) for c, source in characters(got)} <= known


@given(text=traced_texts(), old=st.sampled_from(["a", "ab", "\n", "x"]), new=st.sampled_from(["", "<marker>", "a"]))
@settings(max_examples=200, deadline=None)
def test_replace_keeps_source_of_content(text, old, new):
    got = text.replace(old, Traced.of(new, TEMPLATE))
    assert str.__str__(got) == str.__str__(text).replace(old, new)
    written = sum(source.kind is Kind.TEMPLATE for _, source in characters(text))
    replaced = str.__str__(text).count(old) * len(new)
    if all(source.kind is not Kind.TEMPLATE for _, source in characters(text)):
        assert all(source.kind is not Kind.TEMPLATE for _, source in characters(got))
    assert sum(source.kind is Kind.TEMPLATE for _, source in characters(got)) <= written + replaced


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    options=st.sampled_from(
        [{}, {"indent": 2}, {"ensure_ascii": True}, {"separators": (",", ":")}, {"indent": 4, "sort_keys": True}]
    ),
)
@settings(max_examples=300, deadline=None)
def test_to_json_equals_json_dumps(value, options):
    expected = json.dumps(value, **{"ensure_ascii": False, **options})
    assert str.__str__(to_json(value, **options)) == expected


def test_untraced_operation_gives_no_template_text():
    mixed = Traced.of("a", CONTENT) + Traced.of("<m>", TEMPLATE) + Traced.of("b", OTHER)
    assert {source.kind for _, source in characters(mixed.translate({97: "<m>"}))} == {Kind.UNKNOWN}
    assert {source for _, source in characters(Traced.of("a", CONTENT).translate({97: "<m>"}))} == {CONTENT}


def test_formats_keep_sources():
    value = Traced.of("hi", CONTENT)
    for text in (Traced.of("<{}>", TEMPLATE).format(value), Traced.of("<%s>", TEMPLATE) % value):
        assert characters(text) == [("<", TEMPLATE), ("h", CONTENT), ("i", CONTENT), (">", TEMPLATE)]
    assert {source.kind for _, source in characters(printed(7))} == {Kind.TEMPLATE}
