"""What a patched model does beyond its base class: takes role ids, checks that every layer used them, generates.

Roles enter by forward hooks of the module that reads the tokens. They run whatever replaces the model's own `forward`
or calls that module directly: device hooks of accelerate, chunked losses of TRL, replicas of DataParallel.

Legend: B batch, N tokens from the first one, T of them new.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import RolePart, set_strength
from rolesafe.patching.caches import check_cache, given_cache, is_static, output_cache, record_roles
from rolesafe.patching.inputs import RoleInputs
from rolesafe.patching.layers import MISSING, PARTS, RoleLayers
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

        With a cache from an earlier call pass the roles of the whole sequence, as with `attention_mask`. With
        `negative_prompt_ids` (B, M) pass their roles as `negative_prompt_role_ids` (B, M).
        """
        tokens = next((x for x in (kw.get("inputs_embeds"), inputs, kw.get("input_ids")) if x is not None), None)
        check_roles(role_ids)
        if tokens is not None and getattr(generation_config, "is_assistant", False):
            # An assistant is asked again with what the main model accepted in the meantime.
            role_ids = self._fit_roles(role_ids, tokens.shape[1])
        else:
            _check_prompt(role_ids, tokens, kw.get("attention_mask"), given_cache(kw))
        return super().generate(inputs, generation_config, *args, role_ids=role_ids, **kw)  # type: ignore[misc]

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """As the base model's, which looks for names in the signature of a `forward` that others may have replaced."""
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in ROLES})  # type: ignore[misc]

    def _get_logits_processor(self, *args: Any, **kw: Any) -> Any:
        """As the base model's; classifier-free guidance, which calls the model itself, gets roles for its own text."""
        processors = super()._get_logits_processor(*args, **kw)  # type: ignore[misc]
        model_kwargs = kw["model_kwargs"]
        negative = model_kwargs.pop("negative_prompt_role_ids", None)
        for processor in processors:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) and processor.model is self:
                ids = processor.unconditional_context["input_ids"]
                processor.model = _Guidance(self, _guidance_roles(ids, negative, model_kwargs["role_ids"]))
                negative = None
        if negative is not None:
            raise ValueError(
                "`negative_prompt_role_ids`: expected None without classifier-free guidance, got roles; pass "
                "`guidance_scale` and `negative_prompt_ids` with them"
            )
        return processors

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
        # Longer where a prompt is read in chunks. Shorter where assisted decoding proposes tokens that this model may
        # write: they have its role.
        role_ids = self._fit_roles(role_ids, total)
        if self.rolesafe_config.moves_positions and (strength := strength_of(self)) > 0:  # type: ignore[arg-type]
            # Here and not in `forward`: a static cache gets a mask that no longer tells the padding.
            length, given = tokens.shape[1], model_inputs.get("position_ids")
            model_inputs["role_positions"] = role_positions(
                self.rolesafe_config, strength, role_ids.to(tokens.device), mask, total - length, length, given
            )
        if cache is not None and is_static(cache):
            role_ids = self._fit_roles(role_ids, max(total, cache.get_max_length()))  # one shape for all steps
        model_inputs["role_ids"] = role_ids.to(tokens.device)
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


ROLES = ("role_ids", "negative_prompt_role_ids")
"""Arguments of `generate` that a patched model takes beyond its base."""


class _Guidance:
    """The model as classifier-free guidance calls it, with the roles (B, M) of the unconditional text."""

    def __init__(self, model: Any, role_ids: Tensor) -> None:
        self.model = model
        self.role_ids = role_ids

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        roles = self.role_ids.repeat_interleave(input_ids.shape[0] // self.role_ids.shape[0], dim=0)  # beams
        roles = self.model._fit_roles(roles, attention_mask.shape[1])
        return self.model(input_ids, attention_mask=attention_mask, role_ids=roles, **kwargs)


def _guidance_roles(ids: Tensor | None, role_ids: Any, prompt: Tensor) -> Tensor:
    """Roles of the unconditional text `ids`; None: it is the last token of the prompt with the roles `prompt`."""
    if ids is None and role_ids is None:
        return prompt[:, -1:]
    if ids is not None and isinstance(role_ids, Tensor) and role_ids.shape == ids.shape:
        check_roles(role_ids)
        return role_ids
    expected = "None without `negative_prompt_ids`" if ids is None else f"shape {tuple(ids.shape)}"
    got = tuple(role_ids.shape) if isinstance(role_ids, Tensor) else role_ids
    raise ValueError(
        f"`negative_prompt_role_ids`: expected {expected}, the roles of `negative_prompt_ids`, got {got}; "
        "`rolesafe.encode` returns both"
    )


def _check_prompt(role_ids: Tensor, tokens: Tensor | None, mask: Any, cache: Any) -> None:
    """Raise where `generate` gets other than one role for each token of its prompt: what follows them is generated."""
    if tokens is None:  # generation starts from a begin token
        expected: tuple[int, ...] = (role_ids.shape[0], 1)
        got_mask = isinstance(mask, Tensor) and mask.ndim == 2
        if tuple(role_ids.shape) == expected and (not got_mask or tuple(mask.shape) == expected):
            return
    else:
        batch, length = tokens.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        # beside a cache: the whole sequence, or the new tokens alone
        lengths = (length, past + length) if past else (length,)
        total = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else role_ids.shape[1]
        if total not in lengths:
            if isinstance(mask, Tensor) and mask.ndim == 2:
                raise ValueError(
                    f"`attention_mask`: expected shape {(batch, lengths[-1])}, one number per token, got "
                    f"{tuple(mask.shape)}; `role_ids` have one role for each of them"
                )
            total = lengths[-1]
        expected = (batch, total)
        if tuple(role_ids.shape) == expected:
            return
    raise ValueError(
        f"`role_ids`: expected shape {expected}, one role per token, got {tuple(role_ids.shape)}; "
        "`rolesafe.encode` returns them"
    )


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_roles(role_ids: Any) -> None:
    """Raise where `role_ids` is no integer tensor (B, N)."""
    if role_ids is None:
        raise ValueError(MISSING)
    if isinstance(role_ids, Tensor):
        if role_ids.ndim == 2 and role_ids.dtype in INTEGERS:
            return
        got = f"{role_ids.dtype} of shape {tuple(role_ids.shape)}"
    else:
        got = repr(role_ids)
    raise ValueError(f"`role_ids`: expected an integer tensor of shape (B, T), got {got}")


def strength_of(module: nn.Module) -> float:
    """Strength of the first part in `module`. `leave_model` checks that all parts have the same."""
    return next(part.strength for part in module.modules() if isinstance(part, RolePart))


@functools.cache
def role_aware_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The subclass of `base` whose `forward` takes `role_ids`; one per base class."""
    base_signature = inspect.signature(base.forward)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, role_ids: Tensor | None = None, **kwargs: Any) -> Any:
        if role_ids is not None:
            kwargs["role_ids"] = role_ids
        return base.forward(self, *args, **kwargs)  # the hooks of the entry module do the rest, and the checks

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
        {
            "forward": forward,
            "rolesafe_base": base,
            "_keep_in_fp32_modules_strict": {*(base._keep_in_fp32_modules_strict or ()), *PARTS},
            "__doc__": f"{base.__name__} with tokens that have a standing.",
        },
    )


# ------------------------------------------------------------------------------------------------ the entry module


def enter_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook of the module that reads the tokens: make `role_inputs` of `role_ids` for the layers."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "`torch.jit.trace`: would record the roles of the example as constants, so every later text would get "
            "them. Use torch.export.export or torch.compile."
        )
    layers: RoleLayers = module.rolesafe_layers  # type: ignore[assignment]
    given = {**dict(zip(layers.arguments, args, strict=False)), **kwargs}
    role_ids, positions = given.pop("role_ids", None), given.pop("role_positions", None)
    if role_ids is None:
        raise ValueError(f"`role_ids` did not reach {type(module).__name__}. {MISSING}")
    check_roles(role_ids)
    if given.get("output_attentions"):
        raise ValueError(
            "`output_attentions`: expected False, got True; role-aware attention does not keep its weights. "
            "rolesafe.attention.reference computes them for one layer"
        )
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        raise ValueError("`input_ids`: expected input_ids or inputs_embeds beside `role_ids`, got neither")
    if role_ids.shape[0] != tokens.shape[0]:
        raise ValueError(f"`role_ids`: expected {tokens.shape[0]} rows like the tokens, got {role_ids.shape[0]}")
    _check_stack(module, layers)
    inputs = _role_inputs(module, role_ids, tokens, given_cache(given))
    if layers.config.moves_positions and inputs.owner[1] > 0:
        given = place(layers.config, inputs.owner[1], inputs.role_ids, tokens, given, positions)
    given["role_inputs"] = inputs
    return (), given


def _role_inputs(module: nn.Module, role_ids: Tensor, tokens: Tensor, cache: Any) -> RoleInputs:
    layers: RoleLayers = module.rolesafe_layers  # type: ignore[assignment]
    inputs = RoleInputs(role_ids.to(tokens.device), tokens.shape[1], cache, layers.cache_layers, layers.config)
    inputs.impl = layers.impl
    inputs.see = module.__dict__.get("rolesafe_see")
    inputs.owner = (layers.patch, strength_of(module))
    if cache is not None:
        check_cache(cache, inputs.role_ids, inputs.past, inputs.owner)
    return inputs


def leave_model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the same module: check that all parts took part, and bind the cache to the roles it holds."""
    inputs, layers = kwargs["role_inputs"], module.rolesafe_layers
    _check_all_took_part(module, layers, inputs)  # type: ignore[arg-type]
    cache = given_cache(kwargs)
    cache = output_cache(output) if cache is None else cache
    if cache is not None:
        record_roles(cache, inputs)


def _check_stack(module: nn.Module, layers: RoleLayers) -> None:
    """Raise where the decoder layers are not those that were patched, in their order."""
    stack: Any = module.get_submodule(layers.stack)
    found = [getattr(layer, "rolesafe_layer", None) for layer in stack]
    if found != list(range(len(layers.parts))):
        raise RuntimeError(
            f"`model`: expected the {len(layers.parts)} decoder layers that were patched, in their order, got "
            f"{['new' if i is None else i for i in found]}: layers were added, removed, replaced or moved after the "
            "patch. Call rolesafe.unpatch(model), change its layers, then patch it."
        )


def _check_all_took_part(module: nn.Module, layers: RoleLayers, inputs: RoleInputs) -> None:
    """Every part must have used the roles: nothing may switch the role layer off in silence."""
    # Early exit (a model that drafts for itself) lowers the number of layers that run.
    config: Any = module.config
    depth = getattr(config.get_text_config(), "num_hidden_layers", len(layers.parts))
    missing = [
        name
        for i, names in enumerate(layers.parts)
        if i < depth or i in inputs.entered
        for name in names
        if name not in inputs.strengths
    ]
    if missing:
        raise RuntimeError(
            f"{len(missing)} layers ran without roles ({', '.join(missing[:3])}, ...): the model's attention "
            "implementation was changed after the patch, or this family does not pass `role_inputs` on to its "
            "attention. Patch the model again after changing it, or use a family that rolesafe is tested with."
        )
    check_strengths(inputs.strengths.values())


def check_strengths(strengths: Any) -> None:
    """Raise where the parts of a role layer have several strengths."""
    different = sorted(set(strengths))
    if len(different) > 1:
        raise RuntimeError(
            f"`strength`: expected one strength of all parts of the role layer, got {different}. "
            "Set it with rolesafe.mechanisms.set_strength(model, strength)."
        )
