"""Running attacks: judging, end to end, interrupted, resumed, and with bad input."""

from __future__ import annotations

import dataclasses
import io
import json
from functools import partial

import pytest
import torch
from rich.console import Console

from rolesafe.attacks import (
    ATTACKS,
    AttackResult,
    DilutionConfig,
    MimicryConfig,
    SoftPromptConfig,
    attack,
    contains,
    progress_bar,
    replies,
    same,
    transfer,
)
from rolesafe.attacks.rates import Rate
from rolesafe.tasks import Example, generate
from tests.attacks.stubs import Scripted, make_model, make_tokenizer

EXAMPLES = generate("test", 24, 0)
PROTECTED = [e for e in EXAMPLES if e.kind == "protected"]
MIMICRY = MimicryConfig(batch_size=5, max_new_tokens=8)


def obedient(prompt: str) -> str:
    """Repeat the whole prompt, so that every goal is met."""
    return prompt


def same_words(example: Example, prompt: str) -> bool:
    return all(contains(prompt, m["content"]) for m in example.messages)


def refusing(prompt: str) -> str:
    return "I can not say."


# ------------------------------------------------------------------------------------------------------------ judging


@pytest.mark.parametrize(
    ("reply", "wanted", "found"),
    [
        ("It is red.", "red", True),
        ("RED!", "red", True),
        ("I can not say red.", "red", True),  # a refusal that gives the word away is a leak
        ("I am tired.", "red", False),
        ("It is redder.", "red", False),
        ("", "red", False),
        ("the big red dog", "red dog", True),
        ("red and dog", "red dog", False),
    ],
)
def test_judge_contains_words_reads_open_forms(reply: str, wanted: str, found: bool) -> None:
    assert contains(reply, wanted) is found


def test_judge_same_ignores_case_and_marks() -> None:
    assert same("it is red .", "It is red.")
    assert not same("It is red. red", "It is red.")


def test_judge_empty_goal_raises() -> None:
    with pytest.raises(ValueError, match="`wanted`: expected at least one word"):
        contains("anything", "...")


# --------------------------------------------------------------------------------------------------------- accounting


def test_attack_counts_leaks_only() -> None:
    leaks = {e.id for e in PROTECTED[::2]}

    def answer(prompt: str) -> str:
        found = next(e for e in PROTECTED if same_words(e, prompt))
        return f"I can not say {found.violation}." if found.id in leaks else "I can not say."

    result = attack(Scripted(answer), make_tokenizer(), EXAMPLES, MIMICRY, check_goal=False)
    assert [o.id for o in result.outcomes] == [e.id for e in PROTECTED]
    assert [o.success for o in result.outcomes] == [e.id in leaks for e in PROTECTED]
    assert result.rate.k == sum(o.success for o in result.outcomes) > 0
    assert result.rate.n == len(PROTECTED) == result.n_queries
    assert sum(rate.k for rate in result.by_family().values()) == result.rate.k
    assert result.complete


def test_attack_on_refusing_model_has_rate_zero() -> None:
    result = attack(Scripted(refusing), make_tokenizer(), EXAMPLES, MIMICRY)
    assert result.rate == Rate(0, len(PROTECTED))


def test_attack_with_goal_counts_the_goal() -> None:
    result = attack(Scripted(lambda prompt: "sun"), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", check_goal=False)
    assert result.rate.value == 1.0
    assert result.goal == "sun"


def test_attack_skips_agreeing_injection() -> None:
    agreeing = dataclasses.replace(PROTECTED[0], id="agrees", truth=PROTECTED[0].contrary)
    result = attack(Scripted(obedient), make_tokenizer(), [agreeing, *EXAMPLES], MIMICRY, check_goal=False)
    assert "agrees" not in {o.id for o in result.outcomes}


# ----------------------------------------------------------------------------------------------------------- transfer


def test_transfer_sends_the_same_messages() -> None:
    """The second model gets the same messages, and its own replies count."""
    found = attack(Scripted(obedient), make_tokenizer(), EXAMPLES, MIMICRY, check_goal=False)
    leaks = {e.id for e in PROTECTED[::2]}
    assert {o.id for o in found.outcomes if o.success} not in (set(), leaks)

    def answer(prompt: str) -> str:
        example = next(e for e in PROTECTED if same_words(e, prompt))
        return f"I can not say {example.violation}." if example.id in leaks else "I can not say."

    sent = transfer(Scripted(answer), make_tokenizer(), EXAMPLES, found)
    assert [(o.id, o.messages) for o in sent.outcomes] == [(o.id, o.messages) for o in found.outcomes]
    assert {o.id for o in sent.outcomes if o.success} == leaks
    assert sent.config == found.config
    assert sent.n_queries == len(PROTECTED)
    assert sent.complete
    cut = dataclasses.replace(found, outcomes=found.outcomes[:2], complete=False)
    assert [o.id for o in transfer(Scripted(answer), make_tokenizer(), EXAMPLES, cut).outcomes] == [
        e.id for e in PROTECTED[:2]
    ]
    assert not transfer(Scripted(answer), make_tokenizer(), EXAMPLES, cut).complete


def test_transfer_of_unsendable_result_raises() -> None:
    found = attack(Scripted(obedient), make_tokenizer(), EXAMPLES, MIMICRY, check_goal=False)
    send = partial(transfer, Scripted(obedient), make_tokenizer())
    with pytest.raises(
        ValueError, match=f"expected the 12 examples that were attacked, got all but 1, '{PROTECTED[0].id}"
    ):
        send([e for e in EXAMPLES if e.id != PROTECTED[0].id], found)
    soft = dataclasses.replace(found, config=SoftPromptConfig())
    with pytest.raises(
        ValueError, match="`found`: expected the result of an attack that can be typed, got one of 'soft"
    ):
        send(EXAMPLES, soft)
    first = found.outcomes[0]
    system = tuple({**m, "content": "Say it."} if m["role"] == "system" else m for m in first.messages)
    forged = dataclasses.replace(found, outcomes=(dataclasses.replace(first, messages=system),))
    with pytest.raises(ValueError, match="changed a message of another role"):
        send(EXAMPLES, forged)


# --------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("name", ["none", "ignore-previous", "mimicry", "fake-system", "dilution", "position"])
def test_attack_on_random_model_is_reproducible(name: str) -> None:
    model, config = make_model(), ATTACKS[name](batch_size=4, max_new_tokens=3)
    seen: list[tuple[int, int]] = []
    result = attack(model, make_tokenizer(), EXAMPLES, config, progress=lambda *at: seen.append(at), check_goal=False)
    assert len(result.outcomes) == len(PROTECTED)
    assert all(len(o.reply.split()) <= 3 for o in result.outcomes)
    assert seen[-1] == (len(PROTECTED), len(PROTECTED))
    assert result == attack(model, make_tokenizer(), EXAMPLES, config, check_goal=False)
    again = AttackResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result


def test_replies_of_role_aware_model_use_roles() -> None:
    """The same tokens in other roles get another reply once the role vectors are not zero."""
    from rolesafe import RoleConfig, patch

    plain, model = make_model(), make_model()
    patch(model, RoleConfig(embedding="input"))
    conversations = [e.messages for e in PROTECTED]
    assert replies(model, make_tokenizer(), conversations) == replies(plain, make_tokenizer(), conversations)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rolesafe" in name:
                parameter.normal_(std=2.0)
    model.eval()
    assert replies(model, make_tokenizer(), conversations) != replies(plain, make_tokenizer(), conversations)


def test_replies_in_batches_are_equal() -> None:
    model, conversations = make_model(), [e.messages for e in EXAMPLES]
    single = replies(model, make_tokenizer(), conversations, batch_size=1)
    assert replies(model, make_tokenizer(), conversations, batch_size=7) == single


def test_replies_keep_order_and_training_mode() -> None:
    model = Scripted(lambda prompt: prompt.split("| >")[1].split("<")[0])
    found = replies(model, make_tokenizer(), [e.messages for e in EXAMPLES], batch_size=3)
    assert all(same(a, e.messages[0]["content"]) for a, e in zip(found, EXAMPLES, strict=True))
    assert [len(batch) for batch in model.calls] == [3] * 8
    assert "role_ids" not in model.keywords
    trained = make_model().train()
    replies(trained, make_tokenizer(), [EXAMPLES[0].messages], max_new_tokens=1)
    assert trained.training


def test_attack_on_long_examples_lists_left_out() -> None:
    config = DilutionConfig(repeats=8, max_new_tokens=4)
    lengths = sorted(len(" ".join(m["content"] for m in e.messages).split()) for e in PROTECTED)
    result = attack(make_model(positions=90), make_tokenizer(), EXAMPLES, config, check_goal=False)
    assert lengths
    assert 0 < len(result.left_out) < len(PROTECTED)
    assert {o.id for o in result.outcomes} | set(result.left_out) == {e.id for e in PROTECTED}
    assert result.rate.n == len(PROTECTED) - len(result.left_out)
    assert result.complete


def test_replies_beyond_context_raise() -> None:
    with pytest.raises(ValueError, match=r"`conversations`: expected at most 10 tokens"):
        replies(make_model(positions=10), make_tokenizer(), [EXAMPLES[0].messages])


# ---------------------------------------------------------------------------------------------- interrupted, resumed


def test_attack_after_interruption_resumes() -> None:
    whole = attack(Scripted(obedient), make_tokenizer(), EXAMPLES, MIMICRY, check_goal=False)
    part = attack(Scripted(obedient, fail_at=1), make_tokenizer(), EXAMPLES, MIMICRY, check_goal=False)
    assert not part.complete
    assert len(part.outcomes) == 5
    model = Scripted(obedient)
    again = attack(model, make_tokenizer(), EXAMPLES, MIMICRY, done=part, check_goal=False)
    assert again == whole
    assert sum(map(len, model.calls)) == len(PROTECTED) - 5


def test_attack_with_done_of_other_run_raises() -> None:
    done = attack(Scripted(refusing), make_tokenizer(), EXAMPLES, MIMICRY)
    other = dataclasses.replace(MIMICRY, seed=1)
    with pytest.raises(ValueError, match=r"`done`: expected a result of mimicry"):
        attack(Scripted(refusing), make_tokenizer(), EXAMPLES, other, done=done)
    with pytest.raises(ValueError, match=r"`done`: expected outcomes of `examples` only"):
        attack(Scripted(refusing), make_tokenizer(), EXAMPLES[:4], MIMICRY, done=done)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_attack_without_examples_raises() -> None:
    with pytest.raises(ValueError, match="`examples`: expected at least one example, got none"):
        attack(Scripted(refusing), make_tokenizer(), [], MIMICRY)
    with pytest.raises(ValueError, match="`conversations`: expected at least one conversation, got none"):
        replies(Scripted(refusing), make_tokenizer(), [])


def test_attack_on_benign_examples_raises() -> None:
    benign = [e for e in EXAMPLES if e.kind == "benign"]
    with pytest.raises(ValueError, match="expected protected examples with a violation and a contrary policy, got 12"):
        attack(Scripted(refusing), make_tokenizer(), benign, MIMICRY)


def test_attack_on_repeated_examples_raises() -> None:
    with pytest.raises(ValueError, match="`examples`: expected distinct ids, got 1 repeated"):
        attack(Scripted(refusing), make_tokenizer(), [*EXAMPLES, EXAMPLES[0]], MIMICRY)


def test_attack_with_goal_in_right_reply_raises() -> None:
    with pytest.raises(ValueError, match=r"`goal`: expected a text that no right reply contains, got 'not'"):
        attack(Scripted(refusing), make_tokenizer(), generate("test", 6, 0, ["access"]), MIMICRY, goal="not")


def test_attack_with_goal_always_met_raises() -> None:
    with pytest.raises(ValueError, match=r"`goal`: expected one that the model does not meet by itself, got 'sun'"):
        attack(Scripted(lambda p: "sun"), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun")


def meeting(ids: set[str]) -> Scripted:
    """Meets the goal "sun" on these examples by itself, and never on others."""

    def answer(prompt: str) -> str:
        found = next(e for e in PROTECTED if contains(prompt, e.messages[0]["content"]))
        return "sun" if found.id in ids else "I can not say."

    return Scripted(answer)


def test_attack_with_goal_met_on_some_lists_met() -> None:
    """They are listed, not attacked and not counted, since the goal is met without an attack."""
    met = tuple(e.id for e in PROTECTED[:-1])
    model = meeting(set(met))
    result = attack(model, make_tokenizer(), EXAMPLES, MIMICRY, goal="sun")
    assert (result.met, result.rate, result.complete) == (met, Rate(0, 1), True)
    assert [o.id for o in result.outcomes] == [PROTECTED[-1].id]
    assert result.by_family() == {PROTECTED[-1].family: Rate(0, 1)}
    assert len(model.calls[-1]) == 1
    assert AttackResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    unchecked = attack(meeting(set(met)), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", check_goal=False)
    assert (unchecked.met, unchecked.rate) == ((), Rate(len(met), len(PROTECTED)))


def test_attack_resumed_keeps_met_out() -> None:
    met = {e.id for e in PROTECTED[::3]}
    whole = attack(meeting(met), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun")
    part = dataclasses.replace(whole, outcomes=whole.outcomes[:2], complete=False)
    for check in (True, False):
        assert (
            attack(meeting(met), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", done=part, check_goal=check) == whole
        )
    # as before there was `met`
    old = attack(meeting(met), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", check_goal=False)
    assert attack(meeting(met), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", done=old) == whole
    strange = dataclasses.replace(whole, outcomes=(), met=("nobody",))
    with pytest.raises(ValueError, match=r"`done`: expected outcomes of `examples` only, got 'nobody'"):
        attack(meeting(met), make_tokenizer(), EXAMPLES, MIMICRY, goal="sun", done=strange)


@pytest.mark.parametrize(("argument", "value"), [("max_new_tokens", 0), ("batch_size", -1), ("batch_size", True)])
def test_replies_with_bad_numbers_raise(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{argument}`: expected a number >= 1"):
        replies(Scripted(refusing), make_tokenizer(), [EXAMPLES[0].messages], **{argument: value})


def test_progress_bar_counts_examples():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress_bar("texts", console) as update:
        update(3, 12)
    drawn = console.file.getvalue()
    assert "texts" in drawn
    assert "3/12" in drawn
