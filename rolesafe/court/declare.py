"""Articles that the privileged messages of a conversation declare.

A message declares articles in a block ``<court>{"articles": [...]}</court>`` of its content. Only messages whose role
is privileged are read; the content of all others is never searched, so no text in it can add, change or repeal an
article. Within a conversation articles are only added: names are unique, and a later message cannot replace one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rolesafe.config import RoleConfig
from rolesafe.court.articles import Article, Articles
from rolesafe.roles.messages import read_conversation

_BLOCK = re.compile(r"<court>(.*?)</court>\s?", re.DOTALL)
_MARK = re.compile(r"</?court>")


def declared_articles(
    messages: Sequence[Mapping[str, Any]],
    config: RoleConfig | None = None,
    *,
    base: Articles | None = None,
) -> tuple[Articles, list[dict[str, Any]]]:
    """Return the articles of a conversation, and its messages without the blocks that declare them.

    >>> from rolesafe.court import declared_articles
    >>> block = '{"articles": [{"kind": "length", "name": "short", "max_tokens": 20}]}'
    >>> articles, messages = declared_articles(
    ...     [{"role": "system", "content": f"Be brief. <court>{block}</court>"}, {"role": "user", "content": "Hi"}]
    ... )
    >>> [article.name for article in articles.articles], messages[0]["content"]
    (['short'], 'Be brief. ')

    Args:
        messages: The conversation.
        config: Role configuration, for the declared and the privileged roles; default: ``RoleConfig()``.
        base: Articles of the application, which come first.

    Returns:
        The articles, each issued by the role of its message, and the messages.

    Raises:
        ValueError: A block in a privileged message is no valid JSON of articles, an article claims another role, a name
            occurs twice, or a block names a refusal or a tokenizer where `base` or an earlier one does.
    """
    config = RoleConfig() if config is None else config
    base = Articles() if base is None else base
    found: list[Article] = list(base.articles)
    settings: dict[str, str] = {}
    if base.refusal != Articles().refusal:
        settings["refusal"] = base.refusal
    if base.tokenizer is not None:
        settings["tokenizer"] = base.tokenizer
    out: list[dict[str, Any]] = []
    for i, message in enumerate(read_conversation(messages, config.roles, "messages", config.generated)):
        if message.role_id not in config.privileged_ids:
            out.append(dict(messages[i]))
            continue
        for block in _BLOCK.finditer(message.content):
            where = f"messages[{i}].court"
            one = Articles.from_dict(_json(block[1], where), where, issued_by=message.role)
            for article in one.articles:
                if article.issued_by.lower() != message.role:
                    raise ValueError(
                        f"`{where}`: expected articles issued by {message.role!r}, the role of the message, got "
                        f"{article.name!r} issued by {article.issued_by!r}. Remove `issued_by`."
                    )
                if any(article.name == other.name for other in found):
                    raise ValueError(
                        f"`{where}`: expected a new name, got {article.name!r} again: no message changes or repeals an "
                        "article. Rename it."
                    )
                found.append(article)
            for key, value in (("refusal", one.refusal), ("tokenizer", one.tokenizer)):
                default = getattr(Articles(), key)
                if value == default or value is None:
                    continue
                if settings.get(key, value) != value:
                    raise ValueError(f"`{where}.{key}`: expected one value in a conversation, got another. Remove it.")
                settings[key] = value
        text = _BLOCK.sub("", message.content)
        if _MARK.search(text):
            raise ValueError(
                f"`messages[{i}]`: expected '<court>' and '</court>' in pairs, got one alone. Correct the block."
            )
        out.append({**messages[i], "content": text} if text != message.content else dict(messages[i]))
    return Articles(tuple(found), **settings), out


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{where}`: expected JSON, got something else: {error}. Correct the block.") from error
