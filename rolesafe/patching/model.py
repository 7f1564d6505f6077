"""What a patched model does beyond its base class: takes role ids, checks that every layer used them, generates."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import RoleEmbedding, set_strength
from rolesafe.patching.caches import given_cache
from rolesafe.patching.inputs import RoleInputs
from rolesafe.patching.positions import place, role_positions
from rolesafe.patching.saving import SavesWhole


class RoleAwareMixin(SavesWhole):
    """Mixed into the class of a patched model, in front of its base class. Made by :func:`role_aware_class`."""

    rolesafe_base: type[PreTrainedModel]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the base model and its role layer from a configuration that carries one (used when loading)."""
        from rolesafe.patching.apply import install

        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, RoleConfig.from_dict(config.rolesafe))
        set_strength(self, getattr(config, "rolesafe_strength", 1.0))

    @property
    def rolesafe_config(self) -> RoleConfig:
        """The role configuration of this model."""
        config: RoleConfig = self.rolesafe_layers.config  # type: ignore[attr-defined]
        return config

    # ---------------------------------------------------------------------------------------------------- generation

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, role_ids: Any = None, **kw: Any
    ) -> Any:
        """`generate` of the base model. `role_ids` (B, N) are required; what is generated has the model's own role.

        With a cache from an earlier call pass the roles of the whole sequence, as with `attention_mask`.
        """
        tokens = next((x for x in (kw.get("inputs_embeds"), inputs, kw.get("input_ids")) if x is not None), None)
        mask = kw.get("attention_mask")
        _check_tensor(role_ids)
        if tokens is not None:
            expected = mask.shape[1] if mask is not None and mask.ndim == 2 else tokens.shape[1]
            if getattr(generation_config, "is_assistant", False):
                # An assistant is asked again with what the main model accepted in the meantime.
                role_ids = self._fit_roles(role_ids, tokens.shape[1])
            elif tuple(role_ids.shape) != (tokens.shape[0], expected):
                raise ValueError(
                    f"`role_ids`: expected shape {(tokens.shape[0], expected)}, one role per token, got "
                    f"{tuple(role_ids.shape)}; `rolesafe.encode` returns them"
                )
        return super().generate(inputs, generation_config, *args, role_ids=role_ids, **kw)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, role_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        """As the base model's, with the roles of all tokens up to and including the ones of this step."""
        if role_ids is None:
            raise ValueError(MISSING)
        if inputs_embeds is not None:  # named above because `generate` looks for it in the signature
            kwargs["inputs_embeds"] = inputs_embeds
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        cache, mask = given_cache(kwargs), kwargs.get("attention_mask")
        tokens = model_inputs.get("input_ids")
        tokens = model_inputs["inputs_embeds"] if tokens is None else tokens
        if mask is not None and mask.ndim == 2:
            total = mask.shape[1]
        else:
            mask, total = None, tokens.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
        # Candidates of assisted decoding are tokens this model may write: they have its role.
        role_ids = self._fit_roles(role_ids, total)
        layers: Any = self.rolesafe_layers  # type: ignore[attr-defined]
        if layers.moves_positions:
            # Here and not in `forward`: a static cache gets a mask that no longer tells the padding.
            length, given = tokens.shape[1], model_inputs.get("position_ids")
            model_inputs["role_positions"] = role_positions(
                self.rolesafe_config, layers.strength, role_ids.to(tokens.device), mask, total - length, length, given
            )
        if cache is not None and getattr(cache, "is_compileable", False):
            role_ids = self._fit_roles(role_ids, max(total, cache.get_max_length()))  # one shape for all steps
        model_inputs["role_ids"] = role_ids.to(self.device)  # type: ignore[attr-defined]
        return model_inputs

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        kw: dict[str, Any] = super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        kw["role_ids"] = self._fit_roles(kw["role_ids"], kw["role_ids"].shape[1] + num_new_tokens)
        return kw

    def _get_candidate_generator(self, *args: Any, **kw: Any) -> Any:
        assistant = kw.get("assistant_model")
        if assistant is not None and not isinstance(assistant, RoleAwareMixin):
            # A plain assistant only proposes; this model, with roles, accepts or not.
            kw["model_kwargs"] = {k: v for k, v in kw["model_kwargs"].items() if k != "role_ids"}
        return super()._get_candidate_generator(*args, **kw)  # type: ignore[misc]

    def _fit_roles(self, role_ids: Tensor, length: int) -> Tensor:
        """`role_ids` cut or extended (with the role of generated tokens) to `length`."""
        missing = length - role_ids.shape[1]
        if missing <= 0:
            return role_ids[:, :length]
        return nn.functional.pad(role_ids, (0, missing), value=self.rolesafe_config.generated_id)

    def generate_batch(self, *args: Any, **kw: Any) -> Any:
        """Continuous batching packs requests into pages whose tokens carry no role: it cannot work."""
        raise RuntimeError(
            "generate_batch: continuous batching keeps keys of several requests in shared pages without their roles; "
            "use generate(**rolesafe.encode(tokenizer, batch))"
        )

    continuous_batching_context_manager = generate_batch
    init_continuous_batching = generate_batch


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

MISSING = (
    "`role_ids`: expected the role of every token, got none. This model is role-aware and does not run without roles: "
    "pass what `rolesafe.encode(tokenizer, messages)` returns, or take the role layer off with rolesafe.unpatch(model)."
)


@functools.cache
def role_aware_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of `base` whose `forward` takes `role_ids`; one per base class."""
    base_signature = inspect.signature(base.forward)
    names = [name for name in base_signature.parameters if name != "self"]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, role_ids: Tensor | None = None, **kwargs: Any) -> Any:
        role_positions = kwargs.pop("role_positions", None)  # from `prepare_inputs_for_generation`
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if given.get("output_attentions"):
            raise ValueError(
                "`output_attentions`: expected False, got True; role-aware attention does not keep its weights. "
                "rolesafe.attention.reference computes them for one layer"
            )
        inputs = _role_inputs(self, role_ids, tokens, given_cache(given))
        if self.rolesafe_layers.moves_positions:
            layers = self.rolesafe_layers
            assert tokens is not None  # `_role_inputs` checked
            given = place(layers.config, layers.strength, inputs.role_ids, tokens, given, role_positions)
        outputs = base.forward(self, role_inputs=inputs, **given)
        _check_all_took_part(self, inputs)
        return outputs

    role_parameter = inspect.Parameter(
        "role_ids", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="torch.LongTensor | None"
    )
    kinds = list(base_signature.parameters.values())
    at = next((i for i, p in enumerate(kinds) if p.kind is inspect.Parameter.VAR_KEYWORD), len(kinds))
    forward.__signature__ = base_signature.replace(  # type: ignore[attr-defined]
        parameters=[*kinds[:at], role_parameter, *kinds[at:]]
    )
    return type(
        f"RoleAware{base.__name__}",
        (RoleAwareMixin, base),
        {"forward": forward, "rolesafe_base": base, "__doc__": f"{base.__name__} with tokens that have a standing."},
    )


def _role_inputs(model: Any, role_ids: Tensor | None, tokens: Tensor | None, cache: Any) -> RoleInputs:
    _check_tensor(role_ids)
    assert role_ids is not None
    if tokens is None:
        raise ValueError("`input_ids`: expected input_ids or inputs_embeds beside `role_ids`, got neither")
    if role_ids.shape[0] != tokens.shape[0]:
        raise ValueError(f"`role_ids`: expected {tokens.shape[0]} rows like the tokens, got {role_ids.shape[0]}")
    inputs = RoleInputs(
        role_ids.to(tokens.device), tokens.shape[1], cache, model.rolesafe_layers.cache_layers, model.rolesafe_config
    )
    inputs.impl = model.rolesafe_layers.impl
    inputs.see = model.__dict__.get("rolesafe_see")
    return inputs


def _check_tensor(role_ids: Any) -> None:
    if role_ids is None:
        raise ValueError(MISSING)
    if isinstance(role_ids, Tensor):
        if role_ids.ndim == 2 and role_ids.dtype in INTEGERS:
            return
        got = f"{role_ids.dtype} of shape {tuple(role_ids.shape)}"
    else:
        got = repr(role_ids)
    raise ValueError(f"`role_ids`: expected an integer tensor of shape (B, T), got {got}")


def _check_all_took_part(model: Any, inputs: RoleInputs) -> None:
    """Every patched module must have used the roles: nothing may switch the role layer off in silence."""
    missing = [name for name, module in model.rolesafe_layers.modules.items() if id(module) not in inputs.seen]
    if missing:
        raise RuntimeError(
            f"{len(missing)} layers ran without roles ({', '.join(missing[:3])}, ...): the model's attention "
            "implementation was changed after the patch, or this family does not pass `role_inputs` on to its "
            "attention. Patch the model again after changing it, or use a family that rolesafe is tested with."
        )


def enter_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of a decoder layer: what its parts do to its input hidden states (B, T, d)."""
    inputs = kwargs.get("role_inputs")
    if inputs is None:
        raise ValueError(f"`role_ids` did not reach {type(layer).__name__}. {MISSING}")
    hidden = args[0] if args else kwargs["hidden_states"]
    for name in ENTRY_PARTS:
        part = layer._modules.get(name)
        if part is not None:
            hidden = part(hidden, inputs.q_roles.to(hidden.device))
            inputs.seen.add(id(part))
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def leave_layer(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of the last decoder layer: add a role embedding to its output hidden states (B, T, d)."""
    inputs = kwargs.get("role_inputs")
    if inputs is None:
        raise ValueError(f"`role_ids` did not reach {type(layer).__name__}. {MISSING}")
    part: RoleEmbedding = layer.rolesafe_last  # type: ignore[assignment]
    inputs.seen.add(id(part))
    hidden = output[0] if isinstance(output, tuple) else output
    hidden = part(hidden, inputs.q_roles.to(hidden.device))
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


ENTRY_PARTS = ("rolesafe_data", "rolesafe_embedding")
"""Names of the parts at the input of a decoder layer, in the order in which they act."""

PARTS = ("rolesafe_heads", *ENTRY_PARTS, "rolesafe_last")
"""Names under which a patch hangs its parts into attention modules and decoder layers."""
