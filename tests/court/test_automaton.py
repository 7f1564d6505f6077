"""The automaton of phrases against brute force over all short texts of tiny vocabularies."""

from __future__ import annotations

import itertools
import random

import pytest

from rolesafe.court.automaton import PhraseAutomaton
from rolesafe.court.normalise import Normalisation
from tests.court.naive import breaks, naive, vocabulary

E_ACUTE = "é".encode()
EURO = "€".encode()  # three bytes

CASES = {
    "plain": (("a", "b", "ab", "ba", "abab", "c"), ("aba", "cc", "bcb"), {}),
    "overlap": (("a", "aa", "ab", "b", "aab"), ("aaab", "abaa"), {}),
    "inside": (("x", "y", "xyx", "zxyxz", "z"), ("xyx", "yz"), {}),
    "case": (("A", "b", "aB", "ß", "s", "S"), ("Ass", "bS"), {}),
    "exact_case": (("A", "a", "b", "B", "ab"), ("aB", "Ab"), {"case": False}),
    "collapse": (("a", " ", "  ", " b", "b ", "\n", "\t c"), ("a b", "b  c", " c a "), {}),
    "collapse_whole": ((" a", "a b", "  b", "b", " ", "a  b c"), ("a b", "b a"), {}),
    "exact_spaces": (("a", " ", "  ", " b", "\n"), ("a  b", "\na", " \n"), {"spaces": "exact"}),
    "ignored_spaces": (("a", " ", " b", "b\n", "c", "\u00a0"), ("abc", "ca"), {"spaces": "ignore"}),
    "zero_width": (("a", "\u200b", "b\u200d", "\ufeffa", " ", "\u00ad"), ("ab", "a a"), {}),
    "visible_zero_width": (("a", "\u200b", "b", "\u200bb"), ("ab", "a\u200bb"), {"zero_width": False}),
    "ignored": (("a", "-", ".b", "b-", "c"), ("ab", "bca"), {"ignored": "-."}),
    "lookalikes": (("a", "\u0430", "\u0301", "b\u0301", "\uff42", " "), ("ab", "a b"), {"lookalikes": True}),
    "bytes": ((E_ACUTE[:1], E_ACUTE[1:], "a", b"a\xc3", b"\xa9a", "é"), ("aé", "éa", "é é"), {}),
    "three_bytes": ((EURO[:1], EURO[1:2], EURO[2:], EURO[:2], b"\x82\xaca", "a"), ("€a", "a€", "aa"), {}),
    "broken_bytes_count": ((EURO[:1], EURO[1:], "a", "b", b"a\xe2", b"\xac"), ("ab", "a€"), {"zero_width": False}),
    "bytes_and_spaces": ((E_ACUTE[:1], E_ACUTE[1:], " ", " a", b" \xc3", "a"), ("a é", "é a"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_forbidden_equals_brute_force(name):
    """All texts of up to 4 tokens: no violation is allowed, and no token is vetoed that breaks nothing."""
    pieces, phrases, options = CASES[name]
    words, normal = vocabulary(*pieces), Normalisation(**options)
    automaton = PhraseAutomaton(words, [normal.phrase(p) for p in phrases], normal)
    states = {(): automaton.start}
    seen = vetoed = 0
    for length in range(4):
        for ids in itertools.product(range(len(pieces)), repeat=length):
            if ids not in states:
                continue
            forbidden = set(automaton.forbidden(states[ids]).tolist())
            for token in range(len(pieces)):
                text = b"".join(words.pieces[i] for i in (*ids, token)).decode("utf-8", "replace")
                broken = breaks(text, phrases, **options)
                assert (token in forbidden) == broken, (name, ids, token, text)
                after = automaton.step(states[ids], token)
                assert (after is None) == broken
                assert (automaton.blame(states[ids], token) is not None) == broken
                assert (automaton.holds(text) is not None) == broken
                if not broken:
                    states[(*ids, token)] = after
                seen, vetoed = seen + 1, vetoed + broken
    assert seen > 100
    assert 0 < vetoed < seen


@pytest.mark.parametrize("seed", range(12))
def test_forbidden_equals_brute_force_random(seed):
    """Random vocabularies, phrases and options, random long texts."""
    rng = random.Random(seed)
    alphabet = ["a", "b", "A", " ", "\n", "\u200b", "é", "\u0430", "-", "ß"]
    options = {
        "case": rng.random() < 0.5,
        "spaces": rng.choice(["exact", "collapse", "ignore"]),
        "zero_width": rng.random() < 0.5,
        "lookalikes": rng.random() < 0.5,
        "ignored": rng.choice(["", "-"]),
    }
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 4))).encode() for _ in range(12)]
    texts += [b"\xc3", b"\xa9", b"\xd0", b"\xb0", b"\xe2\x80", b"\x8b"]
    words, normal = vocabulary(*texts), Normalisation(**options)
    phrases = ["".join(rng.choices(alphabet, k=rng.randint(2, 4))) for _ in range(4)]
    phrases = [p for p in phrases if naive(p, **options).strip()]
    automaton = PhraseAutomaton(words, [normal.phrase(p) for p in phrases], normal)
    for _ in range(15):
        state, data = automaton.start, b""
        for _ in range(12):
            forbidden = set(automaton.forbidden(state).tolist())
            found = {
                i for i, t in enumerate(texts) if breaks((data + t).decode("utf-8", "replace"), phrases, **options)
            }
            assert forbidden == found, (options, phrases, data)
            left = sorted(set(range(len(texts))) - found)
            if not left:
                break
            token = rng.choice(left)
            state, data = automaton.step(state, token), data + texts[token]


def test_states_are_not_mutated():
    """A state may be used again after longer texts: beams and rejected candidates."""
    words, normal = vocabulary("a", "b", "c"), Normalisation()
    automaton = PhraseAutomaton(words, ["abc", "ac"], normal)
    one = automaton.step(automaton.start, 0)
    before = automaton.forbidden(one).tolist()
    for token in (1, 0, 1):
        automaton.step(automaton.step(one, token) or one, 1)
    assert automaton.forbidden(one).tolist() == before == [2]


def test_hidden_token_raises():
    automaton = PhraseAutomaton(vocabulary("a"), ["a"], Normalisation())
    with pytest.raises(ValueError, match="expected an ordinary token, got the id 1"):
        automaton.step(automaton.start, 1)
