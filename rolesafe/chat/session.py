"""Conversation with one or two models: turns, streaming replies, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rolesafe.attacks.replies import context_size, end_ids, role_config
from rolesafe.tasks import Message

if TYPE_CHECKING:
    from rolesafe.court import Articles

Write = Callable[[str], None]
"""Callback for the reply so far, after each new part."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """Model with its tokenizer and generation settings.

    Attributes:
        name: Name on the terminal.
        model: Causal language model, patched or plain, in evaluation mode.
        tokenizer: Tokenizer of the model, with a chat template.
        max_new_tokens: Maximum length of a reply in tokens.
        temperature: Sampling temperature; 0 is greedy.
        court: Articles that every reply keeps; None for none.
    """

    name: str
    model: Any
    tokenizer: Any
    max_new_tokens: int = 256
    temperature: float = 0.0
    court: Articles | None = None

    def reply(self, messages: list[Message], write: Write) -> str:
        """Return the reply to `messages`, and stream it to `write`.

        Raises:
            ValueError: The chat template does not support the conversation, it exceeds the context, or the articles
                cannot be compiled.
        """
        import torch
        from transformers import LogitsProcessorList

        from rolesafe.patching import is_patched
        from rolesafe.roles.encoding import encode, padding_id

        model: Any = self.model
        if not is_patched(model) and hasattr(model, "get_base_model"):  # an adapter around a patched model
            model = model.get_base_model()
        batch = encode(self.tokenizer, messages, config=role_config(model), add_generation_prompt=True)
        inputs = {name: value.to(model.device) for name, value in batch.items()}
        if not is_patched(model):
            inputs.pop("role_ids")
        length = inputs["input_ids"].shape[1]
        room = (context_size(model) or length + self.max_new_tokens) - length
        if room < 1:
            raise ValueError(
                f"`messages`: expected a conversation shorter than the context of {context_size(model)} tokens, got "
                f"{length} tokens. Start again with /reset."
            )
        ends = end_ids(model, self.tokenizer)
        stream = _Stream(self.tokenizer, set(ends), write)
        sampling = (
            {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {"do_sample": False}
        )
        court, processors = None, LogitsProcessorList()
        if self.court is not None:
            from rolesafe.court import Court, CourtProcessor

            court = Court.compile(
                self.court, self.tokenizer, messages=messages, config=role_config(model), end_ids=ends
            )
            processors.append(CourtProcessor(court, inputs["input_ids"], record=False))
        with torch.no_grad():
            model.generate(
                **inputs,
                **sampling,
                logits_processor=processors,
                max_new_tokens=min(self.max_new_tokens, room),
                eos_token_id=ends or None,
                pad_token_id=padding_id(self.tokenizer),
                streamer=stream,
            )
        if court is not None and court.check(stream.ids) is not None:
            write(court.articles.refusal)
            return court.articles.refusal
        return stream.text


class _Stream:
    """Streamer for `generate` that decodes the reply so far, in whole characters."""

    def __init__(self, tokenizer: Any, stop: set[int], write: Write) -> None:
        self.tokenizer, self.stop, self.write = tokenizer, stop, write
        self.ids: list[int] = []
        self.text = ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Skip the prompt, then decode one token at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.ids += [i for i in value.flatten().tolist() if i not in self.stop]
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        # the rest of a character may be in the next token
        if not text.endswith("\ufffd") and text != self.text:
            self.text = text
            self.write(text)

    def end(self) -> None:
        """Write the final reply."""
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()
        if text != self.text:
            self.text = text
            self.write(text)


@dataclass
class Session:
    """Turns of a chat, with the replies of each speaker kept separately.

    Attributes:
        speakers: One or two speakers.
        system: System prompt; empty for none.
    """

    speakers: tuple[Speaker, ...]
    system: str = ""
    _turns: list[Message | tuple[str, ...]] = field(default_factory=list)

    def add(self, role: str, content: str) -> None:
        """Add a turn of the role ``"user"`` or ``"tool"``."""
        self._turns.append({"role": role, "content": content})

    def undo(self) -> None:
        """Remove the last turn."""
        self._turns.pop()

    def reset(self) -> None:
        """Remove all turns; the system prompt stays."""
        self._turns.clear()

    def messages(self, speaker: int) -> list[Message]:
        """Return the conversation with the replies of the speaker at this index."""
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return found + [
            turn if isinstance(turn, dict) else {"role": "assistant", "content": turn[speaker]} for turn in self._turns
        ]

    def answer(self, write: Callable[[int, str], None]) -> tuple[str, ...]:
        """Generate a reply of every speaker, add the replies as a turn, and return them.

        Args:
            write: Callback for the index of the speaker and its reply so far.

        Raises:
            ValueError: As :meth:`Speaker.reply`; no turn is added.
        """
        replies = tuple(
            speaker.reply(self.messages(i), lambda text, i=i: write(i, text))  # type: ignore[misc]
            for i, speaker in enumerate(self.speakers)
        )
        self._turns.append(replies)
        return replies
