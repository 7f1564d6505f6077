"""Write a patched llama with a role bias as a checkpoint for vLLM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from rolesafe.config import RoleConfig
from rolesafe.integrations.vllm.folding import fold_table
from rolesafe.patching.patched import check_patched, is_role_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARCHITECTURE = "RoleAwareLlamaForCausalLM"
FIELD = "rolesafe_vllm"
"""Entry of the exported `config.json`."""

EXPORTED = ("roles", "privileged", "generated", "bias", "layers", "impl", "boost", "dampen", "steered_heads")
"""Fields of the role configuration that are in the tables, or change nothing here. The others have to be off."""


@dataclass(frozen=True)
class About:
    """Numbers that decode token ids of an export.

    Attributes:
        vocab: Size of the base model's vocabulary.
        roles: Number of roles.
        generated: Role of generated tokens.
    """

    vocab: int
    roles: int
    generated: int


def export(model: PreTrainedModel, directory: str | Path) -> About:
    """Write `model` for vLLM: its base weights, and a table of columns for the queries of each layer.

    The vocabulary in `config.json` is R times that of the base, because ids hold roles, so loaders without rolesafe
    raise: the weights do not have that size, and vLLM does not know the architecture.

    Args:
        model: A patched llama whose role layer is a bias, at strength 1.
        directory: A new or empty folder.

    Returns:
        Numbers for :func:`token_codes`; :func:`read_about` reads them again.

    Raises:
        ValueError: `model` is not patched or of another family, has other role parts, or `directory` is not empty.
    """
    from rolesafe.mechanisms import get_strength
    from rolesafe.patching.families import decoder_layers

    check_patched(model)
    patched: Any = model
    config: RoleConfig = patched.rolesafe_config
    if patched.config.model_type != "llama":
        raise ValueError(
            f"`model`: expected a llama, got {patched.config.model_type!r}; other families are not exported"
        )
    plain = RoleConfig(**{name: getattr(config, name) for name in EXPORTED})
    if other := [field.name for field in fields(config) if getattr(config, field.name) != getattr(plain, field.name)]:
        raise ValueError(
            f"`model`: expected a role layer with a bias alone, got "
            f"`{other[0]}`={getattr(config, other[0])!r}, which is not exported"
        )
    if (strength := get_strength(model)) != 1:
        raise ValueError(
            f"`model`: expected strength 1, got {strength}. Call rolesafe.mechanisms.set_strength(model, 1)."
        )
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"`directory`: expected an empty folder, {str(directory)!r} holds other files")

    about = About(patched.config.vocab_size, len(config.roles), config.generated_id)
    tensors = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if not is_role_name(name)
    }
    dtype = patched.dtype
    for layer in decoder_layers(model):
        (attention,) = layer.attention
        module: Any = attention
        heads = module.rolesafe_heads
        bias = heads(torch.device("cpu") if heads.bias is None else heads.bias.device)[0]
        bias = torch.zeros(heads.heads, about.roles, about.roles) if bias is None else bias.detach().cpu()
        tensors[f"{layer.name}.self_attn.role_table"] = fold_table(bias, module.scaling, dtype)
    values = {**patched.config.to_dict(), FIELD: asdict(about), "architectures": [ARCHITECTURE], "model_type": "llama"}
    for name in ("rolesafe", "rolesafe_base_attention", "rolesafe_strength"):
        values.pop(name, None)
    values["vocab_size"] = about.vocab * about.roles
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return about


def read_about(directory: str | Path) -> About:
    """Return the numbers of an export.

    Raises:
        ValueError: `directory` holds no export.
    """
    path = Path(directory) / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if FIELD not in values:
        raise ValueError(f"`directory`: expected an export for vLLM, found no `{FIELD}` in {str(path)!r}")
    return About(**values[FIELD])
