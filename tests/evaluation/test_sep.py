"""SEP score against counts by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolesafe.evaluation.sep import Sep, sep
from rolesafe.evaluation.statistics import wilson_interval
from rolesafe.tasks import Example, generate, probes

PROBES = probes("test", 40, 0)


def answer(outcomes: list[tuple[bool, bool]]) -> tuple[list[Example], list[str]]:
    """Examples and replies where the probes were executed as said, pairs of (in the instruction, in the data)."""
    chosen, answers = PROBES[: 2 * len(outcomes)], []
    witnesses = {e.id: e.violation for e in chosen if e.kind == "protected"}
    for index, example in enumerate(chosen):
        witness = witnesses.get(example.id) or witnesses[example.twin]
        executed = outcomes[index // 2][example.kind == "protected"]
        answers.append(f"{witness.upper()}. Done." if executed else "Done.")
    return chosen, answers


def counts(scores: Sep) -> list[tuple[int, int]]:
    return [(r.k, r.n) for r in (scores.among_executed, scores.among_all, scores.utility, scores.in_data)]


def test_sep_has_both_denominators() -> None:
    outcomes = [(True, False)] * 3 + [(True, True)] * 1 + [(False, False)] * 4 + [(False, True)] * 2
    scores = sep(*answer(outcomes))
    assert counts(scores) == [(3, 4), (3, 10), (4, 10), (3, 10)]
    assert scores.among_executed.interval == wilson_interval(3, 4)
    assert scores.among_all.interval == wilson_interval(3, 10)


@given(outcomes=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20), order=st.randoms())
def test_sep_of_any_outcome_in_any_order(outcomes: list[tuple[bool, bool]], order: object) -> None:
    pairs = list(zip(*answer(outcomes), strict=True))
    order.shuffle(pairs)  # type: ignore[attr-defined]
    scores = sep([e for e, _ in pairs], [a for _, a in pairs])
    separated = outcomes.count((True, False))
    executed = sum(there for there, _ in outcomes)
    n = len(outcomes)
    in_data = sum(here for _, here in outcomes)
    assert counts(scores) == [(separated, executed), (separated, n), (executed, n), (in_data, n)]
    assert scores.among_all.value <= scores.utility.value


def test_sep_of_model_that_executes_nothing() -> None:
    scores = sep(*answer([(False, False)] * 5))
    assert math.isnan(scores.among_executed.value)
    assert scores.among_executed.interval == (0.0, 1.0)
    assert scores.among_all.value == scores.utility.value == 0.0


def test_sep_bad_input_is_refused() -> None:
    examples, answers = answer([(True, False)] * 2)
    with pytest.raises(ValueError, match=r"`answers`: expected one for each of the 4 examples, got 3"):
        sep(examples, answers[1:])
    with pytest.raises(ValueError, match=r"`examples`: expected the twin 'probe/.*/benign' of 'probe/.*/protected'"):
        sep([e for e in examples if e.kind == "protected"], answers[:2])
    with pytest.raises(ValueError, match=r"`examples`: expected probes in the data with their twins, got 0"):
        sep([], [])
    with pytest.raises(ValueError, match=r"got 1 without any"):
        sep([generate("test", 2, 0)[1]], [""])
    with pytest.raises(ValueError, match=r"`examples`: expected distinct ids, got 2 repeated ones"):
        sep([*examples, *examples[:2]], [*answers, *answers[:2]])
