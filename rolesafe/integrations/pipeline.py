"""A pipeline for text generation that keeps roles: call it with messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rolesafe.arguments import is_integer
from rolesafe.attacks.replies import end_ids, role_config
from rolesafe.config import RoleConfig
from rolesafe.roles.encoding import collate, encode_one, padding_id
from rolesafe.roles.messages import read_batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OWN = ("inputs", "input_ids", "attention_mask", "role_ids", "inputs_embeds", "return_dict_in_generate")
_PROMPT = ("tools", "documents", "template_kwargs", "variable_roles", "chat_template")


class RolePipeline:
    """``transformers.pipeline("text-generation")`` for role-aware models.

    transformers' own pipeline encodes without roles, so a patched model raises in it.

    >>> import rolesafe
    >>> from rolesafe.integrations.pipeline import RolePipeline
    >>> from rolesafe.training.tiny import tiny_llama, tiny_tokenizer
    >>> tokenizer = tiny_tokenizer(["hello", "world"])
    >>> model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), rolesafe.RoleConfig.preset("bias"))
    >>> chat = RolePipeline(model, tokenizer)
    >>> (reply,) = chat([{"role": "user", "content": "hello"}], max_new_tokens=3)
    >>> [message["role"] for message in reply["generated_text"]]
    ['user', 'assistant']

    Args:
        model: A patched model, or a directory or hub id of one.
        tokenizer: Its tokenizer, with a chat template; None for that of the directory or hub id.
        device: Such as "cpu" or "cuda"; None to leave a model where it is, and to load one to a GPU where there is one.
        dtype: For loading: "auto" (as saved) or the name of a torch dtype.

    Raises:
        ValueError: The model is not role-aware, or cannot be loaded.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        from rolesafe.patching import is_patched

        loaded: Any = model
        if isinstance(model, str):
            from rolesafe.retrain.loading import load_chat_model

            loaded, own = load_chat_model(model, device, dtype)
            tokenizer = tokenizer or own
        elif device is not None:
            loaded = loaded.to(device)
        if tokenizer is None:
            raise ValueError("`tokenizer`: expected the tokenizer of the model, got None. Pass it.")
        if not is_patched(loaded) and hasattr(loaded, "get_base_model"):  # an adapter around a patched model
            loaded = loaded.get_base_model()
        if not is_patched(loaded):
            raise ValueError(
                f"`model`: expected a role-aware model, got a {type(loaded).__name__} without a role layer. Use "
                "transformers.pipeline for it, or call rolesafe.patch."
            )
        self.model, self.tokenizer = loaded, tokenizer

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        batch_size: int = 8,
        return_full_text: bool = True,
        **options: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Generate the reply to one conversation, or to each of a list.

        Args:
            messages: One conversation, or a list of them, as for :func:`rolesafe.encode`.
            batch_size: Most conversations in a batch, padded on the left.
            return_full_text: Return the conversation with the reply as its last message; False for the text of the
                reply alone.
            options: ``tools``, ``documents``, ``template_kwargs``, ``variable_roles`` and ``chat_template`` of
                :func:`rolesafe.encode`; all others go to ``model.generate``.

        Returns:
            As transformers' pipeline: a list with ``{"generated_text": ...}`` for each returned sequence of the
            conversation; a list of such lists for a list of conversations.

        Raises:
            ValueError: An argument is invalid.
        """
        import torch

        from rolesafe.patching.modes import evaluating

        if not is_integer(batch_size, 1):
            raise ValueError(f"`batch_size`: expected a number >= 1, got {batch_size!r}. Pass 1 or more.")
        for name in _OWN:
            if name in options:
                raise ValueError(f"`{name}`: expected no such option, got one: the pipeline sets it. Pass messages.")
        conversations, names = read_batch(messages)
        prompt = {name: options.pop(name) for name in _PROMPT if name in options}
        config: RoleConfig = self.model.rolesafe_config
        encoded = [
            encode_one(self.tokenizer, one, config=config, add_generation_prompt=True, argument=name, **prompt)
            for one, name in zip(conversations, names, strict=True)
        ]
        ends = end_ids(self.model, self.tokenizer)
        settings: dict[str, Any] = {"eos_token_id": ends or None, "pad_token_id": padding_id(self.tokenizer), **options}
        if settings.get("stop_strings") is not None:
            settings.setdefault("tokenizer", self.tokenizer)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        found: list[list[dict[str, Any]]] = [[] for _ in encoded]
        with torch.no_grad(), evaluating(self.model):
            for start in range(0, len(order), batch_size):
                some = order[start : start + batch_size]
                batch = collate(self.tokenizer, [encoded[i] for i in some], config, padding_side="left")
                inputs = {name: value.to(self.model.device) for name, value in batch.items()}
                rows = self.model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :].tolist()
                each = len(rows) // len(some)
                for k, row in enumerate(rows):
                    i = some[k // each]
                    found[i].append({"generated_text": self._shown(row, ends, conversations[i], return_full_text)})
        return found[0] if names == ["messages"] else found

    def _shown(self, row: list[int], ends: list[int], messages: Any, full: bool) -> Any:
        end = next((k for k, token in enumerate(row) if token in ends), len(row))
        text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
        config = role_config(self.model) or RoleConfig()
        return [*messages, {"role": config.generated, "content": text}] if full else text
