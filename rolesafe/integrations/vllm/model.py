"""Llama with a role bias in vLLM. vLLM imports this module in its own processes; it was run with vLLM 0.32 on a CPU.

Legend: N tokens of all requests of a step, H query heads, G key/value heads, D head dim, C columns.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.platforms import current_platform

from rolesafe.integrations.vllm.folding import key_columns, query_columns, split_codes

WIDTHS = (32, 64, 96, 128, 160, 192, 224, 256)
"""Head dims that the backends take."""


class RoleAwareLlamaAttention(LlamaAttention):
    """Attention with the role bias in more columns of queries and keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if get_tensor_model_parallel_world_size() > 1:
            raise ValueError("`tensor_parallel_size`: expected 1, got more; the tables of heads are not divided")
        roles = kwargs["config"].rolesafe_vllm["roles"]
        dtype = torch.get_default_dtype()
        columns = roles * (2 if dtype in (torch.float16, torch.bfloat16) else 1)
        self.role_table = nn.Parameter(torch.zeros(self.num_heads, roles, columns, dtype=dtype), requires_grad=False)
        self.width = next((width for width in WIDTHS if width >= self.head_dim + columns), 0)
        if not self.width:
            raise ValueError(f"`model`: expected a head dim of at most {WIDTHS[-1] - columns}, got {self.head_dim}")
        # the CPU backend has one width for keys and values, the DiffKV backends of GPUs have two
        self.value_width = self.width if current_platform.is_cpu() else self.head_dim
        name = f"{kwargs['prefix']}.attn"
        del get_current_vllm_config().compilation_config.static_forward_context[name]  # that of the base class
        self.attn = Attention(
            self.num_heads,
            self.width,
            self.scaling,
            num_kv_heads=self.num_kv_heads,
            cache_config=kwargs["cache_config"],
            quant_config=kwargs["quant_config"],
            prefix=name,
            head_size_v=self.value_width,
        )

    def forward(self, positions: Tensor, hidden_states: Tensor, roles: Tensor) -> Tensor:
        """Return the output (N, d) for hidden states (N, d) of tokens with `roles` (N,)."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, q, k)
        q, k, v = (x.view(x.shape[0], -1, self.head_dim) for x in (q, k, v))
        more = key_columns(roles, self.role_table)[:, None].expand(-1, self.num_kv_heads, -1)
        q = torch.cat([q, query_columns(self.role_table, roles)], dim=-1)
        k = torch.cat([k, more], dim=-1)
        q, k = (F.pad(x, (0, self.width - x.shape[-1])).flatten(1) for x in (q, k))
        read = self.attn(q, k, F.pad(v, (0, self.value_width - self.head_dim)).flatten(1))
        read = read.view(read.shape[0], self.num_heads, -1)[..., : self.head_dim]
        output, _ = self.o_proj(read.flatten(1))
        return output


class RoleAwareLlamaDecoderLayer(LlamaDecoderLayer):
    """Decoder layer that passes roles to its attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "", config: Any = None) -> None:
        super().__init__(vllm_config, prefix, config, attn_layer_type=RoleAwareLlamaAttention)

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, roles: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states and residual (N, d)."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(positions=positions, hidden_states=hidden_states, roles=roles)
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


class RoleAwareLlamaForCausalLM(LlamaForCausalLM):
    """Llama whose token ids hold roles, see :func:`rolesafe.integrations.vllm.token_codes`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = copy.copy(vllm_config.model_config.hf_config)
        self.about = dict(config.rolesafe_vllm)
        config.vocab_size = self.about["vocab"]
        super().__init__(
            vllm_config=vllm_config.with_hf_config(config), prefix=prefix, layer_type=RoleAwareLlamaDecoderLayer
        )

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings (N, d) of codes (N,)."""
        return self.model.embed_input_ids(split_codes(input_ids, **self.about)[0])

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Any:
        """Return hidden states (N, d) for codes (N,).

        Raises:
            ValueError: `input_ids` are missing: embeddings have no roles.
        """
        if input_ids is None:
            raise ValueError("`input_ids`: expected ids with roles, got embeddings, which have none")
        ids, roles = split_codes(input_ids, **self.about)
        return self.model(ids, positions, intermediate_tensors, inputs_embeds, roles=roles)
