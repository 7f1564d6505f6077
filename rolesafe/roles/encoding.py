"""Encode chat messages to tokens with roles.

A token has the role of its message. The role is never inferred from the text or the token ids: the chat template is
rendered with traced strings (:mod:`rolesafe.roles.rendering`), template text is attributed to messages
(:mod:`rolesafe.roles.templates`), and untrusted text cannot produce a structural token
(:mod:`rolesafe.roles.structure`).

Shapes: B conversations, T tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from rolesafe.arguments import is_integer
from rolesafe.config import RoleConfig
from rolesafe.roles.checks import check, check_list, check_tokenizer, read_config, read_variable_roles
from rolesafe.roles.messages import read_batch, read_conversation
from rolesafe.roles.segments import Part, Segment
from rolesafe.roles.templates import Layout, resolve_template
from rolesafe.roles.tokenising import EncodedConversation as EncodedConversation
from rolesafe.roles.tokenising import tokenise, truncate

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from rolesafe.roles.structure import Structure

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
PaddingSide = Literal["left", "right"]
_PADDING = (True, False, "longest", "max_length", "do_not_pad")
_RESERVED = {
    "messages", "conversations", "chat_template", "add_generation_prompt", "continue_final_message",
    "return_assistant_tokens_mask",
}  # fmt: skip
_CACHE_SIZE = 1024  # argument combinations remembered for each tokenizer and template


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
    *,
    config: RoleConfig | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    padding: Padding = True,
    padding_side: PaddingSide | None = None,
    truncation: bool = False,
    max_length: int | None = None,
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    variable_roles: Mapping[str, str] | None = None,
    return_tensors: Literal["pt"] | None = "pt",
) -> BatchEncoding:
    """Encode one conversation, or a batch of them, to aligned token ids, attention mask and role ids.

    For text without structural strings the ids are those of ``tokenizer.apply_chat_template``. A structural string in
    a message is ordinary text of that message's role. Two differences are intended: a role that the template does not
    support is printed under another name, with a warning, where ``apply_chat_template`` omits the message; and a
    content is printed as text where ``apply_chat_template`` prints a Python list.

    Where a template looks for a marker in an answer (Qwen 3 for ``</think>``), it prints its own markers around the
    parts of that answer, as in ``apply_chat_template``; they have the answer's role.

    White space joins across messages as in ``apply_chat_template``: a line break at the start of a user's text may
    share a token, in the user's role, with the line break at the end of the system prompt.

    >>> import rolesafe
    >>> from rolesafe.training.tiny import tiny_tokenizer
    >>> tokenizer = tiny_tokenizer(["answer", "in", "French", "hello"])
    >>> messages = [{"role": "system", "content": "answer in French"}, {"role": "user", "content": "hello"}]
    >>> batch = rolesafe.encode(tokenizer, messages, add_generation_prompt=True)
    >>> tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    ['<|system|>', 'answer', 'in', 'French', '</s>', '<|user|>', 'hello', '</s>', '<|assistant|>']
    >>> batch["role_ids"]
    tensor([[0, 0, 0, 0, 0, 2, 2, 2, 3]])

    Args:
        tokenizer: A transformers tokenizer. It is not changed.
        messages: Mappings with ``"role"`` and ``"content"``: one conversation (a list of them) or a batch (a list of
            lists). A content is a string, or a list of ``{"type": "text", "text": ...}``, which are joined. Messages of
            the model may have ``"tool_calls"``, in the form of OpenAI (then the content may be None), and
            ``"reasoning_content"``; messages of others ``"tool_call_id"``; all a ``"name"``. These texts have the role
            of their message. A template that prints no calls gets them as JSON in the content, with a warning; the
            other fields are passed on, and printed where the template prints them.
        config: Role configuration; default: ``RoleConfig()``.
        add_generation_prompt: End with the generation prompt. Its role is ``config.generated``.
        continue_final_message: Omit the end of the last message, so that the model continues it.
        padding: True or ``"longest"``: to the longest conversation; ``"max_length"``: to `max_length`; False or
            ``"do_not_pad"``: none. Padding has attention mask 0, the id of the padding token (or of the
            end-of-sequence token) and the least privileged role.
        padding_side: ``"left"`` or ``"right"``; default: the tokenizer's.
        truncation: Shorten conversations to `max_length` tokens. Only contents of unprivileged messages are cut, from
            the end, oldest message first; never template text or privileged messages.
        max_length: Number of tokens, for `truncation` or ``padding="max_length"``.
        chat_template: A Jinja template, the name of one of the tokenizer's, or ``"default"`` for
            :data:`rolesafe.roles.templates.DEFAULT_TEMPLATE`; default: the tokenizer's own.
        tools: Functions that the model may call: JSON schemas, or Python functions with types and a docstring.
        documents: Mappings with texts for the model, such as ``{"title": ..., "text": ...}``.
        template_kwargs: Further variables for the template, such as ``enable_thinking``. Their texts, and those of
            `tools` and `documents`, are untrusted: they have the least privileged role and hold no structural token.
        variable_roles: Role of the texts of a variable, by its name, for example ``{"tools": "system"}``.
        return_tensors: ``"pt"`` or None (lists).

    Returns:
        A ``BatchEncoding`` of ``input_ids``, ``attention_mask`` and ``role_ids``, (B, T) int64 each; B = 1 for one
        conversation. Pass it on as ``model.generate(**encoding)``.

    Raises:
        ValueError: An argument is invalid, or the template does not print the conversation.
    """
    config = read_config(config)
    check(padding in _PADDING, "padding", f"one of {_PADDING}", padding)
    check(
        padding_side in (None, *get_args(PaddingSide)),
        "padding_side",
        '"left", "right" or None (the tokenizer\'s)',
        padding_side,
    )
    check(return_tensors in (None, "pt"), "return_tensors", '"pt" or None', return_tensors)
    if max_length is None and padding == "max_length":
        raise ValueError('`max_length`: expected a number of tokens with padding="max_length", got None')
    if max_length is not None and not truncation and padding != "max_length":
        raise ValueError(
            f'`max_length`: expected None without truncation=True or padding="max_length", got {max_length}'
        )
    encoder = _Encoder(
        tokenizer,
        config,
        chat_template,
        {"tools": tools, "documents": documents},
        template_kwargs,
        variable_roles,
        add_generation_prompt,
        continue_final_message,
    )
    limit = _limit(truncation, max_length)
    conversations, names = read_batch(messages)
    encoded = encoder.encode(conversations, names, limit)
    side = padding_side or tokenizer.padding_side
    return collate(
        tokenizer,
        encoded,
        config,
        padding=padding,
        padding_side=side,
        max_length=max_length,
        return_tensors=return_tensors,
    )


def encode_one(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    config: RoleConfig | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    truncation: bool = False,
    max_length: int | None = None,
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    variable_roles: Mapping[str, str] | None = None,
    argument: str = "messages",
    live_markers: bool = False,
) -> EncodedConversation:
    """Encode one conversation, with the message and the part (header, content, footer) of each token.

    The arguments are those of :func:`encode`. `argument` is the name of `messages` in errors. `live_markers` is for
    attacks only: a typed marker becomes the structural token, in the role of its message, as on a server that
    tokenises with ``apply_chat_template``.

    Raises:
        ValueError: As :func:`encode`.
    """
    encoder = _Encoder(
        tokenizer,
        read_config(config),
        chat_template,
        {"tools": tools, "documents": documents},
        template_kwargs,
        variable_roles,
        add_generation_prompt,
        continue_final_message,
    )
    return encoder.encode([messages], [argument], _limit(truncation, max_length), live_markers)[0]


def _limit(truncation: bool, max_length: int | None) -> int | None:
    """Return the number of tokens to truncate to; None without truncation."""
    if truncation and max_length is None:
        raise ValueError("`max_length`: expected a number of tokens with truncation=True, got None")
    if max_length is not None and not is_integer(max_length, 1):
        raise ValueError(f"`max_length`: expected a number of tokens >= 1, got {max_length!r}")
    return max_length if truncation else None


class _Encoder:
    """Encoder with the arguments of one call."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: RoleConfig,
        chat_template: str | None,
        variables: Mapping[str, Any],
        template_kwargs: Mapping[str, Any] | None,
        variable_roles: Mapping[str, str] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> None:
        from rolesafe.roles.rendering import renderer, trace_variables
        from rolesafe.roles.structure import structure

        check_tokenizer(tokenizer)
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "`continue_final_message`: expected False with add_generation_prompt=True, got True: the model either "
                "continues the last message or starts a new one"
            )
        given = {} if template_kwargs is None else template_kwargs
        check(isinstance(given, Mapping), "template_kwargs", "a mapping of names to values, or None", given)
        for name in _RESERVED & set(given):
            raise ValueError(f"`template_kwargs`: expected none of {sorted(_RESERVED)}, got {name!r}")
        variables = {name: value for name, value in variables.items() if value is not None}
        for name, value in variables.items():
            check_list(value, name)
            if given.get(name) is not None:
                raise ValueError(f"`template_kwargs`: expected no {name!r} beside `{name}`, got both. Pass one.")
        given = {**given, **variables}
        template = resolve_template(tokenizer, chat_template, given.get("tools"))
        special = tokenizer.special_tokens_map
        self.config = config
        self.structure: Structure = structure(tokenizer, template, config.roles)
        self.variable_roles = read_variable_roles(variable_roles, given, config)
        self.continue_final_message = continue_final_message
        self.layout = Layout(
            renderer(template),
            config,
            trace_variables(special, given),
            add_generation_prompt=bool(add_generation_prompt),
            markers=self.structure.markers,
            known=self._known(given, bool(add_generation_prompt)),
            required=tuple(variables),
        )

    def _known(self, given: Mapping[str, Any], generation: bool) -> dict[Any, Any]:
        """Return the cache of earlier calls with the same arguments."""
        try:
            text = json.dumps(given, sort_keys=True)
            key = (self.config.roles, self.config.privileged, self.config.generated, generation, text)
        except TypeError:  # a function among the tools, say
            return {}
        known = self.structure.known
        if key not in known and len(known) >= _CACHE_SIZE:
            known.clear()
        found: dict[Any, Any] = known.setdefault(key, {})
        return found

    def encode(
        self, conversations: Sequence[Any], arguments: Sequence[str], limit: int | None, live_markers: bool = False
    ) -> list[EncodedConversation]:
        """Encode conversations; `arguments` are their names in error messages."""
        printed = [self._print(messages, name) for messages, name in zip(conversations, arguments, strict=True)]
        whole = self.structure.encode_whole(["".join(s.text for s in segments) for segments, _ in printed])
        privileged = set(self.config.privileged_ids)
        out = []
        for (segments, roles), tokens, name in zip(printed, whole, arguments, strict=True):
            encoded, cuttable, glued = tokenise(self.structure, tokens, segments, roles, privileged, live_markers)
            if limit is not None and len(encoded) > limit:
                encoded = truncate(encoded, cuttable, glued, self.config, limit, name)
            out.append(encoded)
        return out

    def _print(self, messages: Any, argument: str) -> tuple[list[Segment], list[int]]:
        """Return the text of a conversation in segments, and their role ids."""
        conversation = read_conversation(messages, self.config.roles, argument, self.config.generated)
        segments = self.layout.segments(conversation, argument)
        if self.continue_final_message:
            if conversation[-1].fields.calls:
                raise ValueError(
                    f"`continue_final_message`: expected a last message of `{argument}` without tool calls, got some. "
                    "Pass add_generation_prompt=True instead."
                )
            last = [k for k, s in enumerate(segments) if s.part is Part.CONTENT and s.message == len(conversation) - 1]
            if not last:
                raise ValueError(
                    f"`continue_final_message`: expected a chat template that prints the last message of `{argument}`, "
                    "got none. Pass add_generation_prompt=True instead."
                )
            segments = segments[: last[-1] + 1]
        own = [message.role_id for message in conversation] + [self.config.generated_id]
        others = padding_role_id(self.config)
        roles = [
            own[s.message] if s.variable is None else self.variable_roles.get(s.variable, others) for s in segments
        ]
        return segments, roles


def collate(
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedConversation],
    config: RoleConfig,
    *,
    padding: Padding = True,
    padding_side: PaddingSide,
    max_length: int | None = None,
    return_tensors: Literal["pt"] | None = "pt",
) -> BatchEncoding:
    """Return a batch of conversations from :func:`encode_one`, (B, T); the arguments are those of :func:`encode`.

    Raises:
        ValueError: The conversations have several lengths without padding, or exceed `max_length`.
    """
    from transformers import BatchEncoding

    lengths = [len(conversation) for conversation in encoded]
    target = max(lengths)
    if padding == "max_length" and max_length is not None:
        if target > max_length:
            raise ValueError(
                f"`max_length`: expected at least the {target} tokens of the longest conversation, got {max_length}. "
                "Raise it, or pass truncation=True."
            )
        target = max_length
    pads = padding not in (False, "do_not_pad")
    if not pads and return_tensors == "pt" and len(set(lengths)) > 1:
        raise ValueError(
            f"`padding`: expected True for a tensor of conversations of {min(lengths)} to {target} tokens, got "
            f"{padding!r}. Pass padding=True, or return_tensors=None for lists."
        )
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "role_ids": []}
    for conversation in encoded:
        short = target - len(conversation) if pads else 0
        for name, values, filler in (
            ("input_ids", conversation.input_ids, padding_id(tokenizer) if short else 0),
            ("attention_mask", [1] * len(conversation), 0),
            ("role_ids", conversation.role_ids, padding_role_id(config)),
        ):
            fill = [filler] * short
            columns[name].append(fill + values if padding_side == "left" else values + fill)
    return BatchEncoding(columns, tensor_type=return_tensors)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of padding: that of the padding token, or of the end-of-sequence token.

    Raises:
        ValueError: The tokenizer has neither.
    """
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise ValueError(
        "`tokenizer`: expected a padding or an end-of-sequence token, got neither. Set tokenizer.pad_token to any "
        "token (the attention mask hides it), or encode one conversation at a time."
    )


def padding_role_id(config: RoleConfig) -> int:
    """Return the role id of padding: the least privileged one."""
    return max(set(range(len(config.roles))) - set(config.privileged_ids))
