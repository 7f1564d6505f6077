"""Tiny random models of any architecture that transformers has, for tests."""

from __future__ import annotations

import functools
import inspect
import warnings

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
LAYERS = 2
HEADS, GROUPS, HEAD_DIM, HIDDEN = 4, 2, 16, 64

# One generic configuration; a class takes of it what it knows. Small, but with every mechanism still in it: two layers,
# grouped keys, a window shorter than the test sequences.
GENERIC = {
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
    "attention_dropout": 0.0,
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
}

# What a family needs beyond or instead of it.
_FULL_SECOND: dict[str, object] = {"layer_types": ["linear_attention", "full_attention"]}
_MLA: dict[str, object] = {"num_key_value_heads": HEADS}
SPECIAL: dict[str, dict[str, object]] = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "codegen": {"rotary_dim": HEAD_DIM},
    "gptj": {"rotary_dim": HEAD_DIM},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    **dict.fromkeys(
        ("bailing_hybrid", "granitemoehybrid", "kimi_linear", "lfm3", "qwen3_next", "qwen3_5_text",
         "qwen3_5_moe_text", "qwen4_exp_text"),
        _FULL_SECOND,
    ),
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
         "youtu"),
        _MLA,
    ),
}  # fmt: skip


def causal_lm_families() -> list[str]:
    """Model types of the installed transformers that have a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@functools.cache
def _config(family: str) -> object:
    kind = CONFIG_MAPPING[family]
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__annotations__", {}))
    for base in kind.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    known |= set(getattr(kind, "attribute_map", {}))
    values = {k: v for k, v in GENERIC.items() if k in known}
    return kind(**{**values, **SPECIAL.get(family, {})})


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """A random model of `family` in eval mode; the same weights for the same seed."""
    import copy

    config = copy.deepcopy(_config(family))
    for key, value in changes.items():
        setattr(config, key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def random_batch(
    seed: int = 0, batch: int = 2, length: int = 14, padding: int = 3, roles: int = 5
) -> dict[str, torch.Tensor]:
    """Random ids, a mask with left padding in the first row, random roles."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :padding] = 0
    role_ids = torch.randint(0, roles, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "role_ids": role_ids}
