"""Export of a patched llama with a role bias for vLLM: a prototype.

    from rolesafe.integrations.vllm import export, token_codes

    about = export(model, "my-model-vllm")
    llm = vllm.LLM("my-model-vllm", skip_tokenizer_init=True, enforce_eager=True)  # rolesafe registers its model class
    prompt = {"prompt_token_ids": token_codes(input_ids, role_ids, **vars(about)).tolist()}

The bias of a head is a table with R rows, so it fits into the head dimension, as in :mod:`rolesafe.attention.sdpa`:

    q' = [q, table[h, r_i, :]]      k' = [k, onehot(c_j)]      scale * q'.k' = scale * q.k + bias[h, r_i, c_j]

with table = bias / scale. Keys are wider than values then, which vLLM's DiffKV backends take, and the role of a key is
in the KV cache. The role of a prompt token is in its id: code = id + V * ((role - generated) mod R). vLLM's prefix
cache is keyed by ids, so its scheduler needs no change; sampled ids are below V and so are generated.

Legend: B batch, T tokens, H query heads, D head dim, R roles, C columns, V vocabulary.
"""

from __future__ import annotations

from rolesafe.integrations.vllm.export import ARCHITECTURE, About, export, read_about
from rolesafe.integrations.vllm.folding import key_columns, query_columns, split_codes, token_codes

__all__ = [
    "ARCHITECTURE",
    "About",
    "export",
    "key_columns",
    "query_columns",
    "read_about",
    "register",
    "split_codes",
    "token_codes",
]


def register() -> None:
    """Register the model class in vLLM, as its entry point `vllm.general_plugins` does in every process."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"rolesafe.integrations.vllm.model:{ARCHITECTURE}")
