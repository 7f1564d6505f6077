"""A whole model, patched and not: a training step, and generation.

B batch, T tokens
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import rolesafe
from benchmarks.throughput.attempt import attempt
from benchmarks.throughput.gate import FAILED, PASSED, worst
from benchmarks.throughput.session import Absent, Session
from benchmarks.throughput.shapes import GROUPS, HEADS
from tools.inputs import chat_roles
from tools.timing import peak_mib

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNPATCHED = "unpatched"
PRESETS = ("bias", "channel")
PAIRS = tuple((preset, UNPATCHED) for preset in PRESETS)
NEEDS = {UNPATCHED: (), "bias": ("bias",), "channel": ("bias + share", "half dedicated", "integrity")}
"""Cases of the gate that must have passed for a model to be timed."""
LARGEST_DIFFERENCE = 0.05
"""Mean difference of logits, in standard deviations, up to which a model patched at rest counts as its base."""


@dataclass(frozen=True)
class Size:
    """Sizes of a llama and its input; the default has 1.1 billion parameters."""

    hidden: int = 2048
    layers: int = 16
    heads: int = HEADS
    groups: int = GROUPS
    intermediate: int = 8192
    vocabulary: int = 32_000
    batch: int = 2
    length: int = 4096
    prompt: int = 2048
    generated: int = 128
    train_rounds: int = 8
    generate_rounds: int = 3

    @property
    def dim(self) -> int:
        """Head dim."""
        return self.hidden // self.heads


def make_base(size: Size, device: torch.device) -> PreTrainedModel:
    """Return the unpatched bf16 model on PyTorch's attention, with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig  # late: seconds

    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        intermediate_size=size.intermediate,
        vocab_size=size.vocabulary,
        max_position_embeddings=2 * max(size.length, size.prompt + size.generated),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def make_models(size: Size, device: torch.device) -> dict[str, PreTrainedModel]:
    """Return the base, and a copy of it with each preset."""
    base = make_base(size, device)
    patched = {name: rolesafe.patch(copy.deepcopy(base), rolesafe.RoleConfig.preset(name)) for name in PRESETS}
    return {UNPATCHED: base, **patched}


def roles_for(name: str, roles: Tensor) -> dict[str, Tensor]:
    """Return role ids as the keyword argument of a patched model."""
    return {} if name == UNPATCHED else {"role_ids": roles}


def batch_of(size: Size, length: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw tokens and roles, (B, T) each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, size.vocabulary, (rows, length), generator=generator)
    return tokens.to(device), chat_roles(rows, length).to(device)


def difference_at_rest(models: dict[str, PreTrainedModel], tokens: Tensor, roles: Tensor) -> float:
    """Return the mean difference of logits of the base and its copy with a zero bias, in standard deviations."""
    with torch.no_grad():
        base = models[UNPATCHED](input_ids=tokens).logits.float()
        patched = models["bias"](input_ids=tokens, role_ids=roles).logits.float()
    return float((base - patched).abs().mean() / base.std())


def training_step(model: nn.Module, optimiser: torch.optim.Optimizer, tokens: Tensor, **roles: Tensor) -> None:
    """Run forward, backward and AdamW."""
    loss = model(input_ids=tokens, labels=tokens, use_cache=False, **roles).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def generate(model: PreTrainedModel, tokens: Tensor, new: int, **roles: Tensor) -> Tensor:
    """Generate exactly `new` tokens, greedily."""
    made: Tensor = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        **roles,
    )
    return made


def measure_training(session: Session, size: Size) -> dict[str, Any]:
    """Time a step of each model."""
    models = make_models(size, session.device)
    tokens, roles = batch_of(size, size.length, size.batch, session.device)
    short = min(512, size.length)
    at_rest = difference_at_rest(models, tokens[:1, :short], roles[:1, :short])
    absent = refusals(session, size, (False,))
    steps: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=session.device.type == "cuda")
        steps[name] = partial(training_step, model, optimiser, tokens, **roles_for(name, roles))
    if not at_rest <= LARGEST_DIFFERENCE:
        absent["bias"] = {FAILED: f"patched at rest, logits differ from the base by {at_rest:.3f} standard deviations"}
    extra = {"parameters": sum(p.numel() for p in models[UNPATCHED].parameters()), "difference_at_rest": at_rest}
    about = asdict(size) | extra
    return time_models(session, "train", steps, absent, about, size.train_rounds, size.batch * size.length)


def measure_generation(session: Session, size: Size) -> dict[str, Any]:
    """Time the generation of each model, prompt included."""
    models = make_models(size, session.device)
    tokens, roles = batch_of(size, size.prompt, 1, session.device)
    calls: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        model.eval()
        chosen = roles_for(name, roles)
        attempt(partial(generate, model, tokens, 2, **chosen), session.device)  # compiles; the next call reports errors
        calls[name] = partial(generate, model, tokens, size.generated, **chosen)
    absent = refusals(session, size, (False, True))
    return time_models(session, "generate", calls, absent, asdict(size), size.generate_rounds, size.generated)


def refusals(session: Session, size: Size, decodes: Sequence[bool]) -> Absent:
    """Return models that are not timed, because the gate did not pass the cases they need, decoding or not."""
    absent = {}
    for name, cases in NEEDS.items():
        for case, decode in product(cases, decodes):
            status, reason = worst(session.gate, case, size.dim, decode)
            if status != PASSED:
                absent[name] = {status: f"{case}: {reason}"}
    return absent


def time_models(
    session: Session,
    suite: str,
    calls: dict[str, Callable[[], Any]],
    absent: Absent,
    about: dict[str, Any],
    rounds: int,
    tokens: int,
) -> dict[str, Any]:
    """Time one cell; `tokens` is the number that one call generates or learns from."""

    def details(name: str, ms: float) -> dict[str, Any]:
        peak, _ = attempt(partial(peak_mib, calls[name], session.device), session.device)
        return {"tokens_per_s": tokens / ms * 1e3, "peak_mib": peak}

    timed = {name: call for name, call in calls.items() if name not in absent}
    return session.time_cell(suite, about, timed, absent, details, PAIRS, rounds=rounds)
