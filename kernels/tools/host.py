"""Host time of the fused kernel's calls and of a patched layer at decode. No GPU is needed.

    python -m tools.host [--rounds N] [--output FILE]

Launches go through Triton up to its launcher, which does nothing (`stub`): all that a CPU does for a GPU is timed but
the driver's part of a launch. A layer is the difference of a decode step of a patched llama and of the same llama with
an attention that returns its queries, in the same round, divided by the number of layers: hooks, checks, roles,
launches and all that is done once per forward pass. Its linear layers return unwritten memory: on a GPU they cost the
CPU a launch, and here weights would displace the measured code from its caches. "New length" is a step at a length that
no call had before, as in generation with a growing cache.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rolesafe_kernels import RoleLayout, api
from rolesafe_kernels import role_attention as kernel_attention
from rolesafe_kernels.replay import Kept
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaForCausalLM

import rolesafe
from rolesafe.files import check_writable, write_whole
from rolesafe.patching.caches import cache_argument
from rolesafe.terminal import run_main
from tools.environment import environment
from tools.inputs import Features, Shape, make_inputs
from tools.stub import stub_device
from tools.timing import Plan, bootstrap_median, interleave

LAYERS, CACHED = 16, 16
STEP = Shape(1, 32, 8, 1, 2048, 128)
FEATURES = {
    "plain": Features(),
    "bias": Features(bias=True),
    "channel": Features(bias=True, share=True, dedicated=0.5, integrity=True),
}
PRESETS = ("bias", "channel")


def no_attention(module: nn.Module, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Return the queries (B, T, H, D) as the output of attention."""
    return query.transpose(1, 2), None


class Unwritten(nn.Module):
    """A linear layer whose outputs are unwritten memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], self.width)


def small_llama(attention: str) -> LlamaForCausalLM:
    """Return a llama with the heads of a large one (H=32, G=8, D=128), 16 layers and little else."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=STEP.heads,
        num_key_value_heads=STEP.groups, head_dim=STEP.dim, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for module in [*model.model.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(module, name, Unwritten(child.out_features))
    return model


def decode_step(model: Any, new_length: bool = False) -> Callable[[], None]:
    """Return a call that decodes one token after `CACHED` cached ones, and takes it back.

    `new_length`: the kernel takes each call for the first of its length.
    """
    patched = hasattr(model, "rolesafe_layers")
    tokens = torch.randint(3, 60, (1, CACHED + 1), generator=torch.Generator().manual_seed(0))
    roles = torch.full_like(tokens, 2)
    roles[:, :9] = 0
    cache = DynamicCache(config=model.config)
    name = cache_argument(type(model).forward)

    @torch.no_grad()
    def step(first: int, last: int) -> None:
        more = {"role_ids": roles[:, :last]} if patched else {}
        model(input_ids=tokens[:, first:last], use_cache=True, **{name: cache}, **more)

    def decode() -> None:
        names = vars(api)
        usual = names["PLANS"]
        names["PLANS"] = Kept() if new_length else usual
        step(CACHED, CACHED + 1)
        names["PLANS"] = usual
        cache.crop(-1)

    step(0, CACHED)
    return decode


def layer_times(rounds: int) -> dict[str, dict[str, float]]:
    """Return the microseconds of a patched layer, median over rounds with its interval, by preset."""
    AttentionInterface.register("no_attention", no_attention)
    calls = {"no attention": decode_step(small_llama("no_attention"))}
    for name in PRESETS:
        model = small_llama("sdpa")
        rolesafe.patch(model, rolesafe.RoleConfig.preset(name, impl="triton"))
        for parameter_name, parameter in rolesafe.named_role_parameters(model):
            if parameter_name.endswith("bias"):
                nn.init.normal_(parameter)
        calls[name], calls[f"{name}, new length"] = decode_step(model), decode_step(model, new_length=True)
    times = timed(calls, rounds)
    base = times.pop("no attention")
    return {
        name: bootstrap_median([(own[i] - base[i]) * 1e3 / LAYERS for i in sorted(own)]) for name, own in times.items()
    }


def call_times(rounds: int) -> dict[str, dict[str, float]]:
    """Return the microseconds of a decode call of the kernel with prepared roles, by features."""
    calls: dict[str, Callable[[], None]] = {}
    for name, features in FEATURES.items():
        x = make_inputs(STEP, torch.bfloat16, torch.device("cpu"), features)
        roles = () if name == "plain" else (x.q_roles, x.k_roles)
        layout = RoleLayout(*roles) if roles else None

        def call(x: Any = x, roles: Any = roles, layout: Any = layout, features: Features = features) -> None:
            with torch.no_grad():
                kernel_attention(x.q, x.k, x.v, *roles, **x.tables(features), layout=layout)

        calls[name] = call
    return {name: bootstrap_median([ms * 1e3 for ms in own.values()]) for name, own in timed(calls, rounds).items()}


def cpu_timer(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the CPU milliseconds of each call in this thread: nothing here waits, and other processes do not count."""
    found = []
    for call in calls:
        start = time.thread_time_ns()
        call()
        found.append((time.thread_time_ns() - start) / 1e6)
    return found


def timed(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[int, float]]:
    """Return the milliseconds of `calls` by round, after a tenth as many rounds to warm up."""
    for count in (max(rounds // 10, 3), rounds):
        times = interleave(calls, dict.fromkeys(calls, 0.0), cpu_timer, Plan().fixed(count))
    return times


def show(found: dict[str, Any]) -> None:
    """Print the times."""
    for title, rows in (("kernel call", found["call_us"]), ("patched layer", found["layer_us"])):
        for name, row in rows.items():
            print(f"{title}, {name}: {row['median']:.1f} us ({row['low']:.1f} to {row['high']:.1f}), n={row['rounds']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1200, help="calls of the kernel; a quarter as many decode steps")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    if options.output:
        check_writable(options.output, "--output")
    torch.set_num_threads(1)
    with stub_device():
        found = {"call_us": call_times(options.rounds), "layer_us": layer_times(max(options.rounds // 4, 3))}
    show(found)
    if options.output:
        report = {"environment": environment(torch.device("cpu")), "layers": LAYERS, **found}
        write_whole(options.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
