"""The model `rolesafe` of lm-eval: scores and replies with roles."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import rolesafe
from rolesafe.attacks import replies
from rolesafe.training.tiny import text_tokenizer, tiny_llama
from tests.retrain.conftest import ROWS

pytest.importorskip("lm_eval")

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something about rain."}]


def request(*args):
    return SimpleNamespace(args=args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aware")
    tokenizer = text_tokenizer([" ".join(row.values()) for row in ROWS], 512)
    base = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
    model = rolesafe.patch(base, rolesafe.RoleConfig.preset("channel"))
    for name, parameter in rolesafe.named_role_parameters(model):
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def lm(folder):
    from lm_eval.api.registry import get_model

    import rolesafe.integrations.lm_eval  # noqa: F401  (registers the model)

    return get_model("rolesafe").create_from_arg_string(f"pretrained={folder}", {"batch_size": 2, "device": "cpu"})


def test_scores_are_those_of_the_model(lm):
    context = lm.apply_chat_template(CHAT)
    batch = rolesafe.encode(lm.tokenizer, CHAT, add_generation_prompt=True)
    after = lm.tokenizer(" rain", add_special_tokens=False).input_ids
    ids = torch.cat([batch["input_ids"], torch.tensor([after])], dim=1)
    roles = torch.cat([batch["role_ids"], torch.full((1, len(after)), 3)], dim=1)
    logits = lm.model(input_ids=ids, role_ids=roles).logits[0, -len(after) - 1 : -1].log_softmax(-1)
    expected = logits.gather(1, torch.tensor(after)[:, None]).sum().item()
    others = [request(lm.apply_chat_template(CHAT[1:]), text) for text in (" a longer reply", " x")]
    (score, _), *rest = lm.loglikelihood([request(context, " rain"), *others])
    assert score == pytest.approx(expected, abs=1e-4)
    assert len(rest) == 2


def test_role_of_a_context_matters(folder, lm):
    from rolesafe.integrations.lm_eval import RolesafeLM

    other = RolesafeLM(str(folder), role="system", device="cpu")
    pair = request("Say something about rain.", " rain")
    assert abs(lm.loglikelihood([pair])[0][0] - other.loglikelihood([pair])[0][0]) > 1e-3


def test_rolling_is_the_sum_over_windows(lm):
    lm.context = 8
    text = "The house is red. It stands near the river. Nobody has seen it today."
    (score,) = lm.loglikelihood_rolling([request(text)])
    assert -1e4 < score < 0


def test_replies_are_the_greedy_ones_and_cut(lm):
    context = lm.apply_chat_template(CHAT)
    (expected,) = replies(lm.model, lm.tokenizer, [CHAT], max_new_tokens=6)
    options = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    found = lm.generate_until([request(context, options), request(lm.apply_chat_template(CHAT[1:]), options)])
    assert found[0].strip() == expected.split("\n\n")[0].strip()
    assert json.loads(context)["messages"] == CHAT


def test_context_too_long_raises(lm):
    with pytest.raises(ValueError, match="expected at most 2048 tokens with the reply"):
        lm.generate_until([request("house " * 2100, {"max_gen_toks": 4})])
