"""Frozen prompts: keys and values of privileged messages, computed once, for every later conversation.

Legend: B conversations, N tokens of the longest, P tokens of the frozen prompt, G key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchEncoding, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rolesafe.mechanisms import get_strength
from rolesafe.patching import families
from rolesafe.patching.caches import bind_frozen, cache_argument
from rolesafe.patching.checkpoint_files import digest, tensor_digest
from rolesafe.patching.frozen_files import load, save
from rolesafe.patching.frozen_seal import (
    PARTS,
    LayerState,
    WeightsWatch,
    computation_of,
    configuration_digest,
    tokenizer_digest,
    weights_digest,
)
from rolesafe.patching.patched import check_patched
from rolesafe.roles.encoding import encode, encode_one, padding_id, padding_role_id
from rolesafe.roles.messages import read_conversation
from rolesafe.roles.segments import Part
from rolesafe.roles.templates import resolve_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBES = ("a", "\n\n b")
"""Contents of a next message: tokens that both leave unchanged do not depend on what follows."""

_OWN = ("config", "padding", "padding_side", "return_tensors", "chat_template")


class FrozenPrompt:
    """Privileged messages at the start of conversations, with their keys and values. Made by :func:`freeze`.

    Attributes:
        messages: The privileged messages.
        tokens: (P,) int64 token ids.
        roles: (P,) int64 role ids.
        seal: Digests by the names of :data:`rolesafe.patching.frozen_seal.PARTS`.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
    >>> tokenizer = tiny_tokenizer(["answer", "in", "French"])
    >>> model = tiny_llama(len(tokenizer), seed=0, layers=1).eval()
    >>> model = rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))
    >>> frozen = rolesafe.freeze(model, tokenizer, [{"role": "system", "content": "answer in French"}])
    >>> len(frozen) == len(frozen.tokens)
    True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        chat_template: str | None,
        tokens: Tensor,
        roles: Tensor,
        layers: Mapping[int, LayerState],
        seal: Mapping[str, str],
    ) -> None:
        self.messages = tuple(dict(message) for message in messages)
        self.tokens, self.roles, self.seal = tokens, roles, dict(seal)
        self._model: Any = model
        self._tokenizer, self._chat_template, self._layers = tokenizer, chat_template, dict(layers)
        self._vocabulary = len(tokenizer)
        self._versions = self._state_versions()
        self._watch = WeightsWatch(model, self.seal["weights"])

    def __len__(self) -> int:
        return len(self.tokens)

    def inputs(
        self, messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]], **options: Any
    ) -> BatchEncoding:
        """Encode what follows the frozen messages, for ``model.generate(**inputs)``.

        Args:
            messages: Messages after the frozen ones: one conversation, or a batch of them.
            options: Further arguments of :func:`rolesafe.encode`, such as ``add_generation_prompt=True``.

        Returns:
            ``input_ids``, ``attention_mask`` and ``role_ids`` (B, N) of the whole conversations, on the model's device,
            and a new cache that holds the first P tokens, under its name in `generate`. Padding is between the frozen
            tokens and the rest.

        Raises:
            ValueError: As :meth:`cache` and :func:`rolesafe.encode`; or a conversation does not begin with the frozen
                tokens, or has no further ones.
        """
        if taken := sorted(set(_OWN) & set(options)):
            raise ValueError(f"`{taken[0]}`: expected no such option, the frozen prompt sets it. Remove it.")
        batch: Any = [messages] if _is_conversation(messages) else messages
        whole = [[*self.messages, *one] for one in batch]
        config = self._model.rolesafe_config
        lists = encode(
            self._tokenizer,
            whole,
            config=config,
            padding=False,
            chat_template=self._chat_template,
            return_tensors=None,
            **options,
        )
        size = len(self)
        frozen = self.tokens.tolist(), self.roles.tolist()
        for i, (ids, roles) in enumerate(zip(lists["input_ids"], lists["role_ids"], strict=True)):
            if (ids[:size], roles[:size]) != frozen or len(ids) == size:
                what = "no further tokens" if len(ids) == size else "other tokens or roles"
                raise ValueError(
                    f"`messages[{i}]`: expected a conversation that goes on after the {size} frozen tokens, got "
                    f"{what}. Freeze the messages with the template and the variables that are used here."
                )
        longest = max(map(len, lists["input_ids"]))
        filler = {
            "input_ids": padding_id(self._tokenizer) if len(set(map(len, lists["input_ids"]))) > 1 else 0,
            "attention_mask": 0,
            "role_ids": padding_role_id(config),
        }
        out = {
            name: torch.tensor([[*row[:size], *[fill] * (longest - len(row)), *row[size:]] for row in lists[name]])
            for name, fill in filler.items()
        }
        placed = {name: value.to(self._model.device) for name, value in out.items()}
        cache_name = cache_argument(type(self._model).forward)
        return BatchEncoding({**placed, cache_name: self.cache(len(whole))})

    def cache(self, rows: int = 1) -> DynamicCache:
        """Return a new cache with the frozen tokens in `rows` rows. Rows share memory until tokens are added.

        Raises:
            ValueError: Weights, configuration, template, tokenizer, backend or the frozen states were changed, or the
                model is in training mode.
        """
        self.check()
        cache = _empty_cache(self._model)
        for i, state in self._layers.items():
            layer: Any = cache.layers[i]
            layer.lazy_initialization(state.keys, state.values)
            layer.keys, layer.values = (x.expand(rows, -1, -1, -1) for x in (state.keys, state.values))
            if state.seen is not None:
                layer.cumulative_length = state.seen
        bind_frozen(cache, self.tokens, self.roles.expand(rows, -1), _owner(self._model))
        return cache

    def check(self) -> None:
        """Raise a ValueError where the frozen states are not those that the model would compute now."""
        _check_model(self._model)
        if self._model.training:
            raise ValueError(
                "`model`: expected evaluation mode for a frozen prompt, got training mode. Call model.eval()."
            )
        found = _seal_of(self._model, self._tokenizer, self._chat_template, tokenizer_too=False)
        _compare(self.seal, found)
        if len(self._tokenizer) != self._vocabulary:
            raise ValueError(_changed("tokenizer"))
        if self._state_versions() != self._versions:
            raise ValueError(_changed("states"))
        if not self._watch.holds():
            raise ValueError(_changed("weights"))

    def save(self, directory: str | Path) -> None:
        """Write the prompt into a directory: ``frozen.safetensors`` and ``frozen.json``.

        Raises:
            ValueError: As :meth:`check`.
        """
        self.check()
        save(directory, self.about(), self.state_tensors())

    @classmethod
    def load(cls, directory: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> FrozenPrompt:
        """Load a saved prompt for the model that computed it. Keys and values are mapped into memory.

        Raises:
            ValueError: The files were changed, or the model, tokenizer, template or backend is another.
        """
        _check_model(model)
        parts = load(directory)
        found = _seal_of(model, tokenizer, parts["chat_template"])
        _compare(parts["seal"], {**found, "weights": weights_digest(model)})
        layers = {
            i: LayerState(state.keys.to(model.device), state.values.to(model.device), state.seen)
            for i, state in parts["layers"].items()
        }
        tokens, roles = (parts[name].to(model.device) for name in ("tokens", "roles"))
        return cls(model, tokenizer, parts["messages"], parts["chat_template"], tokens, roles, layers, parts["seal"])

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the keys and values of the layers, and the tokens and their roles, by name."""
        named = {f"{i}.{kind}": getattr(s, kind) for i, s in self._layers.items() for kind in ("keys", "values")}
        return {**named, "tokens": self.tokens, "roles": self.roles}

    def about(self) -> dict[str, Any]:
        """Return what is not a tensor, in JSON types."""
        seen = {str(i): state.seen for i, state in self._layers.items()}
        return {
            "messages": list(self.messages),
            "chat_template": self._chat_template,
            "seen": seen,
            "computation": computation_of(self._model),
            "seal": self.seal,
        }

    def _state_versions(self) -> list[int]:
        return [x._version for x in self.state_tensors().values()]


def freeze(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None = None,
) -> FrozenPrompt:
    """Compute the keys and values of privileged messages once, for all conversations that begin with them.

    With ``integrity`` the states of privileged tokens do not depend on other text, so they are the same in every
    conversation: equal, bit for bit, to those of a prefill of the same tokens.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
    >>> tokenizer = tiny_tokenizer(["answer", "in", "French", "hello"])
    >>> model = tiny_llama(len(tokenizer), seed=0, layers=1).eval()
    >>> model = rolesafe.patch(model, rolesafe.RoleConfig.preset("channel"))
    >>> frozen = rolesafe.freeze(model, tokenizer, [{"role": "system", "content": "answer in French"}])
    >>> inputs = frozen.inputs([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    >>> model.generate(**inputs, max_new_tokens=2).shape
    torch.Size([1, 11])

    Args:
        model: A patched model with ``integrity``, in evaluation mode.
        tokenizer: Its tokenizer.
        messages: Privileged messages, those at the start of the conversations.
        chat_template: As in :func:`rolesafe.encode`.

    Raises:
        ValueError: The model is not patched, has no integrity or less than full strength, has adapters, is sharded or
            in training mode; a message has a role without privilege; the template does not print the messages in
            tokens of their own; or a layer keeps another state than keys and values.
    """
    _check_model(model)
    patched: Any = model
    if patched.training:
        raise ValueError("`model`: expected evaluation mode for a frozen prompt, got training mode. Call model.eval().")
    config = patched.rolesafe_config
    for i, message in enumerate(read_conversation(messages, config.roles, "messages")):
        if message.role_id not in config.privileged_ids:
            raise ValueError(
                f"`messages[{i}].role`: expected a privileged role, one of {config.privileged}, got {message.role!r}. "
                "Pass the others to `FrozenPrompt.inputs`."
            )
    ids, roles = _common_tokens(patched, tokenizer, messages, chat_template)
    tokens, role_ids = (torch.tensor(x, device=patched.device) for x in (ids, roles))
    with torch.inference_mode(False), torch.no_grad():
        cache = _empty_cache(patched)
        patched(
            input_ids=tokens[None],
            attention_mask=torch.ones_like(tokens)[None],
            role_ids=role_ids[None],
            use_cache=True,
            **{cache_argument(type(patched).forward): cache},
        )
    layers: dict[int, LayerState] = {}
    for i, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"`model`: expected layers whose state is keys and values, got {type(layer).__name__}, whose state "
                "depends on more. Prompts of this family cannot be frozen."
            )
        if layer.is_initialized:
            seen = int(layer.cumulative_length) if isinstance(layer, DynamicSlidingWindowLayer) else None
            layers[i] = LayerState(layer.keys.contiguous(), layer.values.contiguous(), seen)
    seal = {**_seal_of(patched, tokenizer, chat_template), "weights": weights_digest(patched)}
    found = FrozenPrompt(patched, tokenizer, messages, chat_template, tokens, role_ids, layers, seal)
    tensors = found.state_tensors()
    own = {name: tensors.pop(name) for name in ("tokens", "roles")}
    found.seal.update(tokens=tensor_digest(own), states=tensor_digest(tensors))
    return found


def _common_tokens(
    model: Any, tokenizer: Any, messages: Sequence[Mapping[str, Any]], chat_template: str | None
) -> tuple[list[int], list[int]]:
    """Return ids and roles of the first tokens that are the same whatever follows the messages.

    Raises:
        ValueError: A token joins them with what follows, or has a role without privilege.
    """
    config = model.rolesafe_config
    other = next(role for i, role in enumerate(config.roles) if i not in config.privileged_ids)
    other = "user" if "user" in config.roles and "user" not in config.privileged else other

    def rows(following: list[dict[str, str]]) -> list[tuple[int, int]]:
        found = encode(
            tokenizer, [*messages, *following], config=config, chat_template=chat_template, return_tensors=None
        )
        return list(zip(found["input_ids"][0], found["role_ids"][0], strict=True))

    probed = [rows([{"role": other, "content": text}]) for text in _PROBES]
    same = next((k for k, pair in enumerate(zip(*probed, strict=False)) if pair[0] != pair[1]), len(probed[0]))
    outside = next((k for k, (_, role) in enumerate(probed[0]) if role not in config.privileged_ids), len(probed[0]))
    size = min(same, outside)
    alone = encode_one(tokenizer, messages, config=config, chat_template=chat_template)
    printed = max((k + 1 for k, part in enumerate(alone.parts) if part is Part.CONTENT), default=0)
    if not printed or size < printed or alone.input_ids[:printed] != [i for i, _ in probed[0][:printed]]:
        raise ValueError(
            f"`messages`: expected privileged messages whose first {printed} tokens do not depend on what follows, got "
            f"{size} such tokens. The chat template prints them elsewhere, or joins them with the next message."
        )
    return [i for i, _ in probed[0][:size]], [role for _, role in probed[0][:size]]


def _check_model(model: Any) -> None:
    check_patched(model)
    if not model.rolesafe_config.integrity:
        raise ValueError(
            "`model`: expected a role layer with integrity for a frozen prompt, got integrity=False: privileged tokens "
            'would depend on other text. Patch it with RoleConfig(integrity=True, ...), such as preset("channel").'
        )
    if (strength := get_strength(model)) != 1.0:
        raise ValueError(
            f"`model`: expected a role layer of full strength for a frozen prompt, got {strength}: integrity does not "
            "hold below it. Call rolesafe.mechanisms.set_strength(model, 1.0)."
        )
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ValueError(
            "`model`: expected a model without adapters for a frozen prompt, got some: switching one off would change "
            "its states. Call merge_and_unload() of the PEFT model first."
        )
    if changing := families.rope_types(model) & {"dynamic", "longrope"}:
        raise ValueError(
            f"`model`: expected rotary positions that do not depend on the length of the conversation, got "
            f"{', '.join(sorted(changing))}. Prompts of this model cannot be frozen."
        )


def _empty_cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _owner(model: Any) -> tuple[str, float]:
    return model.rolesafe_layers.patch, get_strength(model)


def _is_conversation(messages: Any) -> bool:
    return bool(messages) and isinstance(messages[0], Mapping)


def _seal_of(model: Any, tokenizer: Any, chat_template: str | None, *, tokenizer_too: bool = True) -> dict[str, str]:
    """Return the digests but those of weights, tokens and states; without the slow one of the tokenizer on request."""
    template = resolve_template(tokenizer, chat_template, None)
    found = {
        "configuration": configuration_digest(model),
        "template": digest(str(template)),
        "computation": digest(computation_of(model)),
    }
    return {**found, "tokenizer": tokenizer_digest(tokenizer)} if tokenizer_too else found


def _compare(seal: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name in PARTS:
        if name in found and seal.get(name) != found[name]:
            raise ValueError(_changed(name))


def _changed(name: str) -> str:
    return (
        f"`{name}`: expected {PARTS[name]} that the frozen prompt was computed with, got another digest. Freeze the "
        "messages again with rolesafe.freeze."
    )
