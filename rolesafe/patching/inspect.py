"""What a patch would add to a model, told from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rolesafe.attention import resolve_impl
from rolesafe.attention.api import HAS_TRITON
from rolesafe.config import RoleConfig
from rolesafe.patching import families
from rolesafe.patching.apply import patch, role_parameters
from rolesafe.patching.checkpoint import MODEL_TYPE, read_config

_WINDOW_NOTE = "in some layers: privileged keys that left it are reserved no attention there"


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """What :func:`inspect_model` found. Parameter counts are numbers of scalars."""

    architecture: str
    model_type: str
    tested: bool
    problem: str | None
    base_parameters: int
    config: RoleConfig
    layers: int = 0
    patched_layers: int = 0
    heads: tuple[int, ...] = ()
    dedicated: tuple[int, ...] = ()
    role_parameters: dict[str, int] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    window: int | None = None

    def lines(self) -> list[tuple[str, str]]:
        """Labels and values for a table."""
        if self.problem is not None:
            return [("family", self.model_type), ("can be patched", f"no. {self.problem}")]
        added = sum(self.role_parameters.values())
        return [
            ("family", f"{self.model_type} ({'tested' if self.tested else 'not tested: needs allow_untested=True'})"),
            ("attention layers", f"{self.patched_layers} of {self.layers} decoder layers"),
            ("heads per layer", _range(self.heads)),
            ("of them dedicated", _range(self.dedicated)),
            ("roles", ", ".join(f"{r}*" if r in self.config.privileged else r for r in self.config.roles)
             + "  (* privileged)"),
            ("base parameters", f"{self.base_parameters:,}"),
            *((f"added: {kind}", f"{count:,}") for kind, count in self.role_parameters.items()),
            ("added in all", f"{added:,} ({100 * added / self.base_parameters:.3f} %)"),
            *((f"backend on {device}", name) for device, name in self.backends.items()),
            *([] if self.window is None else [("sliding window", f"{self.window} tokens {_WINDOW_NOTE}")]),
        ]  # fmt: skip


def inspect_model(path: str, config: RoleConfig) -> PatchReport:
    """Build the model of `path` without weights and patch that.

    Args:
        path: A directory or hub id. Of a checkpoint with a role layer its own configuration is shown.
        config: What a patch would use.

    Raises:
        ValueError: `config` does not fit the model.
        OSError: There is no model at `path`.
    """
    sealed = read_config(path)
    if sealed is not None and sealed.get("model_type") == MODEL_TYPE:
        config = RoleConfig.from_dict(sealed["rolesafe"])
        base = dict(sealed["base_config"])
        base_config: Any = AutoConfig.for_model(base.pop("base_model_type"), **base)
    else:
        base_config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
        base_parameters = sum(p.numel() for p in model.parameters())
        kind = type(model).__name__
        attention = families.attention_modules(model)
        if not attention:
            return PatchReport(
                architecture=kind,
                model_type=model.config.model_type,
                tested=False,
                problem=families.why_not(model),
                base_parameters=base_parameters,
                config=config,
            )
        layers = families.decoder_layers(model)
        patch(model, config, allow_untested=True)
    counts: dict[str, int] = {}
    for name, parameter in role_parameters(model):
        part = {"bias": "bias", "share": "reserved share", "weight": "role embeddings"}[name.rsplit(".", 1)[1]]
        counts[part] = counts.get(part, 0) + parameter.numel()
    heads: list[Any] = [module.rolesafe_heads for layer in layers for module in layer.attention]
    special: dict[str, Any] = {
        "softcap": any(getattr(m, "attn_logit_softcapping", None) is not None for m in attention.values()),
        "sinks": any(hasattr(m, "sinks") for m in attention.values()),
    }
    backend = model.rolesafe_layers.impl
    chosen = backend if backend != "auto" else resolve_impl("auto", **special)
    return PatchReport(
        architecture=kind,
        model_type=model.config.model_type,
        tested=model.config.model_type in families.FAMILIES,
        problem=None,
        layers=len(layers),
        patched_layers=sum(bool(layer.attention) for layer in layers),
        heads=tuple(sorted({h.heads for h in heads})),
        dedicated=tuple(sorted({h.dedicated for h in heads})),
        base_parameters=base_parameters,
        role_parameters=counts,
        backends={"CPU": chosen, "CUDA": _on_cuda(backend, chosen, attention.values())},
        window=_window(model.config.get_text_config()),
        config=config,
    )


def _on_cuda(backend: str, elsewhere: str, attention: Iterable[Any]) -> str:
    """What "auto" takes on an NVIDIA GPU of compute capability 8.0 or newer, in half or single precision."""
    if backend != "auto" or not HAS_TRITON:
        return elsewhere
    from rolesafe_kernels import MAX_DIM  # late: it imports triton

    return "triton" if all((getattr(m, "head_dim", None) or 0) <= MAX_DIM for m in attention) else elsewhere


def _range(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}, by layer"


def _window(config: Any) -> int | None:
    """Length of the sliding windows or chunks that some layers of a model attend in."""
    kinds = getattr(config, "layer_types", None) or ()
    used = any("sliding" in kind or "chunked" in kind for kind in kinds) if kinds else True
    size = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return size if used and isinstance(size, int) and getattr(config, "use_sliding_window", True) else None
