"""Attention mass on privileged keys against an independent computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rolesafe
from rolesafe import RoleConfig
from rolesafe.attention import api
from rolesafe.evaluation import mass
from rolesafe.evaluation.mass import attention_mass
from rolesafe.mechanisms import RoleHeads
from rolesafe.roles.encoding import encode_one
from rolesafe.tasks import generate, vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import tiny_model

TOKENIZER = tiny_tokenizer(vocabulary())
CONVERSATIONS = [example.messages for example in generate("test", 6, seed=3)]
CONFIGS = {
    "bias": RoleConfig.preset("bias"),
    "ise": RoleConfig.preset("ise", embedding_std=0.5),
    "channel": RoleConfig.preset("channel", embedding_std=0.5),
    "share": RoleConfig(share=0.3),
    "fixed share": RoleConfig(share=0.4, learn_share=False, bias=False),
    "dedicated": RoleConfig(dedicated_heads=1),
    "integrity": RoleConfig(integrity=True),
    "one layer": RoleConfig(share=0.6, layers=(1,)),
}


def make(config: RoleConfig | None = None, seed: int = 0):
    """A random llama of 3 layers and 4 heads; its role parameters are drawn too."""
    model = tiny_llama(len(TOKENIZER), seed=seed).eval()
    if config is not None:
        rolesafe.patch(model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in rolesafe.named_role_parameters(model):
                if name.endswith("bias"):
                    parameter.normal_(generator=generator)
                elif name.endswith("share") and config.learn_share:
                    parameter.uniform_(-0.2, 1.2, generator=generator)  # the clamp counts
    return model


def explicit(model, conversation):
    """Privileged mass (layers, H, T) from q and k of hooks on the projections, and the formulas of the README."""
    encoded = encode_one(TOKENIZER, conversation, config=model.rolesafe_config, add_generation_prompt=True)
    ids, roles = torch.tensor([encoded.input_ids]), torch.tensor([encoded.role_ids])
    taken: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, a, out, name=name: taken.__setitem__(name, out.detach().double()))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "k_proj"))
    ]
    with torch.no_grad():
        model(input_ids=ids, role_ids=roles)
    for hook in hooks:
        hook.remove()
    length = ids.shape[1]
    cos, sin = (x[0].double() for x in model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None]))
    privileged = torch.tensor([role in model.rolesafe_config.privileged_ids for role in encoded.role_ids])
    maps = []
    for i, layer in enumerate(model.model.layers):
        heads = layer.self_attn.rolesafe_heads
        q, k = (taken[f"model.layers.{i}.self_attn.{n}_proj"][0].view(length, 4, 16).transpose(0, 1) for n in "qk")
        turn = torch.cat([-q[..., 8:], q[..., :8]], -1), torch.cat([-k[..., 8:], k[..., :8]], -1)
        q, k = q * cos + turn[0] * sin, k * cos + turn[1] * sin
        out = torch.zeros(4, length)
        for h in range(4):
            for t in range(length):
                scores = (k[h, : t + 1] @ q[h, t]) / 4.0
                if heads.bias is not None:
                    scores = scores + heads.bias[h, roles[0, t], roles[0, : t + 1]].detach().double()
                weights = scores.exp() / scores.exp().sum()
                seen = privileged[: t + 1]
                value = float(weights[seen].sum())
                if bool(seen.any()):
                    if h < heads.dedicated or (heads.integrity and bool(privileged[t])):
                        value = 1.0
                    elif heads.share is not None:
                        share = min(1.0, max(0.0, heads.share[h].item()))
                        value = (1 - share) * value + share
                out[h, t] = value
        maps.append(out)
    return torch.stack(maps), privileged


@pytest.mark.parametrize("name", CONFIGS)
def test_mass_of_patched_equals_explicit_softmax(name):
    model = make(CONFIGS[name])
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:2])
    chosen, last = [], []
    for conversation in CONVERSATIONS[:2]:
        maps, privileged = explicit(model, conversation)
        behind = ~privileged & (privileged.cumsum(0) > 0)
        chosen.append(maps[:, :, behind])
        last.append(maps[:, :, -1])
    everything, reply = torch.cat(chosen, -1), torch.stack(last, -1)
    for i, layer in enumerate(found.layers):
        assert layer.name == f"model.layers.{i}.self_attn"
        assert layer.mean == pytest.approx(everything[i].mean(-1).tolist(), abs=2e-5)
        assert layer.minimum == pytest.approx(everything[i].amin(-1).tolist(), abs=2e-5)
        assert layer.reply_mean == pytest.approx(reply[i].mean(-1).tolist(), abs=2e-5)
    assert (found.n_conversations, found.violations, found.blind) == (2, 0, 0)
    promising = name not in ("bias", "ise")
    assert (found.rows > 0) is promising
    assert (found.margin is not None) is promising


@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_mass_uses_the_backend_of_the_model(impl, monkeypatch):
    model = make(RoleConfig.preset("channel", impl=impl))
    asked = []
    run = mass.compute
    monkeypatch.setattr(mass, "compute", lambda problem, impl: asked.append(impl) or run(problem, impl))
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:1])
    assert asked == [impl] * 3
    other = attention_mass(make(RoleConfig.preset("channel", impl="sdpa")), TOKENIZER, CONVERSATIONS[:1])
    for a, b in zip(found.layers, other.layers, strict=True):
        assert a.mean == pytest.approx(b.mean, abs=1e-5)


def eager_mass(model, conversation):
    """Privileged mass (layers, H, T) of a plain model from its own `output_attentions`."""
    encoded = encode_one(TOKENIZER, conversation, add_generation_prompt=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids=torch.tensor([encoded.input_ids]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    privileged = torch.tensor([role in (0, 1) for role in encoded.role_ids])
    return torch.stack([a[0][:, :, privileged].sum(-1) for a in attentions]), privileged


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
def test_mass_of_plain_equals_output_attentions(pieces, monkeypatch):
    model = make()
    if pieces:
        monkeypatch.setattr(mass, "MAP_BYTES", 4 * 4 * 7 * 30)  # 7 queries of 30 keys at a time
    expected, privileged = eager_mass(model, CONVERSATIONS[0])
    behind = ~privileged & (privileged.cumsum(0) > 0)
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:1])
    assert len(found.layers) == 3
    for i, layer in enumerate(found.layers):
        assert layer.mean == pytest.approx(expected[i][:, behind].mean(-1).tolist(), abs=1e-5)
        assert layer.minimum == pytest.approx(expected[i][:, behind].amin(-1).tolist(), abs=1e-5)
        assert layer.reply_mean == pytest.approx(expected[i][:, -1].tolist(), abs=1e-5)
        assert layer.reserved == (0.0,) * 4
    assert (found.rows, found.violations, found.margin) == (0, 0, None)


def test_mass_leaves_the_model_unchanged():
    model = make().train()
    before = model.config._attn_implementation
    attention_mass(model, TOKENIZER, CONVERSATIONS[:1])
    assert model.config._attn_implementation == before != "eager"
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_mass_of_untrained_layer_equals_plain():
    plain = attention_mass(make(), TOKENIZER, CONVERSATIONS)
    rest = attention_mass(rolesafe.patch(make(), RoleConfig()), TOKENIZER, CONVERSATIONS)
    for a, b in zip(plain.layers, rest.layers, strict=True):
        assert a.mean == pytest.approx(b.mean, abs=1e-5)
    assert plain.reply == pytest.approx(rest.reply, abs=1e-5)


def diluted(repeats: int):
    return [
        e.with_target(" ".join([e.request, *[e.injection()] * repeats]))
        for e in generate("test", 6, seed=3)
        if e.kind == "protected"
    ]


def test_mass_under_dilution_keeps_the_reserved_share():
    """With all scores zero the mass is the share of privileged tokens."""
    model = make()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    one, many = (attention_mass(model, TOKENIZER, diluted(n)) for n in (1, 32))
    encoded = [encode_one(TOKENIZER, c, add_generation_prompt=True) for c in diluted(32)]
    uniform = sum(sum(role < 2 for role in e.role_ids) / len(e) for e in encoded) / len(encoded)
    assert many.reply == pytest.approx(uniform, abs=1e-5)
    assert many.reply < one.reply / 3
    rolesafe.patch(model, RoleConfig(share=0.3))
    kept = attention_mass(model, TOKENIZER, diluted(32))
    assert kept.violations == 0
    assert kept.reply == pytest.approx(0.3 + 0.7 * uniform, abs=1e-5)
    assert kept.margin > 0
    assert kept.layers[0].reserved == pytest.approx((0.3,) * 4)


def test_mass_target_is_a_promise():
    """log(t / m) for m < t leaves at least t / (1 + t)."""
    found = attention_mass(make(RoleConfig.preset("spotlight")), TOKENIZER, CONVERSATIONS)
    assert max(max(layer.reserved) for layer in found.layers) == pytest.approx(0.2 / 1.2, abs=1e-6)
    assert found.rows > 0
    assert found.violations == 0


def test_mass_of_lowered_share_is_a_violation(monkeypatch):
    """The backend gets a smaller share than the layer promises: every affected row is counted."""
    model = make(RoleConfig(share=0.5, learn_share=False, bias=False))
    assert attention_mass(model, TOKENIZER, diluted(8)).violations == 0
    forward = RoleHeads.forward
    monkeypatch.setattr(RoleHeads, "forward", lambda self, *a: (forward(self, *a)[0], torch.full((4,), 0.01)))
    found = attention_mass(model, TOKENIZER, diluted(8))
    assert 0 < found.violations <= found.rows
    assert found.margin < -found.tolerance


def test_mass_of_ignored_dedication_is_a_violation(monkeypatch):
    model = make(RoleConfig(dedicated_heads=2, impl="reference"))
    reference = api.reference_attention

    monkeypatch.setattr(api, "reference_attention", lambda problem: reference(replace(problem, dedicated=1)))
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:2])
    assert 0 < found.violations <= found.rows / 2  # the second head's rows, of two that are promised anything
    assert [layer.reserved for layer in found.layers] == [(1.0, 1.0, 0.0, 0.0)] * 3
    assert all(layer.minimum[0] == 1.0 and layer.minimum[1] < 1.0 for layer in found.layers)


def test_mass_nan_is_a_violation(monkeypatch):
    model = make(RoleConfig(share=0.5))
    monkeypatch.setattr(mass, "compute", lambda problem, impl: problem.q * float("nan"))
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:1])
    assert found.violations == found.rows > 0


def test_mass_of_keys_out_of_the_window_is_blind():
    config = RoleConfig(dedicated_heads=1, share=0.5)
    model = rolesafe.patch(tiny_model("mistral"), config).eval()  # a sliding window of 8 tokens
    text = TOKENIZER.decode(range(8, 40))
    with torch.no_grad():
        model.resize_token_embeddings(len(TOKENIZER))
    talk = [{"role": "system", "content": "The"}, {"role": "user", "content": text}]
    found = attention_mass(model, TOKENIZER, [talk])
    assert found.violations == 0
    assert found.blind > 0
    assert all(min(layer.minimum) == 0.0 for layer in found.layers)


def test_mass_tolerance_of_half_precision():
    model = make(RoleConfig.preset("channel")).to(torch.bfloat16)
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:2])
    assert found.tolerance == pytest.approx(4 * torch.finfo(torch.bfloat16).eps)
    assert found.violations == 0


def test_mass_of_other_attention_interface():
    """Falcon does not go through transformers' attention interface."""
    model = tiny_model("falcon").eval()
    model.resize_token_embeddings(len(TOKENIZER))
    found = attention_mass(model, TOKENIZER, CONVERSATIONS[:1])
    assert [layer.name for layer in found.layers] == ["layer 0", "layer 1"]
    assert all(0 < value < 1 for layer in found.layers for value in layer.reply_mean)


@pytest.mark.parametrize(
    ("conversations", "keywords", "message"),
    [
        ([], {}, "`conversations`: expected at least one conversation, got none"),
        ([[{"role": "user", "content": "The"}]], {}, "`conversations`: expected a message of a privileged role"),
        (CONVERSATIONS[:1], {"config": RoleConfig(share=0.1)}, "`config`: expected None for a patched model"),
    ],
)
def test_mass_bad_input_is_refused(conversations, keywords, message):
    with pytest.raises(ValueError, match=message):
        attention_mass(make(RoleConfig()), TOKENIZER, conversations, **keywords)
