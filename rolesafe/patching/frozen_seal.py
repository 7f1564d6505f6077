"""Digests that bind frozen keys and values to what they were computed from, and a fast check of the weights."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from rolesafe.mechanisms import get_strength
from rolesafe.patching.checkpoint_files import digest, tensor_digest
from rolesafe.patching.locked import LOCKED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = {
    "weights": "the weights of the model",
    "configuration": "the configuration of the model or its role layer",
    "template": "the chat template",
    "tokenizer": "the tokenizer",
    "computation": "the attention backend, device or library versions",
    "tokens": "the tokens of the messages, or their roles",
    "states": "the keys and values",
}
"""Entries of a seal, in the order in which they are compared, with words for errors."""

_RUNTIME = (
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "use_cache",
    "_attn_implementation_internal",
    LOCKED,
)
_SAMPLE = 64  # elements of each tensor that the fast check reads


def state_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Iterate over names and tensors of all parameters and buffers of a model.

    Raises:
        ValueError: They are sharded, or not in memory.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or hasattr(tensor, "placements"):
            raise ValueError(
                f"`model`: expected weights in the memory of this process, got {name}, which is sharded or offloaded. "
                "Freeze the prompt with a whole model."
            )
        yield name, tensor.detach()


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers."""
    return tensor_digest(dict(state_tensors(model)))


def configuration_digest(model: Any) -> str:
    """Return the digest of the configuration of a patched model, its role layer and their strength."""
    about = {key: value for key, value in model.config.to_dict().items() if key not in _RUNTIME}
    roles = {"rolesafe": model.rolesafe_config.to_dict(), "strength": get_strength(model)}
    return digest({"class": type(model).__name__, "config": _plain(about), **roles})


def _plain(value: Any) -> Any:
    """Return a value of JSON types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of a tokenizer: its rules where they are data, its vocabulary and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = None
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # the last call's
            rules.pop(state, None)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    added = {str(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    vocabulary = tokenizer.get_vocab() if rules is None else len(tokenizer)
    return digest({"rules": rules, "vocabulary": vocabulary, "special": special, "added": added})


def computation_of(model: Any) -> dict[str, str]:
    """Return what decides the rounding of a result beyond weights and inputs: backend, device, versions."""
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {
        "backend": str(model.rolesafe_layers.impl),
        "device": f"{device.type} {name} {capability}".strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class WeightsWatch:
    """Check, without reading all of them, that weights are those of a digest.

    It compares addresses, PyTorch's counters of in-place changes, and the bits of a sample of every tensor, which
    shows changes past the counters (``parameter.data``) unless they miss the sample. Where anything differs, or
    counters do not exist (inference tensors), all weights are read again.

    Args:
        model: The model.
        expected: Digest that its weights must have.
    """

    def __init__(self, model: nn.Module, expected: str) -> None:
        self._model, self._expected = model, expected
        self._last: tuple[Any, ...] | None = None

    def holds(self) -> bool:
        """Return True if the weights have the digest."""
        now = self._look()
        if now is not None and self._last is not None and _same(now, self._last):
            return True
        if weights_digest(self._model) != self._expected:
            self._last = None
            return False
        self._last = now
        return True

    def _look(self) -> tuple[Any, ...] | None:
        tensors = list(state_tensors(self._model))
        if any(tensor.is_inference() for _, tensor in tensors):
            return None
        marks = [(name, x.data_ptr(), x._version, x.dtype, x.shape) for name, x in tensors]
        flat = [x.reshape(-1) for _, x in tensors]
        sample = [x[:: max(1, x.numel() // _SAMPLE)].clone().contiguous().view(torch.uint8) for x in flat if x.numel()]
        by_device: dict[torch.device, list[Tensor]] = {}
        for one in sample:
            by_device.setdefault(one.device, []).append(one)
        return marks, [torch.cat(parts) for parts in by_device.values()]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(torch.equal, a[1], b[1]))
