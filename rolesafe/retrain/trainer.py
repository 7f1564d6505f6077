"""`ReplyTrainer`: a Trainer with a loss that computes logits at the labelled positions only.

Legend: B rows, T tokens, d hidden size, V vocabulary, N labelled positions.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolesafe.training import RoleTrainer
from rolesafe.training.collator import IGNORED


class ReplyTrainer(RoleTrainer):
    """`RoleTrainer` with the same loss in less memory.

    The hidden states (B, T, d) are reduced to the N positions before a label, (1, N, d), in front of the output layer,
    so the logits of the prompt, a part of (B, T, V), are never computed. Soft caps and scales of the logits are
    preserved. Supports models wrapped by PEFT.

    Attributes:
        tokens_seen: Number of tokens of the batches so far in this process, without padding.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("loss") is not None:
            raise ValueError("`loss`: expected None, got a loss: ReplyTrainer has its own. Use RoleTrainer.")
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"`args`: expected one GPU for each process, got {self.args.n_gpu} in one. Set CUDA_VISIBLE_DEVICES to "
                "one of them."
            )
        self.tokens_seen = 0
        self._began = time.perf_counter()
        self._earlier: dict[str, float] | None = None
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the cross-entropy of the labels, summed and divided by their number in the whole step.

        Raises:
            ValueError: The model does not call its output layer exactly once.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        mask = inputs.get("attention_mask")
        self.tokens_seen += int(mask.sum()) if mask is not None else labels.numel()
        loss, outputs = reply_loss(model, self.accelerator.unwrap_model(model), inputs, labels, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the tokens and seconds of the whole training so far."""
        if "loss" in logs:
            if self._earlier is None:  # counters of the process before a resume
                self._earlier = next((entry for entry in reversed(self.state.log_history) if "seconds" in entry), {})
            logs["tokens"] = self.tokens_seen + self._earlier.get("tokens", 0)
            logs["seconds"] = round(time.perf_counter() - self._began + self._earlier.get("seconds", 0.0), 1)
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0, because counting visits all modules in every step and the number is not used."""
        return 0


def reply_loss(
    model: nn.Module, unwrapped: Any, inputs: dict[str, Any], labels: Tensor, count: Tensor | int | None = None
) -> tuple[Tensor, Any]:
    """Return the loss of the labelled positions, and the outputs with logits (1, N, V).

    Args:
        model: Model to call with `inputs`.
        unwrapped: Same model without DDP; `get_output_embeddings` returns its output layer.
        inputs: Arguments of the model without labels.
        labels: Labels (B, T), -100 at ignored positions.
        count: Divisor of the sum; ``None``: the number of labels.

    Raises:
        ValueError: The model has no output layer, or does not call it exactly once.
    """
    head = unwrapped.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"`model`: expected a causal language model with an output layer, got {type(unwrapped).__name__}. Load it "
            "with AutoModelForCausalLM."
        )
    # position t predicts token t + 1
    next_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    chosen = next_labels != IGNORED
    calls = 0

    def keep_labelled(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        hidden = args[0]
        return (hidden[chosen.to(hidden.device)].unsqueeze(0), *args[1:])

    handle = head.register_forward_pre_hook(keep_labelled)
    try:
        outputs = model(**inputs, use_cache=False)
    finally:
        handle.remove()
    if calls != 1:
        raise ValueError(
            f"`model`: expected {type(unwrapped).__name__} to call its output layer once, got {calls} calls. Train it "
            "with rolesafe.training.RoleTrainer."
        )
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    target = next_labels[chosen].to(logits.device)
    total = F.cross_entropy(logits[0].float(), target, reduction="sum")
    divisor = target.numel() if count is None else count
    if isinstance(divisor, Tensor):
        divisor = divisor.to(total.device)
    return total / divisor, outputs


def has_bf16() -> bool:
    """Return True where the GPU, or the processor without a GPU, has instructions for bfloat16."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu: Any = torch.cpu
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(cpu, name, lambda: False)()) for name in checks)


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 of names, shapes and some values of all parameters, as an identifier of the base model."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {some.tolist()}".encode())
    return digest.hexdigest()
