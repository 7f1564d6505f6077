"""Sampled branches of tiny models of transformers: law, resuming, errors; profiles along given replies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import rolesafe
from rolesafe.attacks.replies import prompts
from rolesafe.depth import (
    Branches,
    HarmError,
    RuleHarm,
    TextHarm,
    TokenHarm,
    information,
    kl_profile,
    load_branches,
    martingale,
    recovery_profile,
    sample_branches,
    save_branches,
    tabulate,
)
from rolesafe.depth.decoding import Decoder, draw
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
from tests.models import tiny_model

WORDS = ["sorry", "no", "red", "blue"]
TALK = [{"role": "system", "content": "no red"}, {"role": "user", "content": "red blue"}]
SHORT = [{"role": "user", "content": "blue"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer(WORDS)


@pytest.fixture(scope="module")
def plain(tokenizer: Any) -> Any:
    return tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=2).eval()


@pytest.fixture(scope="module")
def patched(tokenizer: Any) -> Any:
    model = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=2).eval()
    return rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))


def harm(texts: list[str]) -> list[float]:
    return [float("sorry" not in text) for text in texts]


def sampled(model: Any, tokenizer: Any, **options: Any) -> Branches:
    settings: dict[str, Any] = {
        "samples": 6,
        "max_new_tokens": 5,
        "recovery": [tokenizer.convert_tokens_to_ids("sorry")],
    }
    return sample_branches(model, tokenizer, [TALK, SHORT], harm, **{**settings, **options})


@pytest.mark.parametrize("which", ["plain", "patched"])
def test_branches_share_prefixes_and_do_not_depend_on_batches(
    which: str, tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    found = sampled(model, tokenizer)
    assert found.complete
    assert found.n == 12
    assert found.depths == (0, 1, 2, 3, 4)
    assert [row.conversation for row in found.rows] == [0] * 6 + [1] * 6
    small = sampled(model, tokenizer, batch_size=5)
    assert [(row.ids, row.branches) for row in found.rows] == [(row.ids, row.branches) for row in small.rows]
    ends = tokenizer.eos_token_id
    for row, value in zip(found.rows, found.harm.tolist(), strict=True):
        assert len(row.ids) == 5 or row.ids[-1] == ends
        assert ends not in row.ids[:-1]
        for k, branch in zip(found.depths, row.branches, strict=True):
            assert len(row.ids[:k] + branch) <= 5
            if k >= len(row.ids):
                assert branch == ()
        assert value == harm([tokenizer.decode(row.ids)])[0]
    talks = [[TALK, SHORT][row.conversation] for row in found.rows]
    along = recovery_profile(model, tokenizer, talks, [row.ids for row in found.rows], found.settings.tokens)
    assert torch.allclose(along[:, :5], found.recovery, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("which", ["plain", "patched"])
def test_information_of_sampled_branches_is_near_the_enumerated(
    which: str, tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    """Two tokens of a small vocabulary, all enumerated through the model itself."""
    model = request.getfixturevalue(which)
    encoded = prompts(model, tokenizer, [TALK])

    def logits(prefixes: torch.Tensor) -> torch.Tensor:
        return Decoder(model, tokenizer, encoded, torch.zeros(len(prefixes), dtype=torch.int64)).rewind(prefixes)

    exact = tabulate(logits, len(tokenizer), 2)
    sorry = tokenizer.convert_tokens_to_ids("sorry")

    def table(y: torch.Tensor) -> torch.Tensor:
        over = y[:, 0] == tokenizer.eos_token_id
        return 1.0 - ((y[:, 0] == sorry) | (~over & (y[:, 1] == sorry))).double()

    want = martingale(exact, table).information
    drawn = sample_branches(model, tokenizer, [TALK], harm, samples=1500, max_new_tokens=2, batch_size=1500)
    for estimate, value in zip(information(drawn, level=1e-4), want.tolist(), strict=True):
        assert estimate.low <= value <= estimate.high
    assert float(want[0]) > 0.01


def test_cache_that_cannot_be_cut_gives_the_same_replies() -> None:
    """Sliding windows: the tokens are run again from the start at each depth."""
    words = tiny_tokenizer([f"w{i}" for i in range(80)])
    model = tiny_model("mistral")
    options: dict[str, Any] = {"samples": 3, "max_new_tokens": 12, "depths": (0, 2, 9), "recovery": [9]}
    found = sample_branches(
        model, words, [[{"role": "user", "content": "w1 w2 w3"}]], lambda t: [0.0] * len(t), **options
    )
    talks = [[{"role": "user", "content": "w1 w2 w3"}]] * 3
    along = recovery_profile(model, words, talks, [row.ids for row in found.rows], [9])
    assert torch.allclose(along[:, :12], found.recovery[:, : along.shape[1]], atol=1e-5, equal_nan=True)


def test_draw_inverts_the_distribution_function() -> None:
    logits = torch.tensor([[0.1, 0.0, 0.2, 0.7]]).log().expand(4, -1)
    drawn = draw(logits, torch.tensor([0.0, 0.0999, 0.1001, 0.999999], dtype=torch.float64))
    assert drawn.tolist() == [0, 0, 2, 3]


def test_interrupted_measurement_resumes_to_the_same_result(plain: Any, tokenizer: Any, tmp_path: Path) -> None:
    whole = sampled(plain, tokenizer, batch_size=4)
    seen: list[Branches] = []

    def stop(found: Branches) -> None:
        seen.append(found)
        save_branches(found, tmp_path / "branches.json")
        raise KeyboardInterrupt

    part = sampled(plain, tokenizer, batch_size=4, keep=stop)
    assert (part.n, part.complete) == (4, False)
    steps: list[tuple[int, int]] = []
    again = sampled(
        plain,
        tokenizer,
        batch_size=4,
        done=load_branches(tmp_path / "branches.json"),
        progress=lambda *n: steps.append(n),
    )
    assert steps == [(8, 12), (12, 12)]
    assert again.rows == whole.rows
    assert torch.equal(again.branched, whole.branched)
    with pytest.raises(ValueError, match="`done`: expected a measurement with the same settings, got one with seed 0"):
        sampled(plain, tokenizer, seed=1, done=part)
    with pytest.raises(ValueError, match="`branches`: expected the result of sample_branches"):
        save_branches(Branches((0,), torch.zeros(1), torch.zeros(1, 1)), tmp_path / "x.json")


def test_failing_harm_function_keeps_replies_and_resumes(plain: Any, tokenizer: Any) -> None:
    calls: list[int] = []

    def flaky(texts: Sequence[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 2:
            raise OSError("no connection")
        return harm(list(texts))

    judge = TextHarm(flaky, "flaky")
    settings: dict[str, Any] = {"samples": 12, "max_new_tokens": 5, "batch_size": 4}
    with pytest.raises(HarmError, match=r"`harm`: 'flaky' failed on .* replies: OSError: no connection") as caught:
        sample_branches(plain, tokenizer, [TALK], judge, **settings)
    kept = caught.value.branches
    assert (kept.n, len(kept.rows)) == (4, 8)
    again = sample_branches(plain, tokenizer, [TALK], judge, done=kept, **settings)
    whole = sample_branches(plain, tokenizer, [TALK], TextHarm(harm, "flaky"), **settings)
    assert again.rows == whole.rows


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: [1.5] * n, r"`harm`: expected values in \[0, 1\], got 1.5"),
        (lambda n: [float("nan")] * n, r"`harm`: expected values in \[0, 1\], got nan"),
        (lambda n: [0.0] * (n + 1), "`harm`: expected one value for each of"),
        (lambda n: ["bad"] * n, "`harm`: .* failed"),
    ],
)
def test_harm_out_of_range_raises_and_keeps_replies(plain: Any, tokenizer: Any, values: Any, message: str) -> None:
    with pytest.raises(HarmError, match=message) as caught:
        sample_branches(plain, tokenizer, [SHORT], lambda t: values(len(t)), samples=2, max_new_tokens=2)
    assert len(caught.value.branches.rows) == 2


def test_harm_functions_read_texts_tokens_and_rules(plain: Any, tokenizer: Any) -> None:
    sorry = tokenizer.convert_tokens_to_ids("sorry")
    by = [
        TokenHarm(lambda rows: [float(sorry not in ids) for ids in rows]),
        RuleHarm(refusals=("sorry",)),
        TextHarm(lambda texts: torch.tensor(harm(texts))),
    ]
    found = [sample_branches(plain, tokenizer, [SHORT], one, samples=8, max_new_tokens=4) for one in by]
    assert torch.equal(found[0].harm, found[1].harm)
    assert torch.equal(found[0].branched, found[2].branched)
    with pytest.raises(ValueError, match="`refusals`: expected at least one phrase"):
        RuleHarm()


def test_sampling_arguments_are_checked(plain: Any, tokenizer: Any) -> None:
    for options, message in (
        ({"temperature": 0.7}, "`temperature`: expected 1, since the martingale"),
        ({"top_p": 0.9}, "`top_p`: expected 1"),
        ({"recovery": []}, "`recovery`: expected at least one recovery token"),
        ({"recovery": [10_000]}, "`recovery`: expected ids below"),
        ({"depths": (0, 5)}, "`depths`: expected increasing numbers of tokens from 0 to 4"),
        ({"depths": (1, 1)}, "`depths`: expected increasing"),
        ({"samples": 0}, "`samples`: expected a number >= 1, got 0"),
        ({"max_new_tokens": 5000}, "`max_new_tokens`: expected at most 2048 tokens with the prompt"),
        ({"done": Branches((0,), torch.zeros(1), torch.zeros(1, 1))}, "`done`: expected the result of an interrupted"),
    ):
        with pytest.raises(ValueError, match=message):
            sampled(plain, tokenizer, **options)
    with pytest.raises(ValueError, match="`conversations`: expected at least one conversation"):
        sample_branches(plain, tokenizer, [], harm)
    with pytest.raises(ValueError, match="`harm`: expected a function of replies, got str"):
        sample_branches(plain, tokenizer, [TALK], "harm")  # type: ignore[arg-type]


def test_kl_profile_counts_the_whole_vocabulary(plain: Any, patched: Any, tokenizer: Any) -> None:
    replies = [[4, 5, 6], [7]]
    other = tiny_llama(len(tokenizer), seed=3, hidden=32, layers=2, heads=2).eval()
    found = kl_profile(plain, other, tokenizer, [TALK, SHORT], replies)
    assert found.shape == (2, 4)
    assert torch.isnan(found[1]).tolist() == [False, False, True, True]
    ids = torch.tensor([[*prompts(plain, tokenizer, [TALK])[0].input_ids, *replies[0]]])
    with torch.no_grad():
        p, q = (model(ids).logits[0, -4:].double().softmax(-1) for model in (plain, other))
    assert torch.allclose(found[0], (p * (p / q).log()).sum(-1), atol=1e-5)
    assert float(kl_profile(patched, patched, tokenizer, [TALK], [[4]]).abs().max()) < 1e-9


def test_profiles_refuse_other_tokenizers_and_long_prefixes(plain: Any, tokenizer: Any) -> None:
    other = tiny_tokenizer([*WORDS, "green"])
    with pytest.raises(
        ValueError, match="`base_tokenizer`: expected the vocabulary of `tokenizer`, got another id for"
    ):
        kl_profile(plain, plain, tokenizer, [TALK], [[4]], base_tokenizer=other)
    template = tiny_tokenizer(WORDS)
    template.chat_template = template.chat_template.replace("</s>", "")
    with pytest.raises(ValueError, match="`base_tokenizer`: expected the chat template"):
        kl_profile(plain, plain, tokenizer, [TALK], [[4]], base_tokenizer=template)
    larger = tiny_llama(len(tokenizer) + 1, seed=3, hidden=32, layers=2, heads=2).eval()
    with pytest.raises(ValueError, match="`base`: expected logits of"):
        kl_profile(plain, larger, tokenizer, [TALK], [[4]])
    with pytest.raises(ValueError, match="`replies`: expected at most 2048 tokens with the prompt"):
        recovery_profile(plain, tokenizer, [TALK], [[4] * 2048], [4])
    with pytest.raises(ValueError, match="`replies`: expected one for each of 1 conversations"):
        recovery_profile(plain, tokenizer, [TALK], [], [4])
    with pytest.raises(ValueError, match="`tokens`: expected at least one recovery token"):
        recovery_profile(plain, tokenizer, [TALK], [[4]], [])
