"""Methods of a patched model beyond its base class: generation with roles, saving, counting parameters.

Legend: B batch, N tokens from the first one, T of them new.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

from rolesafe.config import RoleConfig
from rolesafe.mechanisms import get_strength, set_strength
from rolesafe.patching.caches import check_frozen, given_cache, is_static
from rolesafe.patching.card import write_card
from rolesafe.patching.hooks import MISSING, PARTS, check_roles, strength_of
from rolesafe.patching.install import install
from rolesafe.patching.patched import RoleAware, named_role_parameters
from rolesafe.patching.positions import role_positions
from rolesafe.patching.saving import after_saving, before_saving

ROLES = ("role_ids", "negative_prompt_role_ids")
"""Arguments of `generate` that a patched model takes beyond its base."""

ADAPTERS = (
    "add_adapter, load_adapter: transformers' own adapters are saved without their role layer. Use PEFT: "
    "peft.get_peft_model(model, config), PeftModel.from_pretrained(model, path)."
)


class RoleAwareMixin(RoleAware):
    """Mixed into the class of a patched model, in front of its base class. Made by :func:`role_aware_class`."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the base model and its role layer from a configuration that carries one."""
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, RoleConfig.from_dict(config.rolesafe))
        set_strength(self, getattr(config, "rolesafe_strength", 1.0))

    @property
    def rolesafe_config(self) -> RoleConfig:
        """Role configuration of this model."""
        config: RoleConfig = self.rolesafe_layers.config  # type: ignore[attr-defined]
        return config

    def print_trainable_parameters(self: Any) -> None:
        """Print the number of trainable and of all parameters in the format of PEFT, then those of the role layer."""
        trainable, total = self.num_parameters(only_trainable=True), self.num_parameters()
        roles = sum(parameter.numel() for _, parameter in named_role_parameters(self))
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f} "
            f"|| role params: {roles:,d}"
        )

    # -------------------------------------------------------------------------------------------------------- saving

    def save_pretrained(self: Any, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as the base model does, with digests of the files. Load with :func:`rolesafe.from_pretrained`.

        Raises:
            ValueError: The folder holds another checkpoint, or the model could not be loaded again.
        """
        kwargs = before_saving(self, save_directory, kwargs)
        self.config.rolesafe_strength = get_strength(self)
        try:
            super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        finally:
            del self.config.rolesafe_strength
        if kwargs.get("is_main_process", True):
            after_saving(self, save_directory, kwargs)

    def _upload_modified_files(self: Any, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Upload the files of `push_to_hub` with a model card of their own."""
        write_card(self, Path(working_dir), repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise a TypeError: this method of the base class would load no role layer."""
        raise TypeError(
            f"{cls.__name__}.from_pretrained: expected rolesafe.from_pretrained(path), which loads the role layer too"
        )

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raise a RuntimeError: `save_pretrained` would save the adapters without their role layer."""
        raise RuntimeError(ADAPTERS)

    load_adapter = add_adapter

    # ---------------------------------------------------------------------------------------------------- generation

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, role_ids: Any = None, **kw: Any
    ) -> Any:
        """Generate as the base model does. `role_ids` (B, N) are required; new tokens get the role `config.generated`.

        With a cache from an earlier call pass the roles of the whole sequence, as with `attention_mask`. With
        `negative_prompt_ids` (B, M) pass their roles as `negative_prompt_role_ids` (B, M).

        Raises:
            ValueError: `role_ids` are missing, or have another shape than the prompt.
        """
        tokens = next((x for x in (kw.get("inputs_embeds"), inputs, kw.get("input_ids")) if x is not None), None)
        check_roles(role_ids)
        if tokens is not None and getattr(generation_config, "is_assistant", False):
            # The prompt of an assistant grows by the tokens that the main model accepted.
            role_ids = self._fit_roles(role_ids, tokens.shape[1])
        else:
            _check_prompt(role_ids, tokens, kw.get("attention_mask"), given_cache(kw))
            check_frozen(given_cache(kw), tokens)
        return super().generate(inputs, generation_config, *args, role_ids=role_ids, **kw)  # type: ignore[misc]

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Validate as the base model does, without the arguments of roles: others may have replaced `forward`."""
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in ROLES})  # type: ignore[misc]

    def _get_logits_processor(self, *args: Any, **kw: Any) -> Any:
        """Return the base model's processors; give classifier-free guidance the roles of its unconditional text."""
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
                "`negative_prompt_role_ids`: expected None without classifier-free guidance, got roles. Pass "
                "`guidance_scale` and `negative_prompt_ids` with them."
            )
        return processors

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kw: Any) -> Any:
        """Repeat the rows as the base model does, and those of a frozen prompt in the cache too."""
        cache: Any = given_cache(kw)
        tokens = kw.get("input_ids")
        frozen = getattr(cache, "rolesafe_tokens", None) is not None and expand_size > 1
        if frozen and tokens is not None and cache.rolesafe_roles.shape[0] == tokens.shape[0]:
            cache.batch_repeat_interleave(expand_size)
        return super()._expand_inputs_for_generation(expand_size, *args, **kw)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, role_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> Any:
        """Return the base model's inputs with the roles of all tokens up to and including those of this step."""
        if role_ids is None:
            raise ValueError(MISSING)
        if inputs_embeds is not None:  # named above because `generate` looks for it in the signature
            kwargs["inputs_embeds"] = inputs_embeds
        if kwargs.get("is_first_iteration") and kwargs.get("next_sequence_length", 0) is None:
            # Assisted decoding passes the whole prompt, also where a cache holds its beginning.
            given = given_cache(kwargs)
            if getattr(given, "rolesafe_tokens", None) is not None:
                kwargs["next_sequence_length"] = input_ids.shape[1] - int(given.get_seq_length())
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)  # type: ignore[misc]
        cache, mask = given_cache(kwargs), kwargs.get("attention_mask")
        tokens = model_inputs.get("input_ids")
        tokens = model_inputs["inputs_embeds"] if tokens is None else tokens
        if mask is not None and mask.ndim == 2:
            total = mask.shape[1]
        else:
            mask, total = None, tokens.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
        # Longer in chunked prefill. Shorter in assisted decoding: candidates get the role of generated tokens.
        role_ids = self._fit_roles(role_ids, total)
        if self.rolesafe_config.moves_positions and (strength := strength_of(self)) > 0:  # type: ignore[arg-type]
            # Here and not in `forward`: the mask of a static cache no longer shows the padding.
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
            # A plain assistant takes no roles.
            kw["model_kwargs"] = {k: v for k, v in kw["model_kwargs"].items() if k != "role_ids"}
        return super()._get_candidate_generator(*args, **kw)  # type: ignore[misc]

    def _fit_roles(self, role_ids: Tensor, length: int) -> Tensor:
        """Return `role_ids` cut to `length`, or extended with the role of generated tokens."""
        missing = length - role_ids.shape[1]
        if missing <= 0:
            return role_ids[:, :length]
        return nn.functional.pad(role_ids, (0, missing), value=self.rolesafe_config.generated_id)

    def generate_batch(self, *args: Any, **kw: Any) -> Any:
        """Raise a RuntimeError: continuous batching keeps keys in shared pages, without their roles."""
        raise RuntimeError(
            "generate_batch: continuous batching keeps keys of several requests in shared pages without their roles. "
            "Use generate(**rolesafe.encode(tokenizer, batch))."
        )

    continuous_batching_context_manager = generate_batch
    init_continuous_batching = generate_batch


class _Guidance:
    """Wrapper of the model for classifier-free guidance: adds the roles (B, M) of the unconditional text."""

    def __init__(self, model: Any, role_ids: Tensor) -> None:
        self.model = model
        self.role_ids = role_ids

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        roles = self.role_ids.repeat_interleave(input_ids.shape[0] // self.role_ids.shape[0], dim=0)  # beams
        roles = self.model._fit_roles(roles, attention_mask.shape[1])
        return self.model(input_ids, attention_mask=attention_mask, role_ids=roles, **kwargs)


def _guidance_roles(ids: Tensor | None, role_ids: Any, prompt: Tensor) -> Tensor:
    """Return the roles of the unconditional text `ids`; for None, of the last token of the prompt."""
    if ids is None and role_ids is None:
        return prompt[:, -1:]
    if ids is not None and isinstance(role_ids, Tensor) and role_ids.shape == ids.shape:
        check_roles(role_ids)
        return role_ids
    expected = "None without `negative_prompt_ids`" if ids is None else f"shape {tuple(ids.shape)}"
    got = tuple(role_ids.shape) if isinstance(role_ids, Tensor) else role_ids
    raise ValueError(
        f"`negative_prompt_role_ids`: expected {expected}, the roles of `negative_prompt_ids`, got {got}. "
        "`rolesafe.encode` returns both."
    )


def _check_prompt(role_ids: Tensor, tokens: Tensor | None, mask: Any, cache: Any) -> None:
    """Raise where the prompt of `generate` has other than one role per token: tokens after it count as generated."""
    if tokens is None:  # generation starts from a begin token
        expected: tuple[int, ...] = (role_ids.shape[0], 1)
        got_mask = isinstance(mask, Tensor) and mask.ndim == 2
        if tuple(role_ids.shape) == expected and (not got_mask or tuple(mask.shape) == expected):
            return
    else:
        batch, length = tokens.shape[:2]
        past = 0 if cache is None else int(cache.get_seq_length())
        # with a cache: the whole sequence, or the new tokens alone
        lengths = (length, past + length) if past else (length,)
        total = mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else role_ids.shape[1]
        if total not in lengths:
            if isinstance(mask, Tensor) and mask.ndim == 2:
                raise ValueError(
                    f"`attention_mask`: expected shape {(batch, lengths[-1])} like `role_ids`, one number per token, "
                    f"got {tuple(mask.shape)}"
                )
            total = lengths[-1]
        expected = (batch, total)
        if tuple(role_ids.shape) == expected:
            return
    raise ValueError(
        f"`role_ids`: expected shape {expected}, one role per token, got {tuple(role_ids.shape)}. "
        "`rolesafe.encode` returns them."
    )


@functools.cache
def role_aware_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of `base` whose `forward` takes `role_ids`; one per base class."""
    base_signature = inspect.signature(base.forward)

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, role_ids: Tensor | None = None, **kwargs: Any) -> Any:
        if role_ids is not None:
            kwargs["role_ids"] = role_ids
        return base.forward(self, *args, **kwargs)  # hooks of the entry module use and check them

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
            "__doc__": f"{base.__name__} with role-aware attention.",
        },
    )
