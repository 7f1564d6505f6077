"""Greedy replies of the untouched model as training targets, cached on disk and resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rolesafe.attacks.memory import Batches
from rolesafe.attacks.replies import end_ids
from rolesafe.patching.modes import evaluating
from rolesafe.retrain.preparation import Prepared
from rolesafe.tasks import Message

Progress = Callable[[int, int], None]
"""Callback for the number of prompts done and their total."""


def write_replies(
    prepared: Prepared,
    model: Any,
    tokenizer: Any,
    *,
    path: Path,
    identity: Mapping[str, Any],
    max_new_tokens: int,
    batch_size: int,
    max_length: int,
    progress: Progress | None = None,
) -> tuple[Prepared, int]:
    """Generate the missing replies of `prepared` and return the completed rows.

    Equal prompts get one reply. Replies are appended to `path` batch by batch; a later call with the same model,
    prompts and length reads them from there.

    Args:
        prepared: Rows, some with a `prompt` in place of a reply.
        model: Plain causal language model: the untouched base.
        tokenizer: Tokenizer of the model.
        path: JSON lines file of the replies.
        identity: Other inputs that determine a reply, as JSON values: the model, the dtype of its weights.
        max_new_tokens: Maximum length of a reply in tokens.
        batch_size: Maximum number of prompts in a batch; halved where memory runs out.
        max_length: Maximum length of a prompt in tokens; longer ones get no reply.
        progress: Callback after each batch.

    Returns:
        The rows with replies, and the number of rows left out because the reply did not end within `max_new_tokens`,
        was empty, or the prompt is too long.

    Raises:
        OSError: `path` cannot be written.
        ValueError: No row is left.
    """
    about = {**identity, "max_new_tokens": max_new_tokens}
    keys = [None if row.prompt is None else _key(row.prompt, about) for row in prepared.rows]
    prompts = {key: row.prompt for key, row in zip(keys, prepared.rows, strict=True) if key is not None and row.prompt}
    known = {key: reply for key, reply in _read(path).items() if key in prompts}
    todo = [key for key in prompts if key not in known]
    encoded = {key: _encode(tokenizer, prompts[key]) for key in todo}
    for key in [key for key in todo if len(encoded[key]) > max_length]:
        known[key] = None
    todo = sorted((key for key in todo if key not in known), key=lambda key: (len(encoded[key]), key))
    if progress is not None:
        progress(len(prompts) - len(todo), len(prompts))
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = Batches(batch_size)
    ends = end_ids(model, tokenizer)
    with path.open("a+b") as file, evaluating(model):
        _end_line(file)
        at = 0
        while at < len(todo):

            def write(size: int, start: int = at) -> list[str | None]:
                chosen = [encoded[key] for key in todo[start : start + size]]
                return _generate(model, tokenizer, chosen, ends, max_new_tokens)

            replies = batches.run(write, len(todo) - at)
            for key, reply in zip(todo[at:], replies, strict=False):
                known[key] = reply
                file.write(json.dumps({"key": key, "reply": reply}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            at += len(replies)
            if progress is not None:
                progress(len(prompts) - len(todo) + at, len(prompts))
    pairs = zip(prepared.rows, keys, strict=True)
    filled = prepared.with_replies([row.reply if key is None else known[key] for row, key in pairs])
    if not filled.rows:
        raise ValueError(
            f"`max_new_tokens`: expected replies that end within {max_new_tokens} tokens, got none from {len(prompts)} "
            "prompts. Raise it."
        )
    return filled, len(prepared.rows) - len(filled.rows)


def _key(prompt: Sequence[Message], about: Mapping[str, Any]) -> str:
    text = json.dumps([list(prompt), about], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, str | None]:
    """Return the replies on disk; a truncated last line is skipped."""
    found: dict[str, str | None] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("key"), str):
            reply = entry.get("reply")
            found[entry["key"]] = reply if isinstance(reply, str) else None
    return found


def _end_line(file: Any) -> None:
    """Write a line break where the last line is truncated."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _encode(tokenizer: Any, prompt: Any) -> Any:
    from rolesafe.roles.encoding import encode_one

    return encode_one(tokenizer, prompt, add_generation_prompt=True)


def _generate(
    model: Any, tokenizer: Any, encoded: Sequence[Any], ends: list[int], max_new_tokens: int
) -> list[str | None]:
    """Return greedy replies; None where one is empty or does not end."""
    import torch

    from rolesafe.config import RoleConfig
    from rolesafe.roles.encoding import collate, padding_id

    batch = collate(tokenizer, encoded, RoleConfig(), padding_side="left")
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=padding_id(tokenizer),
        )
    stop, found = set(ends), []
    for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
        length = next((k for k, i in enumerate(ids) if i in stop), None)
        text = None if length is None else tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        found.append(text or None)
    return found
