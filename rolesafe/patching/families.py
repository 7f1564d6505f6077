"""Model families that can be patched, and the attention modules of a model. No family needs code of its own.

A family is known once it has gone through the tests in `tests/patching/test_families.py`: bit-exact at rest, roles
change the output, cached equals uncached with left padding.
"""

from __future__ import annotations

import dis
import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

FAMILIES = frozenset(
    (
        "afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba", "bart",
        "beam", "bert", "bert-generation", "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small",
        "camembert", "codegen", "cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "ctrl", "cwm",
        "data2vec-text", "dbrx", "deepseek_v2", "deepseek_v3", "deepseek_v32", "diffllama", "doge", "dory", "dots1",
        "dots3_note_text", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "exaone_moe",
        "falcon_h1", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text",
        "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt-sw3", "gpt2",
        "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
        "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4",
        "hyperclovax", "inkling_text", "internlm3", "iquestcoder", "jais2", "jamba", "jetmoe", "kimi_linear",
        "kolibri1", "laguna", "lara_mini", "lfm2", "lfm2_moe", "llama", "llama4_text", "longcat_flash", "marian",
        "mbart", "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text", "ministral",
        "ministral3", "mistral", "mixtral", "modernbert-decoder", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2",
        "olmo3", "olmo_hybrid", "olmoe", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "qwen2",
        "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text",
        "roberta", "roberta-prelayernorm", "roc_bert", "sarvam_mla", "sarvam_moe", "seed_oss", "smollm3", "solar_open",
        "stablelm", "starcoder2", "vaultgemma", "whisper", "xlm-roberta", "xlm-roberta-xl", "xmod", "youtu", "zamba",
        "zamba2", "zaya",
    )
)  # fmt: skip
"""Model types that pass the family tests."""

_MEDIA = "Missing: roles of images and audio are untested."
_AUDIO = "Missing: its tokens are audio in several codebooks, and no text that has roles."
_SHARED = "Missing: it reads the keys of another model, and their roles are not passed on to it."
_RESIDUALS = "Missing: its layers also attend to the outputs of earlier layers, and those have no roles."
GAPS = {
    "blt": "Missing: its layers attend to patches of bytes, and those have no one role.",
    "deepseek_v4": "Missing: its compressor adds keys of several tokens each, and those have no role.",
    "emu3_text_model": _MEDIA,
    "fuyu": _MEDIA,
    "gemma3": _MEDIA,
    "gemma3n": _MEDIA,
    "gemma4": _MEDIA,
    "gemma4_assistant": _SHARED,
    "gemma4_unified": _MEDIA,
    "gemma4_unified_assistant": _SHARED,
    "git": _MEDIA,
    "got_ocr2": _MEDIA,
    "hrm_text": "Missing: two stacks of layers take turns, and rolesafe patches one.",
    "inkling2_loop_text": _RESIDUALS,
    "inkling2_text": _RESIDUALS,
    "lfm3": "Missing: transformers renames its layer types, and the base model raises a KeyError.",
    "mllama_text_model": _MEDIA,
    "moshi": "Missing: the base model computes something else with a cache than without.",
    "moss_transcribe_diarize": _MEDIA,
    "musicgen_decoder": _AUDIO,
    "musicgen_melody_decoder": _AUDIO,
    "phi4_multimodal": _MEDIA,
    "recurrent_gemma": "Missing: it keeps the state of earlier tokens in its modules, and not in a cache.",
}
"""Reason a family is unsupported although it uses transformers' attention interface."""

OWN_ATTENTION = (
    "does not go through transformers' attention interface (`ALL_ATTENTION_FUNCTIONS`), so roles cannot reach it."
)

MIXES_OUTSIDE_ATTENTION = frozenset({"falcon_h1", "inkling_text", "zaya"})
"""Families whose layers also mix tokens outside of their attention (Mamba, convolution): integrity is refused."""

SCORES_IN_MASK = frozenset({"doge"})
"""Families whose attention adds numbers of its own to the mask that it passes on."""

CHOOSES_KEYS = frozenset(
    {"axk2", "deepseek_v32", "doge", "dots3_note_text", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text", "qwen4_exp_text"}
)
"""Families whose layers choose a limited number of keys before attention, among all tokens: integrity is refused."""

NOT_CAUSAL = frozenset({"bigbird_pegasus"})
"""Families whose attention does not say that it is causal: order is in their mask alone."""

STREAMS = frozenset({"hy_v4", "qwen4_exp_text"})
"""Families whose layers pass on several streams per token: there is no single input to add an embedding to."""

NO_POSITIONS = frozenset({"inkling_text", "jamba", "kimi_linear", "nemotron_h", "zamba"})
"""Families that take `position_ids` and use them nowhere: order comes from other layers, or from biases by distance."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer: where it is, and its attention modules (none in a layer of another kind, such as Mamba)."""

    name: str
    module: nn.Module
    attention: tuple[nn.Module, ...]


CROSS_ATTENTION = frozenset({"encoder_attn", "crossattention"})
"""Names of modules that attend to the output of an encoder. They get no role layer, and no encoder may be given."""


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules, by name, whose `forward` goes through transformers' attention interface.

    Those that attend to an encoder are left out: a causal language model never runs them.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if _uses_interface(type(module)) and not CROSS_ATTENTION & set(name.split("."))
    }


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


def drops_arguments(layer: nn.Module) -> bool:
    """Return True for a decoder layer that takes keyword arguments and never passes them to its attention."""
    code = inspect.unwrap(type(layer).forward).__code__
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    at = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    name = code.co_varnames[at]
    loads = (step.argval for step in dis.get_instructions(code) if step.opname.startswith("LOAD"))
    return not any(name == value or (isinstance(value, tuple) and name in value) for value in loads)


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
    if getattr(text, "use_mem_rope", None) is False:  # zamba2
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
    return f"Missing: its attention{f' ({names})' if (names := ', '.join(own)) else ''} {OWN_ATTENTION}"


def _uses_interface(kind: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names
