"""Single runs of rolesafe and nanoGCG for `gcg.py`, from the same tokens and with the same budget."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import logging
import math
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.gcg_summary import LOGITS, MELLOWMAX, NANOGCG, NLL, ROLESAFE
from rolesafe.attacks import GCGConfig, SearchContext
from rolesafe.attacks.gradient.target import Target
from rolesafe.tasks import Example, generate

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
"""Structural tokens on both sides of every text: nanoGCG encodes the pieces apart and still gets the same tokens."""

START = " ".join("x" * 20)
SUCCESS = "the"
"""A word of every request, since rolesafe keeps a secret out of the slot and nanoGCG does not."""
TOLERANCE = 1e-3
"""Maximum difference of a reported loss from the loss of the text in float32, in nats."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """Hold the budget of both tools."""

    steps: int = 50
    width: int = 256
    topk: int = 64
    seeds: int = 3
    alpha: float = 1.0
    sampling_factor: int = 16
    reduction: int = 8


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold one example, its tokens and the losses of its start."""

    example: Example
    target: Target
    start: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Hold the models and the budget of all runs.

    Attributes:
        model, tokenizer: The model under attack.
        draft: The draft model; ``None`` without probe sampling.
        draft_tokenizer: A copy of `tokenizer`, since nanoGCG adds a padding token.
        budget: The budget of both tools.
        prefix: Use nanoGCG's prefix cache.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    draft: PreTrainedModel | None
    draft_tokenizer: PreTrainedTokenizerBase
    budget: Budget
    prefix: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hold the best content of a run, its reported loss, and the best loss after each step.

    `reads_back` is True if the content encodes to the tokens of the search.
    """

    content: str
    reported: float
    curve: list[float]
    reads_back: bool


def load(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer, with :data:`TEMPLATE`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as quiet

    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer


def load_draft(
    path: str | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, str]:
    """Return the draft model at `path`, or every second layer of `model` (llama-like), and its description."""
    if path is not None:
        draft, other = load(path)
        if other.get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"`draft`: expected a model with the tokenizer of `model`, got other tokens in {path!r}")
        return draft, Path(path).name
    draft = copy.deepcopy(model)
    decoder = draft.get_decoder()
    count = len(decoder.layers)
    decoder.layers = decoder.layers[::2]
    for k, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = k
    draft.config.num_hidden_layers = len(decoder.layers)
    return draft, f"every second layer of the model: {len(decoder.layers)} of {count}"


def case_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: str, wanted: str, alpha: float
) -> Case:
    """Return a conversation of one message, followed by the slot."""
    made = next(e for e in generate("test", 2, seed=0) if e.kind == "protected")
    message = {"role": "user", "content": request}
    example = dataclasses.replace(made, messages=(message,), target="user", request=request, wanted=wanted)
    target = Target(context_of(model, tokenizer, example), GCGConfig(init=START), torch.Generator())
    return Case(example, target, measures(model, tokenizer, f"{request} {START}", wanted, alpha))


def context_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    seed: int = 0,
    draft: PreTrainedModel | None = None,
) -> SearchContext:
    """Return the context of a search of rolesafe."""
    return SearchContext(
        model=model, tokenizer=tokenizer, example=example, wanted=example.wanted, success=SUCCESS, seed=seed,
        batch_size=128, draft=draft,
    )  # fmt: skip


def measures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, content: str, wanted: str, alpha: float
) -> dict[str, float]:
    """Return the losses of `wanted` after a message of this content, in one forward pass over the encoded text."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply = tokenizer(wanted, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1].double()
    at = torch.tensor(reply)[:, None]
    missing = -torch.log_softmax(logits, -1).gather(-1, at)[:, 0]
    raw = -logits.gather(-1, at)[:, 0]

    def mellowmax(values: torch.Tensor) -> float:
        return (float(torch.logsumexp(alpha * values, 0)) - math.log(len(values))) / alpha

    return {NLL: float(missing.mean()), MELLOWMAX: mellowmax(missing), LOGITS: mellowmax(raw)}


def minimised(kind: str, variant: str) -> str:
    """Return the measure that a tool minimises: nanoGCG's mellowmax is over logits, rolesafe's over log-likelihoods."""
    return NLL if variant != "mellowmax" else LOGITS if kind == NANOGCG else MELLOWMAX


def run_rolesafe(bench: Bench, case: Case, variant: str, seed: int, steps: int, *, prefix_cache: bool) -> Outcome:
    """Run one search of rolesafe."""
    budget = bench.budget
    config = GCGConfig(
        init=START, early_stop=False, num_steps=steps, search_width=budget.width, topk=budget.topk,
        objective="mellowmax" if variant == "mellowmax" else "ce", mellowmax_alpha=budget.alpha,
        sampling_factor=budget.sampling_factor, reduction=budget.reduction, prefix_cache=prefix_cache,
    )  # fmt: skip
    draft = bench.draft if variant == "probe-sampling" else None
    found = config.search(context_of(bench.model, bench.tokenizer, case.example, seed, draft))
    start = case.start[minimised(ROLESAFE, variant)]
    if abs(found.losses[0] - start) > TOLERANCE:
        raise RuntimeError(f"rolesafe: expected the loss {start:.4f} of the start, got {found.losses[0]:.4f}")
    return Outcome(found.messages[0]["content"], found.losses[-1], list(found.losses), True)


def run_nanogcg(bench: Bench, case: Case, variant: str, seed: int, steps: int, *, prefix: bool) -> Outcome:
    """Run one search of nanoGCG, from the tokens of `case` and with its allowed tokens."""
    import nanogcg
    from nanogcg.gcg import GCG
    from transformers import set_seed

    model, tokenizer, budget, target = bench.model, bench.tokenizer, bench.budget, case.target
    probe = None
    if variant == "probe-sampling":
        probe = nanogcg.ProbeSamplingConfig(
            bench.draft, bench.draft_tokenizer, r=budget.reduction, sampling_factor=budget.sampling_factor
        )
    config = nanogcg.GCGConfig(
        num_steps=steps, search_width=budget.width, topk=budget.topk, optim_str_init=START,
        use_mellowmax=variant == "mellowmax", mellowmax_alpha=budget.alpha, use_prefix_cache=prefix,
        probe_sampling_config=probe, allow_non_ascii=True, verbosity="ERROR",
    )  # fmt: skip
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    set_seed(seed)  # `GCGConfig.seed` would do the same, and switch on deterministic algorithms, which are slower
    attack = GCG(model, tokenizer, config)
    embed = model.get_input_embeddings()
    # not timed for either tool: rolesafe caches the allowed tokens of a tokenizer
    every = torch.arange(embed.num_embeddings)
    attack.not_allowed_ids = every[~torch.isin(every, target.allowed)]
    printed = io.StringIO()  # its progress bar, and the errors of its threads
    try:
        with contextlib.redirect_stderr(printed):
            found = attack.run(case.example.request, case.example.wanted)
    except KeyError as error:
        raise RuntimeError(f"a thread of nanoGCG failed:\n{printed.getvalue()[-4000:]}") from error
    pieces = {
        "before the slot": (attack.before_embeds[0], embed(target.before)),
        "in the slot": (tokenizer(START, add_special_tokens=False, return_tensors="pt")["input_ids"][0], target.start),
        "after the slot": (attack.after_embeds[0], embed(target.after)),
        "in the reply": (attack.target_ids[0], target.wanted),
    }
    if others := [where for where, (given, expected) in pieces.items() if not torch.equal(given, expected)]:
        raise RuntimeError(f"expected the same tokens in both tools, got others {' and '.join(others)}")
    ids = tokenizer(found.best_string, add_special_tokens=False)["input_ids"]
    curve = [min(found.losses[: k + 1]) for k in range(len(found.losses))]
    return Outcome(target.messages(ids)[0]["content"], found.best_loss, curve, target.survives(ids))


def prefix_error(bench: Bench, case: Case) -> str | None:
    """Return the error of nanoGCG's prefix cache with the installed transformers, or None if it works."""
    try:
        run_nanogcg(bench, case, "ce", 0, 1, prefix=True)
    except (TypeError, AttributeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return None
