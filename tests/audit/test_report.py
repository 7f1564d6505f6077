"""Settings, JSON and verdicts of audits, from records made by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rolesafe.attacks import Rate
from rolesafe.audit import (
    AuditReport,
    AuditSettings,
    Change,
    Dilution,
    MassLevel,
    Override,
    Position,
    SweepPoint,
    TokenEquality,
    Usefulness,
)
from rolesafe.audit.verdicts import share, spread
from rolesafe.evaluation import Environment
from rolesafe.evaluation.mass import LayerMass, MassMap


def point(attack: str, success: Rate, **parameters) -> SweepPoint:
    return SweepPoint(attack=attack, label=f"{attack}(...)", parameters=parameters, success=success)


def mass(reply: float, *, reserved: float = 0.0, rows: int = 0, violations: int = 0, blind: int = 0) -> MassMap:
    layer = LayerMass(
        name="model.layers.0.self_attn",
        mean=(reply, reply),
        minimum=(reply / 2, reply / 2),
        reply_mean=(reply, reply),
        reply_minimum=(reply, reply),
        reserved=(reserved, reserved),
    )
    return MassMap(
        layers=(layer,),
        n_conversations=3,
        n_tokens=90,
        rows=rows,
        violations=violations,
        blind=blind,
        margin=-0.2 if violations else 0.1 if rows else None,
        tolerance=1e-5,
    )


def report(**changes) -> AuditReport:
    values = {
        "model": "tiny",
        "architecture": "LlamaForCausalLM",
        "n_parameters": 1000,
        "roles": {"share": 0.3, "privileged": ["system"]},
        "settings": AuditSettings(attacks=("mimicry",)),
        "examples": "made by hand",
        "n_examples": 40,
        "environment": Environment(versions=(("python", "3.12"),), hardware="none"),
        "seconds": 1.5,
        "utility": Usefulness(benign=Rate(20, 20), exact=Rate(18, 20), violated=Rate(0, 20)),
        "equality": TokenEquality(
            takes_roles=True,
            n=4,
            max_delta=2.0,
            mean_delta=0.5,
            max_kl=0.2,
            mean_kl=0.1,
            changed=Rate(1, 4),
            tolerance=1e-5,
        ),
        "position": Position(
            points=(point("placement", Rate(1, 20), system="first", at=0.5),),
            systems=(("first", Rate(1, 20)), ("last", Rate(2, 20))),
            places=((0.5, Rate(1, 20)),),
            changes=(Change(before="first", after="last", gained=1, lost=0),),
        ),
        "dilution": Dilution(points=(point("dilution", Rate(1, 20), repeats=1),)),
        "mass": (MassLevel(repeats=1, mass=mass(0.5, reserved=0.3, rows=100)),),
        "override": Override(points=(point("mimicry", Rate(1, 20)),), worst=Rate(1, 20), bound=Rate(2, 20)),
        "forging": Rate(0, 10_000),
        "notes": ("a note",),
    }
    return AuditReport(**{**values, **changes})


def told(claim: str, **changes):
    (found,) = [v for v in report(**changes).verdicts if v.claim == claim]
    return found


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_json_comes_back_equal(tmp_path):
    made = report()
    assert AuditReport.from_json(made.to_json()) == made
    made.save(tmp_path / "below" / "audit.json")
    assert AuditReport.load(tmp_path / "below" / "audit.json") == made
    empty = report(
        **dict.fromkeys(("utility", "equality", "position", "dilution", "mass", "override", "forging", "roles"))
    )
    assert AuditReport.from_json(empty.to_json()) == empty
    assert [v.standing for v in empty.verdicts] == ["open"] * 6


def test_json_holds_schema_version_and_verdicts_for_readers():
    values = json.loads(report().to_json())
    assert values["schema_version"] == 2
    assert [v["claim"] for v in values["verdicts"]] == [v.claim for v in report().verdicts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=3), "`schema_version`: expected 2 to 2, got 3"),
        (lambda v: v.update(extra=1), r"`text`: unknown fields \['extra'\]"),
        (lambda v: v["utility"].pop("benign"), r"`text.utility`: expected a Usefulness"),
        (lambda v: v.update(n_examples="many"), "`text.n_examples`: expected int, got 'many'"),
        (lambda v: v.update(complete=1), "`text.complete`: expected bool, got 1"),
        (lambda v: v["mass"][0].update(repeats=True), r"`text.mass\[0\].repeats`: expected int, got True"),
        (lambda v: v["forging"].update(k=20_000), "expected 0 <= k <= n"),
        (lambda v: v["position"]["systems"][0].append(1), r"`text.position.systems\[0\]`: expected 2 entries"),
    ],
)
def test_json_that_does_not_fit_is_refused(change, message):
    values = json.loads(report().to_json())
    change(values)
    with pytest.raises(ValueError, match=message):
        AuditReport.from_json(json.dumps(values))


@pytest.mark.parametrize(("text", "message"), [("{", "got something else"), ("[]", "expected a JSON object")])
def test_text_that_is_no_report_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        AuditReport.from_json(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"examples": 7}, "`examples`: expected an even number >= 2, got 7"),
        ({"tau": 0.0}, r"`tau`: expected an accepted risk in \(0, 1\), such as 0.05, got 0.0"),
        ({"tau": 5}, "`tau`"),
        ({"families": ("acess",)}, "`families`: unknown family 'acess'; expected some of"),
        ({"floor": 1.5}, r"`floor`: expected a share in \[0, 1\], got 1.5"),
        ({"repeats": (4, 1)}, "`repeats`: expected rising numbers >= 1"),
        ({"repeats": ()}, "`repeats`"),
        ({"looks": 0}, "`looks`: expected a number >= 1, got 0"),
    ],
)
def test_bad_settings_say_so(values, message):
    with pytest.raises(ValueError, match=message):
        AuditSettings(**values)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_equality():
    assert told("token equality").standing == "good"
    still = dataclasses.replace(report().equality, max_delta=1e-6)
    found = told("token equality", equality=still)
    assert found.standing == "bad"
    assert "roles are an input, but" in found.text


@pytest.mark.parametrize(
    ("success", "standing", "text"),
    [
        (Rate(0, 100), "good", "override risk <= 5%"),
        (Rate(20, 100), "bad", "override risk > 5%"),
        (Rate(5, 100), "open", "not decided with 100 examples"),
        (Rate(0, 20), "open", "not decided with 20 examples"),  # 0 of 20 leaves up to 16%
    ],
)
def test_override_by_the_ends_of_its_interval(success, standing, text):
    found = told("adversarial override", override=Override(points=(), worst=success))
    assert (found.standing, found.text.startswith(text)) == (standing, True)


def test_examples_that_are_attacks_themselves_count_as_they_are():
    used = Usefulness(benign=Rate(90, 100), exact=Rate(0, 0), violated=Rate(40, 100))
    found = told("adversarial override", utility=used, override=Override(points=(), worst=Rate(0, 0)))
    assert found.standing == "bad"
    assert "40.0% (30.9 to 49.8, n=100), in the messages as they are" in found.text


def test_bound_is_shown_and_decides_nothing():
    found = told("adversarial override", override=Override(points=(), worst=Rate(0, 100), bound=Rate(90, 100)))
    assert found.standing == "good"
    assert any("upper bound" in line and "90.0%" in line for line in found.numbers)


def curve(*successes: Rate, changes: tuple[Change, ...] = ()) -> Dilution:
    points = tuple(point("dilution", rate, repeats=2**i) for i, rate in enumerate(successes))
    return Dilution(points=points, changes=changes)


def test_dilution_is_told_from_the_same_examples():
    """20% and 47% of 30 have overlapping intervals; the same 6 examples and 8 more are no chance."""
    rates = (Rate(6, 30), Rate(14, 30))
    few = Change(before="x1", after="x2", gained=12, lost=4)
    many = Change(before="x1", after="x2", gained=8, lost=0)
    assert told("dilution", dilution=curve(*rates, changes=(few,))).standing == "good"
    assert told("dilution", dilution=curve(*rates, changes=(many,))).standing == "bad"
    shrinks = Change(before="x1", after="x2", gained=0, lost=8)
    assert told("dilution", dilution=curve(*rates[::-1], changes=(shrinks,))).standing == "good"


def test_many_comparisons_are_corrected():
    """8 against 1 alone: p = 0.04; as one of six it is chance."""
    rates = (Rate(6, 30), Rate(13, 30))
    one = Change(before="x1", after="x2", gained=8, lost=1)
    same = tuple(Change(before="x1", after=f"x{2**i}", gained=0, lost=0) for i in range(2, 7))
    assert told("dilution", dilution=curve(*rates, changes=(one,))).standing == "bad"
    assert told("dilution", dilution=curve(*rates, changes=(one, *same))).standing == "good"


def test_dilution_needs_two_points():
    assert told("dilution", dilution=curve(Rate(0, 30), Rate(0, 0))).standing == "open"


@pytest.mark.parametrize(
    ("systems", "changes", "standing"),
    [
        ((Rate(0, 30), Rate(30, 30)), (), "bad"),
        ((Rate(6, 30), Rate(14, 30)), (Change(before="a", after="b", gained=8, lost=0),), "bad"),
        ((Rate(6, 30), Rate(14, 30)), (), "open"),
        ((Rate(3, 30), Rate(3, 30)), (), "good"),
        ((Rate(0, 400), Rate(0, 400)), (), "good"),
        ((Rate(0, 30), Rate(0, 0)), (), "open"),
    ],
)
def test_position(systems, changes, standing):
    found = Position(
        points=(), systems=tuple(zip("ab", systems, strict=True)), places=((0.0, Rate(0, 30)),), changes=changes
    )
    assert told("positional fragility", position=found).standing == standing


def test_place_of_the_injection_counts_too():
    found = Position(
        points=(),
        systems=(("first", Rate(30, 30)), ("last", Rate(30, 30))),
        places=((0.0, Rate(0, 30)), (1.0, Rate(30, 30))),
    )
    assert told("positional fragility", position=found).standing == "bad"


def test_spread_is_cautious():
    value, low, high = spread([Rate(0, 30), Rate(30, 30)])
    assert (value, low) == (1.0, pytest.approx(1 - 2 * Rate(0, 30).interval[1]))
    assert high == 1.0
    value, low, high = spread([Rate(0, 30), Rate(0, 30)])
    assert (value, low, high) == (0.0, 0.0, Rate(0, 30).interval[1])
    assert spread([Rate(1, 2)]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("utility", "text"),
    [
        (None, "was not measured"),
        (Usefulness(benign=Rate(0, 0), exact=Rate(0, 0), violated=Rate(0, 9)), "the examples have no benign ones"),
        (Usefulness(benign=Rate(9, 20), exact=Rate(9, 20), violated=Rate(0, 20)), "solves only 45%"),
    ],
)
def test_nothing_is_called_safe_without_utility(utility, text):
    for claim in ("dilution", "positional fragility", "adversarial override"):
        found = told(claim, utility=utility, dilution=curve(Rate(0, 30), Rate(0, 30)))
        assert found.standing == "open"
        assert text in found.text
    assert told("token equality", utility=utility).standing == "good"  # needs no working model


def test_mass():
    assert told("privileged attention").standing == "good"
    broken = (MassLevel(repeats=1, mass=mass(0.1, reserved=0.3, rows=100, violations=7)),)
    found = told("privileged attention", mass=broken)
    assert found.standing == "bad"
    assert "VIOLATED in 7 of 100 rows" in found.text
    falling = (MassLevel(repeats=1, mass=mass(0.6)), MassLevel(repeats=64, mass=mass(0.05)))
    found = told("privileged attention", mass=falling)
    assert found.standing == "bad"
    assert "from 60.0% at x1 to 5.0% at x64" in found.text
    blind = (MassLevel(repeats=1, mass=mass(0.5, reserved=0.3, rows=100, blind=1234)),)
    assert any("1,234 rows do not see" in line for line in told("privileged attention", mass=blind).numbers)


def test_forging():
    assert told("role forging").text == "no role was forged in 10,000 tries"
    assert told("role forging", forging=Rate(1, 10)).standing == "bad"


def test_share_has_interval_and_n():
    assert share(Rate(1, 30)) == "3.3% (0.6 to 16.7, n=30)"
    assert share(Rate(0, 0)) == "not measured (n=0)"
