"""The slot of a gradient attack: its tokens, their roles, their text, and running the model on many of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rolesafe import RoleConfig
from rolesafe.attacks.gradient.losses import gradient, make_loss
from rolesafe.attacks.gradient.target import Target, allowed_ids
from rolesafe.attacks.gradient.victim import Victim
from rolesafe.roles.encoding import encode_one
from rolesafe.roles.structure import structure
from tests.attacks.gradient import CONFIGS, PUBLISHED, bytes_tokenizer, example, make, pieces_tokenizer, words_tokenizer
from tests.attacks.gradient import target_of as of
from tests.models import base_model

TOKENIZERS = {"words": words_tokenizer, "bytes": bytes_tokenizer, "pieces": pieces_tokenizer}


def target_of(model: Any, tokenizer: Any, **options: Any) -> Target:
    return of(model, tokenizer, options.pop("seed", 1), **{"length": 8, **options})


@pytest.mark.parametrize("carrier", ["request", "injection"])
@pytest.mark.parametrize("place", ["suffix", "prefix"])
@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_target_slot_equals_encoded_messages(kind: str, place: str, carrier: str) -> None:
    model, tokenizer = make("bias", TOKENIZERS[kind]())
    target = target_of(model, tokenizer, place=place, carrier=carrier)
    ids = target.start.tolist()
    messages = target.messages(ids)
    encoded = encode_one(tokenizer, messages, config=model.rolesafe_config, add_generation_prompt=True)
    assert encoded.input_ids == [*target.before.tolist(), *ids, *target.after.tolist()]
    roles = torch.cat([target.roles_before, torch.full((8,), target.role), target.roles_after]).tolist()
    generated = model.rolesafe_config.generated_id
    assert roles == [*encoded.role_ids, *[generated] * len(target.wanted)]
    assert target.role == model.rolesafe_config.roles.index("user")
    chosen = example()
    content = next(m["content"] for m in messages if m["role"] == "user")
    carried = chosen.request if carrier == "request" else f"{chosen.request} {chosen.injection()}"
    assert content.startswith(carried) if place == "suffix" else content.endswith(carried)
    assert [m for m in messages if m["role"] != "user"] == [m for m in chosen.messages if m["role"] != "user"]
    assert target.survives(ids)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_target_wanted_equals_encoded_reply(kind: str) -> None:
    model, tokenizer = make(None, TOKENIZERS[kind]())
    target = target_of(model, tokenizer)
    messages = [*target.messages(target.start.tolist()), {"role": "assistant", "content": example().wanted}]
    ids = encode_one(tokenizer, messages).input_ids
    prompt = [*target.before.tolist(), *target.start.tolist(), *target.after.tolist()]
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :][: len(target.wanted)] == target.wanted.tolist()


def test_target_in_tool_output_has_tool_role() -> None:
    model, tokenizer = make("channel")
    chosen = example("tool")
    target = target_of(model, tokenizer, example=chosen)
    assert target.role == model.rolesafe_config.roles.index("tool")
    assert target.messages(target.start.tolist())[-1]["role"] == "tool"


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_allowed_ids_exclude_special_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    allowed = set(allowed_ids(tokenizer, True, len(tokenizer)))
    assert allowed
    assert allowed.isdisjoint(structure(tokenizer).structural.values())
    assert allowed.isdisjoint(tokenizer.all_special_ids)
    assert all(tokenizer.decode([i]).isascii() for i in allowed)
    assert max(allowed_ids(tokenizer, True, 20)) < 20


def test_target_merged_pieces_do_not_survive() -> None:
    """Two letters that the tokenizer has one token for come back as that token."""
    model, tokenizer = make(None, pieces_tokenizer())
    target = target_of(model, tokenizer, init="qxzq")

    def ids(*pieces: str) -> list[int]:
        return [*target.start.tolist(), *tokenizer.convert_tokens_to_ids(list(pieces))]

    merged, whole = ids("▁", "t", "h"), ids("▁", "th", "k")
    assert not target.survives(merged)
    assert target.survives(whole)
    assert target.sieve(torch.tensor([merged, whole, merged])).tolist() == [whole]
    assert not target.survives(ids("</s>"))


def test_target_survivors_are_sorted_by_loss() -> None:
    model, tokenizer = make(None, pieces_tokenizer())
    target = target_of(model, tokenizer, init="qxzq")
    start = target.start.tolist()
    bad = [*start[:-2], *tokenizer.convert_tokens_to_ids(["t", "h"])]
    assert not target.sieving
    found = target.survivors(torch.tensor([start, bad, start]), torch.tensor([2.0, 1.0, 3.0]), 5)
    assert [loss for loss, _ in found] == [2.0, 3.0]
    assert target.sieving


def test_target_start_follows_seed_or_init() -> None:
    model, tokenizer = make(None)
    first, again = (target_of(model, tokenizer).start.tolist() for _ in range(2))
    other = target_of(model, tokenizer, seed=2).start.tolist()
    assert first == again != other
    given = target_of(model, tokenizer, init="The dog ran .")
    assert given.text(given.start.tolist()) == " The dog ran ."
    with pytest.raises(ValueError, match="`init`: expected a text of allowed tokens"):
        target_of(model, tokenizer, init="xylophone")


def test_target_with_bad_arguments_names_them() -> None:
    model, tokenizer = make(None)
    for options, match in (
        ({"place": "middle"}, "`place`: expected one of"),
        ({"carrier": "pigeon"}, "`carrier`: expected one of"),
        ({"length": 0}, "`length`: expected a whole number >= 1, got 0"),
        ({"wanted": " "}, "`wanted`: expected the reply that the attacker wants"),
        ({"length": 5000}, "`length`: expected at most 2048 tokens"),
    ):
        with pytest.raises(ValueError, match=match):
            target_of(model, tokenizer, **options)


def test_target_slot_is_in_last_message_of_role() -> None:
    model, tokenizer = make("bias")
    first, last = example().messages
    before = ({"role": "user", "content": "The dog ran."}, {"role": "assistant", "content": "Done."})
    target = target_of(model, tokenizer, example=dataclasses.replace(example(), messages=(first, *before, last)))
    messages = target.messages(target.start.tolist())
    assert messages[:-1] == (first, *before)
    assert messages[-1]["content"].startswith(f"{last['content']} ")


@pytest.mark.parametrize("place", ["suffix", "prefix"])
def test_target_without_request_holds_slot_only(place: str) -> None:
    model, tokenizer = make("bias", pieces_tokenizer())
    target = target_of(model, tokenizer, example=dataclasses.replace(example(), request=""), place=place)
    ids = target.start.tolist()
    encoded = encode_one(tokenizer, target.messages(ids), config=model.rolesafe_config, add_generation_prompt=True)
    assert encoded.input_ids == [*target.before.tolist(), *ids, *target.after.tolist()]
    of_message = [
        m == 1 and content
        for m, content in zip(encoded.message_ids, [part.name == "CONTENT" for part in encoded.parts], strict=True)
    ]
    assert sum(of_message) == len(ids)


@pytest.mark.parametrize("name", [None, *CONFIGS, *PUBLISHED])
@pytest.mark.parametrize("as_embeddings", [False, True])
def test_victim_with_cache_has_equal_logits(name: str | None, as_embeddings: bool) -> None:
    model, tokenizer = make(name)
    target = target_of(model, tokenizer)
    slots = target.allowed[torch.randint(len(target.allowed), (3, 8), generator=torch.Generator().manual_seed(0))]
    given = model.get_input_embeddings()(slots) if as_embeddings else slots
    fast, slow = Victim(model, target), Victim(model, target, cached=False)
    assert fast.is_cached
    assert not slow.is_cached
    with torch.no_grad():
        logits = [v.reply_logits(v.forward(given)) for v in (fast, slow)]
        whole = torch.cat(
            [target.before.expand(3, -1), slots, target.after.expand(3, -1), target.wanted.expand(3, -1)], 1
        )
        roles = {"role_ids": fast.role_ids(8).expand(3, -1)} if name else {}
        direct = model(input_ids=whole, **roles).logits[:, -len(target.wanted) - 1 : -1]
    assert logits[0].shape == (3, len(target.wanted), len(tokenizer))
    torch.testing.assert_close(logits[0], direct, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1], direct, rtol=1e-4, atol=1e-4)
    assert fast.n_queries == slow.n_queries == 3


@pytest.mark.parametrize("name", [None, *CONFIGS, *PUBLISHED])
def test_victim_knowing_slot_has_equal_logits(name: str | None) -> None:
    model, tokenizer = make(name)
    target = target_of(model, tokenizer)
    slots = target.start.repeat(2, 1)
    slots[:, 5] = target.allowed[:2]
    victim = Victim(model, target)
    with torch.no_grad():
        direct = victim.reply_logits(victim.forward(slots))
        with victim.knowing(target.start) as share:
            for shared in (0, 3, 5):
                share(shared)
                torch.testing.assert_close(victim.reply_logits(victim.forward(slots)), direct, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(victim.reply_logits(victim.forward(slots)), direct, rtol=0, atol=0)


@pytest.mark.parametrize("name", [None, *CONFIGS, *PUBLISHED])
def test_victim_knowing_several_slots_has_equal_logits(name: str | None) -> None:
    """As the beams of BEAST do: each row has its own slot that is not run again."""
    model, tokenizer = make(name)
    target = target_of(model, tokenizer)
    beams = target.allowed[torch.randint(len(target.allowed), (3, 7), generator=torch.Generator().manual_seed(1))]
    rows = torch.tensor([2, 0, 2, 1])
    slots = torch.cat([beams[rows], target.allowed[:4, None]], dim=1)
    victim = Victim(model, target)
    with torch.no_grad():
        direct = victim.reply_logits(victim.forward(slots))
        with victim.knowing(beams) as share:
            share(7, rows)
            torch.testing.assert_close(victim.reply_logits(victim.forward(slots)), direct, rtol=1e-4, atol=1e-4)
            share(7, rows.flip(0))
            if name != "all dedicated":  # there the reply sees no slot
                assert not torch.allclose(victim.reply_logits(victim.forward(slots)), direct, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(victim.reply_logits(victim.forward(slots)), direct, rtol=0, atol=0)


@pytest.mark.parametrize("name", [None, "channel"])
def test_victim_reading_slot_runs_it_once(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`follows` and `knowing` reuse the gradient's forward pass, for the same slot object only."""
    model, tokenizer = make(name)
    target = target_of(model, tokenizer)
    victim = Victim(model, target)
    other = target.start.clone()
    other[5] = next(i for i in target.allowed.tolist() if i != int(other[5]))
    with torch.no_grad():
        for _ in target.wanted:  # from the first token on, the reply that the model would give
            target.wanted = victim.reply_logits(victim.forward(target.start[None]))[0].argmax(-1)
        direct = victim.reply_logits(victim.forward(other[None]))
    gradient(victim, make_loss("ce"), target.start)
    runs: list[int] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (runs.append(1), forward(*a, **k))[1])
    assert victim.follows(target.start)
    with torch.inference_mode(), victim.knowing(target.start) as share:
        assert not runs
        share(5)
        torch.testing.assert_close(victim.reply_logits(victim.forward(other[None])), direct, rtol=1e-4, atol=1e-4)
    target.wanted = target.wanted.roll(1) if len(set(target.wanted.tolist())) > 1 else target.wanted + 1
    runs.clear()
    assert not victim.follows(target.start)
    assert not runs
    victim.follows(target.start.clone())  # equal, but not the object that was read
    assert len(runs) == 1


@pytest.mark.parametrize("family", ["mistral", "gemma2", "mamba"])
def test_victim_with_other_caches_has_equal_logits(family: str) -> None:
    """Sliding windows forget and Mamba keeps states: what cannot be kept is run again."""
    model = base_model(family)
    tokenizer = words_tokenizer(size=model.get_input_embeddings().num_embeddings)
    target = target_of(model, tokenizer)
    slots = target.start.repeat(3, 1)
    slots[1, 4], slots[2, 6] = target.allowed[0], target.allowed[1]
    fast, slow = Victim(model, target), Victim(model, target, cached=False)
    with torch.no_grad():
        expected = slow.reply_logits(slow.forward(slots))
        torch.testing.assert_close(fast.reply_logits(fast.forward(slots)), expected, rtol=1e-4, atol=1e-4)
        with fast.knowing(target.start) as share:
            share(4)
            torch.testing.assert_close(fast.reply_logits(fast.forward(slots)), expected, rtol=1e-4, atol=1e-4)


def test_victim_role_of_slot_changes_logits() -> None:
    model, tokenizer = make("channel", seed=3)
    config: RoleConfig = model.rolesafe_config
    target = target_of(model, tokenizer)
    victim = Victim(model, target)
    roles = victim.role_ids(8)[0]
    low = len(target.before)
    assert roles[low : low + 8].tolist() == [config.roles.index("user")] * 8
    as_system = victim.role_ids(8, role=0)[0]
    assert as_system[low : low + 8].tolist() == [0] * 8
    assert (as_system[:low] == roles[:low]).all()
    with torch.no_grad():
        own, other = (victim.reply_logits(victim.forward(target.start[None], role=r)) for r in (None, 0))
    assert not torch.allclose(own, other)
