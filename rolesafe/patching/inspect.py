"""Report the effect of a patch on a model, from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rolesafe.attention import resolve_impl
from rolesafe.attention.backends import HAS_TRITON
from rolesafe.config import RoleConfig
from rolesafe.patching import families
from rolesafe.patching.apply import patch, unpatch
from rolesafe.patching.checkpoint import read_config
from rolesafe.patching.loading import reading
from rolesafe.patching.patched import named_role_parameters
from rolesafe.patching.seal import is_sealed, unseal_config

_PART_OF = {
    "bias": "bias",
    **{f"{which}_{kind}": "added heads" for which in "qkvo" for kind in ("weight", "bias")},
    "share": "reserved share",
    "weight": "role embeddings",
    "shift_weight": "shift",
    "shift_bias": "shift",
}
"""Names of the parts in the table, by the last name of their parameters."""

_WINDOW_NOTE = "in some layers: the reserved share excludes privileged keys outside of it"


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """Result of :func:`inspect_model`. Parameter counts are numbers of scalars."""

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
        """Return labels and values for a table."""
        if self.problem is not None:
            return [("family", self.model_type), ("can be patched", f"no. {self.problem}")]
        added = sum(self.role_parameters.values())
        return [
            ("family", f"{self.model_type} ({'tested' if self.tested else 'not tested: needs allow_untested=True'})"),
            ("attention layers", f"{self.patched_layers} of {self.layers} decoder layers"),
            ("heads per layer", _range(self.heads)),
            ("dedicated heads", _range(self.dedicated)),
            ("roles", ", ".join(f"{r}*" if r in self.config.privileged else r for r in self.config.roles)
             + "  (* privileged)"),
            *_fixed_parts(self.config),
            ("base parameters", f"{self.base_parameters:,}"),
            *((f"added: {kind}", f"{count:,}") for kind, count in self.role_parameters.items()),
            ("added in total", f"{added:,} ({100 * added / self.base_parameters:.3f} %)"),
            *((f"backend on {device}", name) for device, name in self.backends.items()),
            *([] if self.window is None else [("sliding window", f"{self.window} tokens {_WINDOW_NOTE}")]),
        ]  # fmt: skip


def count_presets(path: str) -> tuple[str, dict[str, int | str]]:
    """Return the model class of `path`, and the learned scalars of each preset or the reason it does not fit.

    Raises:
        ValueError: There is no model at `path`, it has a role layer, or cannot be patched at all.
    """
    if _read_sealed(path) is not None:
        raise ValueError(f"`model`: expected a plain model, got {path!r}, which has a role layer")
    with reading(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    kind = type(model).__name__
    if not families.attention_modules(model):
        raise ValueError(f"`model`: {kind} cannot be patched. {families.why_not(model)}")
    with torch.device("meta"):
        return kind, {name: _count(model, RoleConfig.preset(name)) for name in RoleConfig.presets()}


def _read_sealed(path: str) -> dict[str, Any] | None:
    """Return the configuration of a checkpoint with a role layer; None for any other."""
    with reading(path):
        about = read_config(path)
        return about if is_sealed(about) else None


def _count(model: Any, config: RoleConfig) -> int | str:
    """Return the learned scalars of `config` in `model`, or the reason it does not fit. `model` is unchanged."""
    try:
        patch(model, config, allow_untested=True)
    except ValueError as error:
        return str(error)
    count = sum(p.numel() for _, p in named_role_parameters(model))
    unpatch(model)
    return count


def inspect_model(path: str, config: RoleConfig) -> PatchReport:
    """Build the model of `path` without weights, patch it and report the role layer.

    Args:
        path: A directory or hub id. For a checkpoint with a role layer its own configuration is reported.
        config: Configuration of the patch.

    Raises:
        ValueError: There is no model at `path`, or `config` does not fit it.
    """
    sealed = _read_sealed(path)
    with reading(path), torch.device("meta"):
        if sealed is not None:
            config = RoleConfig.from_dict(sealed["rolesafe"])
            base = unseal_config(sealed)
            base_config: Any = AutoConfig.for_model(base.pop("model_type"), **base)
        else:
            base_config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
        base_parameters = sum(p.numel() for p in model.parameters())
        if not base_parameters:
            raise ValueError("a model without parameters")
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
    with torch.device("meta"):
        layers = families.decoder_layers(model)
        patch(model, config, allow_untested=True)
    counts: dict[str, int] = {}
    for name, parameter in named_role_parameters(model):
        part = _PART_OF[name.rsplit(".", 1)[1]]
        counts[part] = counts.get(part, 0) + parameter.numel()
    heads: list[Any] = [module.rolesafe_heads for layer in layers for module in layer.attention]
    special: dict[str, Any] = {
        "softcap": any(getattr(m, "attn_logit_softcapping", None) is not None for m in attention.values()),
        "sinks": any(hasattr(m, "sinks") for m in attention.values()),
        "mass_target": config.mass_target > 0,
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
        backends={"CPU": chosen, "CUDA": _on_cuda(backend, chosen, attention.values(), config)},
        window=_window(model.config.get_text_config()),
        config=config,
    )


def _fixed_parts(config: RoleConfig) -> Iterator[tuple[str, str]]:
    """Iterate over labels and values of the parts without learned parameters."""
    if config.share_floor:
        yield "reserved share", f"at least {config.share_floor:g}, learned above"
    if config.integrity:
        yield "integrity", "privileged queries see privileged keys only"
    if config.rotation or config.shift:
        acts = [f"rotated by {math.degrees(config.rotation):.4g} degrees"] if config.rotation else []
        acts += ["shifted"] if config.shift else []
        yield "data tokens", f"{', '.join(acts)} ({', '.join(config.roles[i] for i in config.data_ids)})"
    if config.moves_positions:
        how = ["counted per channel"] if config.own_positions else []
        how += [f"others {config.position_gap} later"] if config.position_gap else []
        yield "positions", ", ".join(how)
    steering = [f"privileged keys x {config.boost:g}"] if config.boost != 1 else []
    steering += [f"other keys x {config.dampen:g}"] if config.dampen != 1 else []
    if steering:
        where = "all heads" if config.steered_heads is None else f"{len(config.steered_heads)} heads"
        yield "attention weights", f"{', '.join(steering)} ({where})"
    if config.mass_target:
        yield "mass target", f"{config.mass_target:g}"


def _on_cuda(backend: str, elsewhere: str, attention: Iterable[Any], config: RoleConfig) -> str:
    """Return the choice of "auto" on an NVIDIA GPU of compute capability 8.0 or newer, in half or single precision."""
    if backend != "auto" or not HAS_TRITON or config.mass_target:
        return elsewhere
    from rolesafe_kernels import MAX_DIM  # late: it imports triton

    return "triton" if all((getattr(m, "head_dim", None) or 0) <= MAX_DIM for m in attention) else elsewhere


def _range(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}, by layer"


def _window(config: Any) -> int | None:
    """Return the length of the sliding windows or chunks of a model; None without any."""
    kinds = getattr(config, "layer_types", None) or ()
    used = any("sliding" in kind or "chunked" in kind for kind in kinds) if kinds else True
    size = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return size if used and isinstance(size, int) and getattr(config, "use_sliding_window", True) else None
