"""Time per generated token of a patched model on a CPU, compared with the unpatched model.

    python benchmarks/decode_cpu.py [--output FILE] [--lengths 512 2048 4096] [--rounds N] [--threads N]

A llama of 4 layers (d=512, 8 heads of 64) decodes one token after a cache of `length` tokens, by `impl="auto"`, with
random tables. The unpatched model and every preset take turns, each from a cache of its own, and a ratio is the median
over rounds of their times in the same round, with its 95% bootstrap interval. A preset is timed only after its logits
agreed with the specification (`impl="reference"`).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

import rolesafe  # noqa: E402
from benchmarks.attention_cpu import machine  # noqa: E402
from rolesafe.files import check_writable, write_whole  # noqa: E402
from rolesafe.patching.caches import cache_argument  # noqa: E402
from rolesafe.patching.patched import is_patched  # noqa: E402
from rolesafe.terminal import run_main  # noqa: E402
from tools.inputs import chat_roles  # noqa: E402
from tools.timing import Plan, interleave, quantiles, ratio, wall_timer  # noqa: E402

LAYERS, HIDDEN, HEADS, VOCAB = 4, 512, 8, 1024
PRESETS = ("bias", "channel")
RESULTS = ROOT / "benchmarks" / "results" / "decode_cpu.json"
CACHE = cache_argument(LlamaForCausalLM.forward)


def models(impl: str) -> dict[str, LlamaForCausalLM]:
    """Return the unpatched model, and a copy patched with each preset, with random tables."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=8192, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config).eval()
    found = {"unpatched": plain}
    for name in PRESETS:
        model = rolesafe.patch(copy.deepcopy(plain), rolesafe.RoleConfig.preset(name, impl=impl))
        for parameter_name, parameter in rolesafe.named_role_parameters(model):
            if parameter_name.endswith(".bias"):
                nn.init.normal_(parameter)
        found[name] = model.eval()
    return found


class Decoding:
    """Decode the same token again and again after a cache of `length` tokens."""

    def __init__(self, model: Any, length: int) -> None:
        self.model, self.length = model, length
        generator = torch.Generator().manual_seed(length)
        self.tokens = torch.randint(VOCAB, (1, length + 1), generator=generator)
        self.roles = chat_roles(1, length + 1)
        self.cache = DynamicCache(config=model.config)
        self._step(0, length)

    @torch.no_grad()
    def _step(self, first: int, last: int) -> Tensor:
        more = {"role_ids": self.roles[:, :last]} if is_patched(self.model) else {}
        tokens = self.tokens[:, first:last]
        return self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **{CACHE: self.cache}, **more).logits

    def __call__(self) -> Tensor:
        """Return the logits (1, 1, V) of the token after the cache."""
        return self._step(self.length, self.length + 1)

    def rewind(self) -> None:
        """Take the token out of the cache."""
        self.cache.crop(-1)


def decode_timer(calls: Any) -> list[float]:
    """Time decoding steps; the cache is rewound outside of the time."""
    found = []
    for call in calls:
        found += wall_timer([call])
        call.rewind()
    return found


def check(length: int = 200) -> None:
    """Raise AssertionError unless every preset agrees with the specification."""
    exact = models("reference")
    for name, model in models("auto").items():
        got, right = (Decoding(one, length)() for one in (model, exact[name]))
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


def measure(length: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return milliseconds (p20, p50, p80) a token of every model, and the ratio to the unpatched one."""
    calls: dict[str, Callable[[], Any]] = {name: Decoding(model, length) for name, model in models("auto").items()}
    for count in (3, rounds):
        times = interleave(calls, dict.fromkeys(calls, 0.0), decode_timer, Plan().fixed(count))
    return {
        name: quantiles(list(own.values())) | {"ratio": ratio(own, times["unpatched"])} for name, own in times.items()
    }


def show(report: dict[str, Any]) -> None:
    """Print a row per length and model."""
    console, where = Console(), report["environment"]
    console.print(f"torch {where['torch']}, {where['cpu']} ({where['capability']}), {where['threads']} threads")
    table = Table(title=f"decode, {LAYERS} layers, d={HIDDEN}, fp32, one token")
    for column in ("cached", "model", "p20 ms", "p50 ms", "p80 ms", "x unpatched", "95% interval", "rounds"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for part in report["results"]:
        for name, x in part["models"].items():
            r = x["ratio"]
            times = (f"{x[key]:.2f}" for key in ("p20_ms", "p50_ms", "p80_ms"))
            interval = f"{r['low']:.3f} to {r['high']:.3f}"
            table.add_row(str(part["length"]), name, *times, f"{r['median']:.3f}", interval, str(r["rounds"]))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check_writable(options.output, "--output")
    check()
    results = [{"length": length, "models": measure(length, options.rounds)} for length in options.lengths]
    settings = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "batch": 1, "dtype": "float32", "impl": "auto"}
    report = {"environment": machine(options.threads), "settings": settings, "results": results}
    write_whole(options.output, json.dumps(report, indent=1) + "\n")
    show(report)


if __name__ == "__main__":
    run_main(main)
