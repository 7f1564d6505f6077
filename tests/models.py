"""Tiny random models of any architecture that transformers has, for tests."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import rolesafe
from rolesafe import RoleConfig
from rolesafe.patching.caches import cache_argument, output_cache

CACHE = cache_argument(LlamaForCausalLM.forward)
VOCAB = 97
LAYERS = 2
HEADS, GROUPS, HEAD_DIM, HIDDEN = 4, 2, 16, 64

# One generic configuration; a class takes of it what it knows. Small, but with every mechanism still in it: two layers,
# grouped keys, a window shorter than the test sequences.
GENERIC: dict[str, object] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD_DIM,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "sliding_window": 8,
    "max_window_layers": LAYERS,
    **dict.fromkeys(
        ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "dropout", "activation_dropout",
         "hidden_dropout", "residual_dropout", "resid_dropout", "hidden_dropout_prob",
         "attention_probs_dropout_prob"),
        0.0,
    ),
    "is_decoder": True,
    "ffn_dim": 48,
    "word_embed_proj_dim": HIDDEN,
    "n_inner": 48,
    "shared_expert_intermediate_size": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "num_kv_shared_layers": 0,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 48,
}  # fmt: skip

# Changes by family.
CAPPED = ("gemma2", "vaultgemma")
"""Families with a cap on the scores: the `sdpa` attention of older transformers leaves it out instead of refusing."""
_FULL_SECOND: dict[str, object] = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR: dict[str, object] = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
}
_MLA: dict[str, object] = {"num_key_value_heads": HEADS}
_DECODER: dict[str, object] = {
    "num_hidden_layers": LAYERS,
    "decoder_layers": LAYERS,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
}
SPECIAL: dict[str, dict[str, object]] = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "codegen": {"rotary_dim": HEAD_DIM},
    "gptj": {"rotary_dim": HEAD_DIM},
    # Mamba layers whose default sizes take seconds to draw.
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16,
    },
    "ctrl": {"dff": 48},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2},
    "roc_bert": {"pronunciation_vocab_size": VOCAB, "shape_vocab_size": VOCAB},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _FULL_SECOND | _LINEAR),
    "bailing_hybrid": {**_FULL_SECOND, **_MLA},
    "kimi_linear": {**_FULL_SECOND, **_MLA, "linear_head_dim": 16, "linear_num_heads": HEADS},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], **_LINEAR,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    # larger weights, or roles change the logits by less than rounding
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"], "attention_head_dim": 32, "initializer_range": 0.06,
              **_MLA},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], **_MLA},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * LAYERS,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {
        "d_model": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 256,
        "attn_config": {"kv_n_heads": GROUPS, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dory": {
        "num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "longcat_flash": {"num_layers": 1, "moe_topk": 2, "zero_expert_num": 2, **_MLA},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite",
         "glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"),
        _MLA,
    ),
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "pegasus", "plbart",
         "whisper"),
        _DECODER,
    ),
}  # fmt: skip


def causal_lm_families() -> list[str]:
    """Return the model types of the installed transformers with a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


NAMED = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2",
    "cohere2", "granite", "mixtral", "gpt_oss", "smollm3", "starcoder2", "opt",
)  # fmt: skip
"""Families that go through the whole matrix of tests; the others go through a part of it."""

EAGER_ONLY = ("gemma2", "gpt_oss")
"""Named families whose base has no `sdpa`: capped scores, sinks."""

MIXTURES = ("mixtral", "gpt_oss")
"""Named families whose tokens are sorted to experts: the rounding of a token depends on its neighbours."""


@functools.cache
def _config(family: str) -> object:
    return new_config(family)


def new_config(family: str, **changes: object) -> Any:
    """Return the generic configuration of `family`, built with `changes`."""
    kind = CONFIG_MAPPING[family]
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__annotations__", {}))
    for base in kind.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    known |= set(getattr(kind, "attribute_map", {}))
    values = {k: v for k, v in GENERIC.items() if k in known}
    return kind(**{**values, **SPECIAL.get(family, {}), **changes})


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn: str | None = None,
    config: Any = None,
    **changes: object,
) -> PreTrainedModel:
    """Return a random model of `family` in eval mode; the same weights for the same seed."""
    config = copy.deepcopy(_config(family)) if config is None else config
    for key, value in changes.items():
        setattr(config, key, value)
    if attn is None and family in CAPPED:
        attn = "eager"
    options = {} if attn is None else {"attn_implementation": attn}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    return model.eval()


@functools.cache
def _shared(family: str, attn: str | None, layers: int) -> PreTrainedModel:
    return tiny_model(family, attn=attn, **({} if layers == LAYERS else {"num_hidden_layers": layers}))


def base_model(family: str, attn: str | None = None, *, layers: int = LAYERS) -> PreTrainedModel:
    """Return a copy of `tiny_model(family)`, which is built once."""
    return copy.deepcopy(_shared(family, attn, layers))


def role_model(
    family: str,
    config: RoleConfig | None = None,
    *,
    attn: str | None = None,
    trained: bool = True,
    layers: int = LAYERS,
) -> PreTrainedModel:
    """Return `base_model`, patched; with random role parameters unless `trained` is False."""
    model = rolesafe.patch(base_model(family, attn, layers=layers), RoleConfig() if config is None else config)
    return randomise(model) if trained else model


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Set the role parameters of `model` to random values, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in rolesafe.named_role_parameters(model):
            if name.endswith("share"):
                parameter.uniform_(0.1, 0.9, generator=generator)
            else:
                parameter.normal_(generator=generator)
    return model


def random_batch(
    seed: int = 0, batch: int = 2, length: int = 14, padding: int = 3, roles: int = 5
) -> dict[str, Tensor]:
    """Return random ids, a mask with left padding in the first row, random roles, (B, T) each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :padding] = 0
    role_ids = torch.randint(0, roles, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "role_ids": role_ids}


def plain(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `batch` without roles, for a base model."""
    return {name: value for name, value in batch.items() if name != "role_ids"}


def logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits (N, V) at the tokens of `batch` that are not padding."""
    return model(**batch).logits[batch["attention_mask"].bool()]


def with_cache(cache: Any) -> dict[str, Any]:
    """Return the argument `cache`, with its name in the installed transformers."""
    return {CACHE: cache}


def cached_logits(model: PreTrainedModel, batch: dict[str, Tensor], chunks: tuple[int, ...] = (9, 1, 1, 3)) -> Tensor:
    """Return the logits (N, V) of chunked prefill through a dynamic cache."""
    cache, parts, start = None, [], 0
    for size in chunks:
        stop = start + size
        step = {name: value[:, :stop] for name, value in batch.items()}
        step["input_ids"] = batch["input_ids"][:, start:stop]
        if "position_ids" in batch:
            step["position_ids"] = batch["position_ids"][:, start:stop]
        output = model(**step, **with_cache(cache), use_cache=True)
        cache = output_cache(output)
        parts.append(output.logits)
        start = stop
    return torch.cat(parts, 1)[batch["attention_mask"].bool()]
