"""Model families that can be patched, and the attention modules of a model. No family needs code of its own.

A family is known once it has gone through the tests in `tests/patching/test_families.py`: bit-exact at rest, roles
change the output, cached equals uncached with left padding.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

FAMILIES = frozenset(
    (
        "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "beam", "bert", "bert-generation",
        "biogpt", "bitnet", "camembert", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "data2vec-text",
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "diffllama", "electra", "ernie",
        "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon_h1", "flex_olmo", "flint", "gemma",
        "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4",
        "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss",
        "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared",
        "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "internlm3",
        "iquestcoder", "jais2", "jamba", "jetmoe", "kolibri1", "laguna", "lfm2", "lfm2_moe", "llama",
        "llama4_text", "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text",
        "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "nanochat", "nemotron_h", "olmo",
        "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2",
        "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "roberta",
        "roberta-prelayernorm", "roc_bert", "seed_oss", "smollm3", "solar_open", "starcoder2", "vaultgemma",
        "xlm-roberta", "xlm-roberta-xl", "youtu",
    )
)  # fmt: skip
"""Model types that pass the family tests."""

_DROPS = "Missing: it does not pass keyword arguments on to its attention, so roles cannot reach it."
_BIAS = "Missing: its attention adds a position bias of its own, which role-aware attention does not compute."
GAPS = {
    "deepseek_v4": "Missing: its compressor adds keys of several tokens each, and those have no role.",
    "doge": "Missing: its attention makes a float mask of its own, which role-aware attention does not compute.",
    "inkling_text": _BIAS,
    "inkling2_text": _BIAS,
    "nemotron": _DROPS,
    "stablelm": _DROPS,
    "whisper": "Missing: its cross-attention has no roles.",
}
"""Reason a family is unsupported although it uses transformers' attention interface."""

MIXES_OUTSIDE_ATTENTION = frozenset({"falcon_h1"})
"""Families whose layers also mix tokens outside of their attention (Mamba): integrity is refused."""

CHOOSES_KEYS = frozenset({"axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text"})
"""Families whose layers choose a limited number of keys before attention, among all tokens: integrity is refused."""

STREAMS = frozenset({"hy_v4"})
"""Families whose layers pass on several streams per token: there is no single input to add an embedding to."""

NO_POSITIONS = frozenset({"jamba", "nemotron_h"})
"""Families that take `position_ids` and use them nowhere: order comes from their Mamba layers."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer: where it is, and its attention modules (none in a layer of another kind, such as Mamba)."""

    name: str
    module: nn.Module
    attention: tuple[nn.Module, ...]


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules, by name, whose `forward` goes through transformers' attention interface."""
    return {name: module for name, module in model.named_modules() if _uses_interface(type(module))}


def decoder_layers(model: nn.Module) -> list[Layer]:
    """Return the layers of the stack that holds the attention modules, in order.

    Raises:
        ValueError: No attention module was found inside a list of layers.
    """
    attention = attention_modules(model)
    stacks: dict[str, dict[int, list[nn.Module]]] = {}
    for name, module in attention.items():
        # "model.layers.3.self_attn" -> stack "model.layers", layer 3
        match = re.match(r"^(.*?)\.?(\d+)(\.|$)", name)
        if match:
            stacks.setdefault(match.group(1), {}).setdefault(int(match.group(2)), []).append(module)
    if not stacks:
        raise ValueError(why_not(model))
    if len(stacks) > 1:
        raise ValueError(
            f"`model`: {type(model).__name__} has attention in several stacks of layers ({', '.join(sorted(stacks))}); "
            "rolesafe patches models with one decoder stack"
        )
    stack, found = next(iter(stacks.items()))
    layers = model.get_submodule(stack)
    return [Layer(f"{stack}.{i}", layer, tuple(found.get(int(i), ()))) for i, layer in layers.named_children()]


def entry_path(model: nn.Module, stack: str) -> str:
    """Return the path of the innermost module around the layers at `stack` that reads tokens; "" for `model` itself.

    All callers run that module, those that skip the language-model head too.
    """
    path = stack
    while path:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
        if path and "input_ids" in inspect.signature(type(module).forward).parameters:
            return path
    return ""


def count_heads(module: nn.Module) -> int:
    """Return the number of query heads of an attention module."""
    for holder in (module, getattr(module, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads", "num_query_heads"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    raise ValueError(f"`model`: expected a number of heads in {type(module).__name__} or its configuration, found none")


def cache_layer(attention: nn.Module) -> int:
    """Return the index of the cache layer that holds the keys of `attention`: its own, unless layers share keys."""
    own = int(_plain_attribute(attention, "layer_idx") or 0)
    if not _plain_attribute(attention, "is_kv_shared_layer"):
        return own
    config: Any = attention.config
    kinds, storing = config.layer_types, config.num_hidden_layers - config.num_kv_shared_layers
    return max(i for i in range(storing) if kinds[i] == kinds[own])  # the last layer of its kind that keeps keys


def _plain_attribute(module: nn.Module, name: str) -> Any:
    """Return an attribute that is no parameter, buffer or module; None where there is none.

    `getattr` of a module searches long for a missing one, and every layer asks in every forward pass.
    """
    values = module.__dict__
    if name in values:
        return values[name]
    return getattr(module, name) if hasattr(type(module), name) else None


def model_types(model: PreTrainedModel) -> set[str]:
    """Return the model types of a model and of its text part."""
    return {model.config.model_type, model.config.get_text_config().model_type}


def check_family(model: PreTrainedModel) -> None:
    """Raise a ValueError for a family without tests, with the reason."""
    kind = model.config.model_type
    if kind in FAMILIES:
        return
    raise ValueError(
        f"`model`: family {kind!r} ({type(model).__name__}) is not among the {len(FAMILIES)} that rolesafe is tested "
        f"with. {GAPS.get(kind) or why_not(model)} To patch it anyway, pass allow_untested=True: a layer that "
        "ignores the roles raises at the first forward pass."
    )


def why_no_positions(model: PreTrainedModel) -> str | None:
    """Return the reason that the positions of tokens cannot be moved in `model`; None where they can."""
    text = model.config.get_text_config()
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return "takes no `position_ids`"
    if getattr(text, "alibi", False):
        return "has a bias by distance (ALiBi) in place of positions"
    if model_types(model) & NO_POSITIONS or getattr(text, "position_embedding_type", "rope") is None:
        return "uses no positions in its attention"
    if any("mrope_section" in str(parameters) for parameters in _ropes(text)):
        return "has positions of several dimensions (mrope)"
    return None


def rope_types(model: PreTrainedModel) -> set[str]:
    """Return the kinds of rotary positions in `model`: "default", "yarn", "longrope", ..."""
    return {str(rope.get("rope_type", rope.get("type", "default"))) for rope in _ropes(model.config.get_text_config())}


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the parameters of the rotary positions, one dictionary per kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in ropes.values() if isinstance(value, dict)]
    return nested or [ropes]


def why_not(model: nn.Module) -> str:
    """Return the reason that a model is unsupported, derived from its classes."""
    if attention_modules(model):
        return "Its attention goes through transformers' attention interface, so it may work."
    own = sorted({type(m).__name__ for m in model.modules() if "Attention" in type(m).__name__})
    named = f" ({', '.join(own)})" if own else ""
    return (
        f"Missing: its attention{named} does not go through transformers' attention interface "
        "(`ALL_ATTENTION_FUNCTIONS`), so roles cannot reach it."
    )


def _uses_interface(kind: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
