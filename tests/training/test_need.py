"""Need of heads on ordinary text, and the choice of dedicated heads by it."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import rolesafe
from rolesafe import RoleConfig
from rolesafe.training import choose_dedicated, choose_heads, head_need
from rolesafe.training.need import Method
from tests.models import base_model, random_batch, role_model, tiny_model

CONFIG = RoleConfig(bias=False, dedicated_heads=0.5)


def batches(count: int = 2, **changes: Any) -> list[dict[str, Tensor]]:
    """Return batches with padding, a privileged token in each row, and labels at some tokens."""
    found = []
    for seed in range(count):
        batch = random_batch(seed, **changes)
        batch["role_ids"][:, 3:5] = 0
        labels = batch["input_ids"].masked_fill(batch["role_ids"] == 0, -100)
        found.append({**batch, "labels": labels.masked_fill(batch["attention_mask"] == 0, -100)})
    return found


def loss(model: Any, data: list[dict[str, Tensor]]) -> float:
    """Return the mean loss of all labels, computed here."""
    total, count = 0.0, 0
    for batch in data:
        logits = model(**{k: x for k, x in batch.items() if k != "labels"}, use_cache=False).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        total += cross_entropy(logits.flatten(0, 1).double(), labels.flatten(), reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def with_shares(family: str, values: dict[int, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """Return a patched model with the given share of each head."""
    model = rolesafe.patch(tiny_model(family, dtype=dtype), RoleConfig(bias=False, share=1.0))
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            layer.self_attn.rolesafe_heads.share.copy_(values[i])
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_need_by_gradient_is_derivative_of_loss(family: str) -> None:
    """Against one-sided differences of second order, head by head; norms compute in fp32, so the step is wide."""
    data = batches()
    found = head_need(tiny_model(family, dtype=torch.float64), CONFIG, data)
    assert {i: tuple(need.shape) for i, need in found.items()} == {0: (4,), 1: (4,)}
    step = 0.01
    with torch.no_grad():
        for i, head in itertools.product(range(2), range(4)):
            around = []
            for share in (0.0, step, 2 * step):
                values = {0: torch.zeros(4), 1: torch.zeros(4)}
                values[i][head] = share
                around.append(loss(with_shares(family, values, torch.float64), data))
            expected = (4 * around[1] - 3 * around[0] - around[2]) / (2 * step)
            assert found[i][head].item() == pytest.approx(expected, rel=0.01, abs=5e-6)


def test_need_by_loss_is_increase_of_dedicated_head() -> None:
    """A dedicated head is computed by another path than a share of 1."""
    model, data = base_model("llama"), batches(padding=0)
    for batch in data:
        batch["role_ids"][:, 0] = 0  # every query sees a privileged key, or a dedicated head would read nothing
    found = head_need(model, CONFIG, data, method="loss")
    plain = [{k: x for k, x in batch.items() if k != "role_ids"} for batch in data]
    with torch.no_grad():
        before = loss(model, plain)
        for i, head in itertools.product(range(2), range(4)):
            restricted = role_model("llama", RoleConfig(bias=False, dedicated_heads=((i, head),)))
            assert found[i][head].item() == pytest.approx(loss(restricted, data) - before, abs=2e-6)
    assert max(need.abs().max() for need in found.values()) > 1e-4


@pytest.mark.parametrize("method", ["gradient", "loss"])
def test_need_leaves_model_unchanged(method: Method) -> None:
    model: Any = base_model("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before, trained = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    seen: list[tuple[int, int]] = []
    head_need(model, CONFIG, batches(), method=method, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == (2 if method == "gradient" else 18)
    assert not rolesafe.patching.is_patched(model)
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == trained
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_chosen_heads_have_least_need_among_possible_ones() -> None:
    """Against all subsets that at most one group divides."""
    make = torch.Generator().manual_seed(0)
    for groups in (1, 2, 3, 6):
        each = 6 // groups
        for count in range(7):
            need = torch.randn(6, generator=make)
            fits = [
                heads
                for heads in itertools.combinations(range(6), count)
                if sum(0 < len([h for h in heads if h // each == g]) < each for g in range(groups)) <= 1
            ]
            chosen = choose_heads(need, count, groups)
            assert chosen in fits
            assert need[list(chosen)].sum().item() == pytest.approx(min(need[list(h)].sum().item() for h in fits))


def test_choice_avoids_head_that_model_needs() -> None:
    """A model trained to copy an unprivileged token keeps the head that reads it."""
    torch.manual_seed(0)
    model: Any = tiny_model("llama", num_hidden_layers=1, num_key_value_heads=4)
    o_proj = model.model.layers[0].self_attn.o_proj
    with torch.no_grad():
        o_proj.weight.unflatten(1, (4, 16))[:, [0, 1, 3]] = 0.0  # the reply goes through head 2 alone
    ids = torch.randint(3, 97, (32, 4), generator=torch.Generator().manual_seed(0))
    roles = torch.tensor([0, 2, 2, 3]).expand(32, 4)
    ids[:, 0], ids[:, 2], ids[:, 3] = 5, 6, ids[:, 1]
    labels = ids.masked_fill(roles != 3, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):  # not to the end: there the gradient vanishes, and with it an estimate of first order
        optimizer.zero_grad()
        now = model(ids, labels=labels).loss
        if now < 1.5:
            break
        now.backward()
        o_proj.weight.grad.unflatten(1, (4, 16))[:, [0, 1, 3]] = 0.0
        optimizer.step()
    batch = {"input_ids": ids, "role_ids": roles, "labels": labels}
    # a norm follows, so a small change of the head's output has little effect, and its loss much
    for method, least in (("gradient", 0.01), ("loss", 0.5)):
        need = head_need(model, CONFIG, [batch], method=method)[0]
        assert need[2] > least
        assert need[[0, 1, 3]].abs().max() < 1e-3
        chosen = choose_dedicated(model, RoleConfig(dedicated_heads=3), [batch], method=method)
        assert chosen == RoleConfig(dedicated_heads=((0, 0), (0, 1), (0, 3)))


def test_choice_keeps_counts_and_layers() -> None:
    chosen = choose_dedicated(
        base_model("llama"), RoleConfig.preset("channel", integrity=False, layers=(1,)), batches(1)
    )
    assert chosen.count_dedicated(4, 0) == 0
    assert chosen.count_dedicated(4, 1) == 2
    assert RoleConfig.preset("channel", integrity=False, layers=(1,), dedicated_heads=chosen.dedicated_heads) == chosen
    rolesafe.patch(base_model("llama"), chosen)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"config": RoleConfig()}, "`config`: expected a number or share of dedicated heads above 0, got 0"),
    ({"config": RoleConfig(dedicated_heads=((0, 1),))}, "`config`: expected a number or share .* got .*0, 1"),
    ({"config": RoleConfig(dedicated_heads=0.1)}, "`config`: expected at least one dedicated head in a layer"),
    ({"method": "guess"}, "`method`: expected one of .* got 'guess'"),
    ({"batches": []}, "`batches`: expected at least one batch"),
    ({"model": "llama"}, "`model`: expected a plain model of transformers, got str"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_raises(changes: dict[str, Any], message: str) -> None:
    values = {"model": base_model("llama"), "config": CONFIG, "batches": batches(1), **changes}
    with pytest.raises(ValueError, match=message):
        choose_dedicated(values.pop("model"), values.pop("config"), values.pop("batches"), **values)


def test_unusable_batches_raise() -> None:
    model = base_model("llama")
    for change, message in (
        (lambda b: b.pop("labels"), "expected `labels` in batch 0"),
        (lambda b: b["role_ids"].fill_(2), "expected a privileged token in each row"),
        (lambda b: b["labels"].fill_(-100), "expected labels in batch 0"),
    ):
        (batch,) = batches(1)
        change(batch)  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match=f"`batches`: {message}"):
            head_need(model, CONFIG, [batch])
    with pytest.raises(ValueError, match="got one with a role layer"):
        head_need(role_model("llama"), CONFIG, batches(1))
    with pytest.raises(ValueError, match="`config`: expected at least one privileged role"):
        head_need(model, RoleConfig(privileged=()), batches(1))
    with pytest.raises(ValueError, match="`dedicated_heads`: expected an attention with the linear projections"):
        choose_dedicated(base_model("gpt2"), CONFIG, batches(1))
