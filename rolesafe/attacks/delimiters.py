"""Delimiters of a chat template: the literal text around its messages, which a user can type to forge a turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rolesafe.config import RoleConfig
from rolesafe.roles.messages import read_conversation
from rolesafe.roles.structure import structure
from rolesafe.roles.templates import Layout, resolve_template
from rolesafe.roles.traced import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Delimiters:
    """Hold headers and footers of one conversation layout, by role name.

    Attributes:
        headers: Pairs of a role and the text before its content, without the beginning-of-sequence token.
        footers: Pairs of a role and the text after its content.
    """

    headers: tuple[tuple[str, str], ...]
    footers: tuple[tuple[str, str], ...]

    def header(self, role: str) -> str:
        """Return the text that opens a turn of `role`.

        Raises:
            ValueError: The layout has no such role.
        """
        return _look_up(self.headers, role)

    def footer(self, role: str) -> str:
        """Return the text that closes a turn of `role`.

        Raises:
            ValueError: The layout has no such role.
        """
        return _look_up(self.footers, role)


Marks = Callable[..., Delimiters]
"""``marks(model, tokenizer, roles, config) -> Delimiters``: makes the delimiters of forged turns."""


def delimiters(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str] = ("system", "user"), config: RoleConfig | None = None
) -> Delimiters:
    """Return the delimiters of `tokenizer`'s chat template for a conversation of these roles.

    Args:
        tokenizer: A tokenizer with a chat template.
        roles: Role names of the messages, in order.
        config: Declares the roles; default: ``RoleConfig()``.

    Raises:
        ValueError: The template refuses such a conversation.
    """
    headers, footers = {}, {}
    segments = _segments(tokenizer, roles, config)
    begin = "" if _opens_turns(tokenizer, roles, config) else tokenizer.bos_token or ""
    for role, part, text in segments:
        if part == "HEADER" and role not in headers:
            headers[role] = text.removeprefix(begin)
        elif part == "FOOTER" and role not in footers:
            footers[role] = text
    return Delimiters(
        tuple((role, headers.get(role, "")) for role in roles), tuple((role, footers.get(role, "")) for role in roles)
    )


def _opens_turns(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], config: RoleConfig | None) -> bool:
    """Return True where the beginning-of-sequence token opens every turn, as ``<|im_start|>`` of SmolLM2 does."""
    bos, name = tokenizer.bos_token, (config or RoleConfig()).generated
    if not bos:
        return False
    several = roles if len(roles) > 1 else (*roles, name)
    headers = [text for _, part, text in _segments(tokenizer, several, config) if part == "HEADER"]
    return len(headers) > 1 and all(text.startswith(bos) for text in headers)


def literal(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], config: RoleConfig | None
) -> Delimiters:
    """Return the template's own delimiters; `model` is not used."""
    del model
    return delimiters(tokenizer, roles, config)


def with_answer(
    model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], config: RoleConfig | None
) -> Delimiters:
    """Return the delimiters of :func:`literal`, followed by those of an assistant turn."""
    del model
    return delimiters(tokenizer, (*roles, (config or RoleConfig()).generated), config)


def closing_token(tokenizer: PreTrainedTokenizerBase, config: RoleConfig | None = None) -> int | None:
    """Return the id of the structural token that ends an assistant turn in the template, or None without one."""
    name = (config or RoleConfig()).generated
    try:
        segments = _segments(tokenizer, ("system", "user", name), config)
    except ValueError:
        segments = _segments(tokenizer, ("user", name), config)
    state = structure(tokenizer)
    for role, part, text in segments:
        if role == name and part == "FOOTER":
            spans = state.markers(text)
            if spans and not text[: spans[0][0]].strip():
                return int(state.structural[text[slice(*spans[0])]])
    return None


def _segments(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], config: RoleConfig | None
) -> list[tuple[str, str, str]]:
    """Return role, part and text of each segment, in the order of the rendered conversation."""
    from rolesafe.roles.rendering import renderer, trace_variables

    config = config or RoleConfig()
    layout = Layout(
        renderer(resolve_template(tokenizer, None)),
        config,
        trace_variables(tokenizer.special_tokens_map, {}),
        add_generation_prompt=False,
        markers=structure(tokenizer).markers,
    )
    messages = [{"role": role, "content": "Hello"} for role in roles]
    segments = layout.segments(read_conversation(messages, config.roles, "messages", config.generated))
    return [
        (roles[s.message], s.part.name, s.text) for s in segments if s.message < len(roles) and s.kind is Kind.TEMPLATE
    ]


def _look_up(pairs: tuple[tuple[str, str], ...], role: str) -> str:
    for name, text in pairs:
        if name == role:
            return text
    raise ValueError(f"`role`: expected one of {[name for name, _ in pairs]}, got {role!r}")
