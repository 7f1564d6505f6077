"""Depth report of bigram models, whose recovery and divergence are rows of a table; resumption; bad input."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

import rolesafe
from rolesafe import RoleConfig
from rolesafe.depth import Reply
from rolesafe.depth_report import DepthReport, DepthSettings, depth_report, measure
from rolesafe.depth_report.page import render_page
from rolesafe.depth_report.rows import headline, sections
from rolesafe.evaluation.verdict import NotMeasured
from rolesafe.tasks import generate
from tests.attacks.stubs import make_model
from tests.attacks.test_depth import DEEP, EXAMPLE, REFUSAL, SHALLOW, START, TOKENIZER, WANTED, bigram

SETTINGS = DepthSettings(samples=12, max_new_tokens=6, forced=(1, 2), continued=6, strength=4.0, discount=0.5)
RHO = TOKENIZER.convert_tokens_to_ids("I")


def shallow() -> Any:
    return bigram(*SHALLOW)


def base() -> Any:
    return bigram([START, *WANTED, 1], *SHALLOW[1:])


@pytest.fixture(scope="module")
def report() -> DepthReport:
    return depth_report(shallow(), TOKENIZER, [EXAMPLE], base=base(), settings=SETTINGS, name="mine", base_name="old")


def values(curve: Any) -> dict[int, Any]:
    return {point.at: point.value for point in curve}


def test_attacks_by_depth(report: DepthReport) -> None:
    own, foreign = report.prefilling
    assert (own.name, foreign.name) == ("own", "foreign")
    assert values(own.whole) == values(own.own) == {0: 0.0, 1: 1.0, 2: 1.0}
    assert values(report.insertion[0].whole) == dict.fromkeys(range(len(REFUSAL) + 1), 1.0)
    assert [one.name for one in report.insertion] == ["1 token", "4 tokens"]
    assert not isinstance(report.shortest, NotMeasured)
    assert report.shortest.attack == (1,)
    assert report.shortest.recovery == (1,)
    deep = depth_report(bigram(*DEEP), TOKENIZER, [EXAMPLE], settings=SETTINGS)
    assert {value for one in (*deep.prefilling, *deep.insertion) for value in values(one.whole).values()} == {0.0}
    assert not isinstance(deep.shortest, NotMeasured)
    assert deep.shortest.attack == (None,)
    assert deep.divergence == NotMeasured("not measured, there is no base model; pass `against`")


def test_recovery_and_prediction_are_those_of_the_tables(report: DepthReport) -> None:
    found = report.recovery
    assert not isinstance(found, NotMeasured)
    last = [START, *WANTED[:2]]
    ours, theirs = (m.table.detach().double().softmax(-1)[last, RHO] for m in (shallow(), base()))
    predicted = torch.sigmoid(torch.logit(theirs) + 4.0 * 0.5 ** torch.arange(1, 4))
    for curve, expected in ((found.model, ours), (found.base, theirs), (found.predicted, predicted)):
        assert [point.at for point in curve] == [0, 1, 2]
        assert [point.value for point in curve] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.error == pytest.approx(float((predicted - ours).abs().mean()), abs=1e-6)
    assert found.floor == pytest.approx(float(ours.min()), abs=1e-9)
    assert report.recovery_tokens == ("I",)


def test_divergence_splits_at_the_first_token(report: DepthReport) -> None:
    found = report.divergence
    assert not isinstance(found, NotMeasured)
    p, q = (m.table.detach()[START].double().log_softmax(-1) for m in (shallow(), base()))
    assert values(found.kl)[0] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)
    change = values(found.harm_change)
    assert change[0] < -0.9  # the first token decides between the refusal and the wanted reply
    assert sum(change.values()) == pytest.approx(-1.0, abs=0.01)  # from the harm of the base model to that of the model
    for at, functional in values(found.functional).items():
        assert functional == pytest.approx(2 * change[at] ** 2)
        assert values(found.incidental)[at] == pytest.approx(max(0.0, values(found.blocks)[at] - functional))


def test_rollouts_show_the_horizon(report: DepthReport) -> None:
    found = report.rollouts
    assert not isinstance(found, NotMeasured)
    assert found.harm.value == 0.0
    assert found.horizon.value == 0
    assert found.horizon.high is None  # 12 rollouts do not show a variance of 0.01
    assert values(found.recovery)[0] == pytest.approx(1.0, abs=1e-4)


def test_report_through_json_is_equal(report: DepthReport) -> None:
    assert DepthReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="`schema_version`: expected 1"):
        DepthReport.from_json('{"schema_version": 99}')


def test_page_and_rows_hold_every_measurement(report: DepthReport) -> None:
    page = render_page(dataclasses.replace(report, model="<b>mine</b>", complete=False))
    assert "<b>mine</b>" not in page
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "Interrupted" in page
    titles = [section.title for section in sections(report)]
    assert len(titles) == 5
    assert all(title in page for title in titles)
    assert page.count("data:image/png") == 10  # five charts in two themes
    assert "shortest attack prefix: median 1, least 1 tokens; 1 of 1 broken" in headline(report)


@pytest.mark.parametrize("stage", ["rollouts", "divergence", "insertion"])
def test_interrupted_report_resumes_to_the_same(stage: str, report: DepthReport) -> None:
    kept: list[Any] = []

    def stop(name: str, done: int, total: int) -> None:
        if name == stage and done == (1 if stage != "rollouts" else 4):
            raise KeyboardInterrupt

    given: dict[str, Any] = {
        "base": base(), "settings": dataclasses.replace(SETTINGS, batch_size=4), "name": "mine", "base_name": "old",
        "keep": lambda found, branches: kept.append((found, branches)),
    }  # fmt: skip
    part = depth_report(shallow(), TOKENIZER, [EXAMPLE], progress=stop, **given)
    assert not part.complete
    done, branches = kept[-1]
    assert done == part
    resumed: list[str] = []
    again = depth_report(
        shallow(), TOKENIZER, [EXAMPLE], done=done, branches=branches,
        progress=lambda name, *_: resumed.append(name), **given,
    )  # fmt: skip
    assert dataclasses.replace(again, settings=SETTINGS) == report
    assert resumed[0] == stage  # nothing measured is measured again


def test_role_aware_model_is_measured() -> None:
    model = rolesafe.patch(make_model(), RoleConfig(embedding="input"))
    found = depth_report(model, TOKENIZER, [EXAMPLE], settings=SETTINGS)
    assert found.complete
    assert found.roles is not None
    assert [point.at for point in found.prefilling[0].whole] == [0, 1, 2]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced": (2, 1)}, r"`forced`: expected rising numbers >= 1, got \(2, 1\)"),
        ({"forced": ()}, "`forced`: expected rising numbers"),
        ({"lengths": (0,)}, "`lengths`: expected rising numbers"),
        ({"samples": 0}, "`samples`: expected a number >= 1, got 0"),
        ({"strength": -1.0}, "`strength`: expected a positive number or None, got -1.0"),
        ({"discount": 1.5}, r"`discount`: expected a number in \(0, 1\], got 1.5"),
        ({"target": 1.0}, r"`target`: expected a probability in \(0, 1\), got 1.0"),
        ({"tolerance": 0.3}, r"`tolerance`: expected a variance in \(0, 0.25\), got 0.3"),
        ({"families": ("magic",)}, "`families`: expected some of"),
    ],
)
def test_settings_out_of_range_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthSettings(**changes)


def test_prefix_longer_than_the_context_raises() -> None:
    with pytest.raises(ValueError, match="`forced`: expected harmful prefixes of 900 tokens that fit into the model's"):
        depth_report(make_model(), TOKENIZER, [EXAMPLE], settings=dataclasses.replace(SETTINGS, forced=(900,)))


def test_base_that_refuses_everything_raises() -> None:
    table = torch.full((len(TOKENIZER), len(TOKENIZER)), -30.0)
    table[:, RHO] = 30.0
    refusing = type(shallow())(table).eval()
    with pytest.raises(ValueError, match="`against`: expected a base model that complies after some prefix, got one"):
        depth_report(shallow(), TOKENIZER, [EXAMPLE], base=refusing, settings=SETTINGS)


def test_other_tokenizer_of_the_base_raises() -> None:
    other = copy.deepcopy(TOKENIZER)
    other.add_tokens(["zzz"])
    with pytest.raises(ValueError, match="`base_tokenizer`: expected the vocabulary of `tokenizer`"):
        depth_report(shallow(), TOKENIZER, [EXAMPLE], base=base(), base_tokenizer=other, settings=SETTINGS)


def test_without_recovery_token_or_examples_raises() -> None:
    with pytest.raises(ValueError, match="`recovery`: expected at least one token that begins a refusal"):
        depth_report(
            shallow(), TOKENIZER, [EXAMPLE], settings=dataclasses.replace(SETTINGS, recovery=("unheardof",))
        )  # fmt: skip
    with pytest.raises(ValueError, match="`examples`: expected protected examples"):
        depth_report(shallow(), TOKENIZER, [e for e in generate("test", 6, 0) if e.kind == "benign"])


def test_report_of_another_run_is_not_continued(report: DepthReport) -> None:
    for changes, message in (
        ({"settings": dataclasses.replace(SETTINGS, seed=5)}, "`done`: expected a report with settings"),
        ({"base": bigram(*DEEP)}, "`done`: expected a report with fingerprint"),
    ):
        given: Any = {"base": base(), "settings": SETTINGS, **changes}
        with pytest.raises(ValueError, match=message):
            depth_report(shallow(), TOKENIZER, [EXAMPLE], done=report, **given)


def test_harm_is_the_violation_of_the_conversation() -> None:
    talk = measure.conversation(EXAMPLE)
    harm = measure.ViolationHarm([EXAMPLE])
    assert harm([Reply(talk, (1,), EXAMPLE.wanted), Reply(talk, (1,), EXAMPLE.reply)]) == [1.0, 0.0]
