"""Training steps of role-aware models in the libraries of model builders, compared with the plain model there.

    python -m benchmarks.stacks [--only NAME ...] [--steps N] [--rounds N] [--output FILE]

Every stack runs its own code, first on the plain model, then on models patched with the presets `bias` and `channel`,
in turns. A ratio is the CPU time of the fastest step (one thread) divided by that of the plain model in the same run;
for the engines, that of the first of two processes. Stacks of packages that are not installed are left out. A run with
`--only` replaces those stacks in the record.

The lines of glue are the code that is run, as recorded.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

import rolesafe
from rolesafe.evaluation import environment
from rolesafe.files import check_writable, write_whole
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.terminal import run_main
from rolesafe.training.tiny import tiny_tokenizer

RESULTS = Path(__file__).parent / "results" / "stacks.json"
PRESETS = ("bias", "channel")
TOKENS, BATCH = 384, 2
WARMUP = 2
"""Number of steps at the start of each run that are not counted."""

LORA = "peft.LoraConfig(r=8, target_modules='all-linear', task_type='CAUSAL_LM')"
ROLE_LORA = "role_lora_config(model, r=8, target_modules='all-linear')"
TRAINER = "trainer = RoleTrainer(model, args, data_collator=collator(model), train_dataset=rows)"
PATCH = "rolesafe.patch(model, config)"


@dataclass(frozen=True)
class Stack:
    """Code of one stack.

    Attributes:
        packages: Packages that it needs.
        works: Abilities that the tests show.
        plain: Lines for the plain model, which end with a `trainer`.
        glue: Lines for the role-aware model in their place.
        processes: Number of processes; with 2, the lines end with a `model` that is called.
        load: Maker of the plain model, from its folder.
    """

    packages: tuple[str, ...]
    works: str
    plain: tuple[str, ...]
    glue: tuple[str, ...]
    processes: int = 1
    load: Callable[[Path], Any] | None = None


def _quantised(folder: Path) -> Any:
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, device_map="cpu")
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


STACKS: dict[str, Stack] = {
    "Trainer": Stack(
        (), "seeds, resume, best model, annealing, `LogRoles`",
        (TRAINER,), (PATCH, TRAINER),
    ),
    "PEFT LoRA": Stack(
        ("peft",), "train, save, load, resume, merge, disable",
        (f"model = peft.get_peft_model(model, {LORA})", TRAINER),
        (PATCH, f"model = peft.get_peft_model(model, {ROLE_LORA})", TRAINER),
    ),
    "PEFT DoRA": Stack(
        ("peft",), "as LoRA",
        (f"model = peft.get_peft_model(model, {LORA[:-1]}, use_dora=True))", TRAINER),
        (PATCH, f"model = peft.get_peft_model(model, {ROLE_LORA[:-1]}, use_dora=True))", TRAINER),
    ),
    "PEFT QLoRA (nf4)": Stack(
        ("peft", "bitsandbytes"), "as LoRA; the role layer stays in fp32",
        (f"model = peft.get_peft_model(model, {LORA})", TRAINER),
        (PATCH, f"model = peft.get_peft_model(model, {ROLE_LORA})", TRAINER),
        load=_quantised,
    ),
    "TRL SFT": Stack(
        ("trl",), "conversations, completions, assistant-only loss, truncation, LoRA",
        ("trainer = trl.SFTTrainer(model, sft, train_dataset=completions, processing_class=tokenizer)",),
        (PATCH, "trainer = RoleSFTTrainer(model, sft, train_dataset=completions, processing_class=tokenizer)"),
    ),
    "TRL SFT, packed": Stack(
        ("trl",), "packing (`bfd`) and padding-free batches",
        ("trainer = trl.SFTTrainer(model, packed, train_dataset=completions, processing_class=tokenizer)",),
        (PATCH, "trainer = RoleSFTTrainer(model, packed, train_dataset=completions, processing_class=tokenizer)"),
    ),
    "TRL DPO": Stack(
        ("trl",), "role-aware reference (copy, precomputed, or the model without its adapter)",
        (
            "reference = copy.deepcopy(model)",
            "trainer = trl.DPOTrainer(model, reference, dpo, train_dataset=pairs, processing_class=tokenizer)",
        ),
        (PATCH, "trainer = RoleDPOTrainer(model, args=dpo, train_dataset=pairs, processing_class=tokenizer)"),
    ),
    "TRL GRPO": Stack(
        ("trl",), "role-aware rollouts, losses and reference",
        ("trainer = trl.GRPOTrainer(model, reward, grpo, train_dataset=prompts, processing_class=tokenizer)",),
        (PATCH, "trainer = RoleGRPOTrainer(model, reward, grpo, train_dataset=prompts, processing_class=tokenizer)"),
    ),
    "DDP": Stack(
        (), "same parameters as one process; saved on two, loaded on one",
        ("model = DistributedDataParallel(model)",),
        (PATCH, "model = DistributedDataParallel(model)"),
        processes=2,
    ),
    "FSDP2": Stack(
        (), "as DDP; a patch after `fully_shard` raises",
        ("for layer in model.model.layers: fully_shard(layer)", "fully_shard(model)"),
        (PATCH, "for layer in model.model.layers: fully_shard(layer)", "fully_shard(model)"),
        processes=2,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ material


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Return conversations of about TOKENS tokens: those of the demo, with more text of the user."""
    found = training_conversations(count, seed=0)
    for i, one in enumerate(found):
        user = next(message for message in one if message["role"] == "user")
        more = " ".join(message["content"] for other in found[i:] + found[:i] for message in other)
        user["content"] += " " + " ".join(more.split()[: TOKENS - 90])
    return found


def plain_model(vocab_size: int) -> Any:
    """Return a random llama of 2 layers (d=384, 6 heads of 64)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 2, "num_attention_heads": 6}
    tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=2048, **sizes, **tokens))


class Clock(TrainerCallback):
    """Measure the CPU time of every step, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.start = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.times.append(time.process_time() - self.start)


def names(stack: Stack, preset: str | None, steps: int, directory: str) -> dict[str, Any]:
    """Return the variables of the lines of a stack."""
    from rolesafe.training import RoleCollator, RoleTrainer

    tokenizer = tiny_tokenizer(vocabulary())
    tokenizer.model_max_length = 2048
    talks = conversations(BATCH * steps + BATCH)
    config = None if preset is None else rolesafe.RoleConfig.preset(preset)
    common: dict[str, Any] = {
        "output_dir": directory, "max_steps": steps, "per_device_train_batch_size": BATCH, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no",
        "gradient_checkpointing": False,
    }  # fmt: skip

    def collator(model: Any) -> Any:
        return RoleCollator(tokenizer=tokenizer, config=config or rolesafe.RoleConfig(), with_roles=preset is not None)

    found = {
        "rolesafe": rolesafe, "copy": copy, "tokenizer": tokenizer, "config": config, "collator": collator,
        "RoleTrainer": RoleTrainer, "args": TrainingArguments(**common), "rows": [{"messages": one} for one in talks],
        "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    }  # fmt: skip
    if "peft" in stack.packages:
        import peft

        from rolesafe.integrations.peft import role_lora_config

        found |= {"peft": peft, "role_lora_config": role_lora_config}
    if "trl" in stack.packages:
        import trl
        from datasets import Dataset

        from rolesafe.integrations import trl as ours

        common |= {"bf16": False}
        found |= {name: getattr(ours, name) for name in ours.__all__} | {
            "trl": trl,
            "sft": trl.SFTConfig(**common),
            "packed": trl.SFTConfig(**common, packing=True, max_length=512),
            "dpo": trl.DPOConfig(**common),
            "grpo": trl.GRPOConfig(**common, num_generations=BATCH, max_completion_length=16),
            "completions": Dataset.from_list([{"prompt": one[:-1], "completion": one[-1:]} for one in talks]),
            "pairs": Dataset.from_list(
                [{"prompt": one[:-1], "chosen": one[-1:], "rejected": talks[0][-1:]} for one in talks]
            ),
            "prompts": Dataset.from_list([{"prompt": one[:-1]} for one in talks]),
            "reward": lambda completions, **columns: [float(len(one[0]["content"])) for one in completions],
        }
    if stack.processes > 1:
        from torch.distributed.fsdp import fully_shard

        found["fully_shard"] = fully_shard
    return found


# ----------------------------------------------------------------------------------------------------------- measuring


def step_times(name: str, presets: tuple[str | None, ...], steps: int) -> dict[str | None, list[float]]:
    """Return the CPU times of the steps of one run of every model of a stack, without those of the warmup."""
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()):
        if (processes := STACKS[name].processes) > 1:
            torch.multiprocessing.spawn(_in_process, (name, presets, steps, directory), nprocs=processes)
            times = json.loads(Path(directory, "times.json").read_text(encoding="utf-8"))
        else:
            times = [_trained(name, preset, steps, directory) for preset in presets]
        return {preset: own[WARMUP:] for preset, own in zip(presets, times, strict=True)}


def _trained(name: str, preset: str | None, steps: int, directory: str) -> list[float]:
    """Return the times of all steps of a trainer."""
    stack = STACKS[name]
    found = names(stack, preset, steps, directory)
    model = plain_model(len(found["tokenizer"]))
    if stack.load is not None:
        model.save_pretrained(f"{directory}/plain")
        model = stack.load(Path(directory, "plain"))
    found["model"] = model
    exec("\n".join(stack.plain if preset is None else stack.glue), found)
    clock = Clock()
    found["trainer"].add_callback(clock)
    found["trainer"].train()
    return clock.times


def _in_process(rank: int, name: str, presets: tuple[str | None, ...], steps: int, directory: str) -> None:
    """Train all models in one of several processes; the first one writes its times."""
    torch.set_num_threads(1)
    stack, times = STACKS[name], []
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=stack.processes
    )
    for preset in presets:
        found = names(stack, preset, steps, directory)
        found["model"] = plain_model(len(found["tokenizer"]))
        exec("\n".join(stack.plain if preset is None else stack.glue), found)
        model, collate = found["model"], found["collator"](None)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        times.append([])
        for step in range(steps):
            batch = collate(found["rows"][step * BATCH : step * BATCH + BATCH])
            start = time.process_time()
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times[-1].append(time.process_time() - start)
    if rank == 0:
        write_whole(Path(directory, "times.json"), json.dumps(times))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Return the record of one stack: its lines, and seconds of the fastest step of every model."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for preset, own in step_times(name, (None, *PRESETS), steps).items():
            times.setdefault(preset or "plain", []).extend(own)
    stack = STACKS[name]
    return {
        "works": stack.works,
        "glue": list(stack.glue),
        "packages": {package: version(package) for package in stack.packages},
        "seconds": {case: round(min(own), 4) for case, own in times.items()},
        "steps": len(times["plain"]),
    }


def block() -> str:
    """Return the Markdown table of the record."""
    stacks = json.loads(RESULTS.read_text(encoding="utf-8"))["stacks"]
    lines = [
        f"| stack | what works | lines of glue | {' | '.join(f'step, `{name}`' for name in PRESETS)} |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for name, stack in STACKS.items():
        seconds = stacks.get(name, {}).get("seconds")
        ratios = [f"{seconds[preset] / seconds['plain']:.2f}x" if seconds else "not yet measured" for preset in PRESETS]
        lines.append(f"| {name} | {stack.works} | {len(stack.glue)} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> int:
    """Run the stacks and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure training steps of role-aware models in other libraries.")
    parser.add_argument("--only", nargs="+", choices=list(STACKS), default=list(STACKS), help="stacks to run")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run, with the warmup")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every model")
    parser.add_argument("--output", type=Path, default=RESULTS, help="record to write")
    args = parser.parse_args()
    if args.steps <= WARMUP:
        parser.error(f"--steps: expected more than {WARMUP}, got {args.steps}")
    check_writable(args.output, "--output")
    torch.set_num_threads(1)
    console = Console()
    before = json.loads(args.output.read_text(encoding="utf-8"))["stacks"] if args.output.exists() else {}
    for name in args.only:
        if missing := [package for package in STACKS[name].packages if find_spec(package) is None]:
            console.print(f"{name}: left out, {', '.join(missing)} is not installed")
            continue
        before[name] = measure(name, args.steps, args.rounds)
        console.print(f"{name}: {before[name]['seconds']}")
        where = environment()
        record = {
            "environment": {"versions": dict(where.versions), "hardware": where.hardware, "commit": where.commit},
            "tokens": TOKENS,
            "batch": BATCH,
            "stacks": {name: before[name] for name in STACKS if name in before},
        }
        write_whole(args.output, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_main(main)
