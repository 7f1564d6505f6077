"""Training data of a size and seed: encoded once, kept on disk, the same for all arms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save

from benchmarks.override_resistance.settings import SIZES, Study
from rolesafe.config import RoleConfig
from rolesafe.files import write_whole
from rolesafe.tasks import Message, training_conversations, vocabulary
from rolesafe.training import RoleCollator

COLUMNS = ("input_ids", "role_ids", "labels")

CHUNK = 80
"""Number of words of ordinary text in one row."""


def training_rows(study: Study, size: str, seed: int, tokenizer: Any, models: Path) -> list[dict[str, torch.Tensor]]:
    """Return the rows of one training, as :meth:`rolesafe.training.RoleCollator.encode` makes them, int32 (T,) each.

    A shorter training of the same conversations reuses the first rows of a longer one.
    """
    fit, share = study.fit(size), SIZES[size].text_share
    count = fit.steps * fit.batch_size
    decides = {name: study.training_of(size)[name] for name in ("families", "training", "triggers", "noise", "base")}
    # ordinary text is shuffled in, so the first rows depend on their number
    decides |= {"text_share": share, "count": count if share else None, "max_length": fit.max_length, "seed": seed}
    decides |= {"text_sha256": text_digest(study), "vocabulary": tokenizer.get_vocab(), "chat": tokenizer.chat_template}
    about = json.dumps(decides, sort_keys=True)
    path = models / f"rows--{sha256(about.encode()).hexdigest()[:16]}.safetensors"
    kept = load_file(path) if path.exists() else {}
    if not kept or len(kept["lengths"]) < count:
        kept = _flat(study, size, seed, tokenizer)
        write_whole(path, save(kept))
    lengths = kept["lengths"][:count].tolist()
    kept["attention_mask"] = torch.ones_like(kept["labels"])
    names = (*COLUMNS, "attention_mask")
    # views, converted when a batch is made
    columns = [kept[name][: sum(lengths)].split(lengths) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _flat(study: Study, size: str, seed: int, tokenizer: Any) -> dict[str, torch.Tensor]:
    collator = RoleCollator(tokenizer=tokenizer, config=RoleConfig(), max_length=study.fit(size).max_length)
    rows = [collator.encode({"messages": messages}) for messages in conversations(study, size, seed)]
    return {
        **{name: torch.tensor([x for row in rows for x in row[name]], dtype=torch.int32) for name in COLUMNS},
        "lengths": torch.tensor([len(row["labels"]) for row in rows]),
    }


def text_digest(study: Study) -> str | None:
    """Return the SHA-256 of the ordinary text, which detects another text under the same name."""
    return None if study.text is None else sha256(Path(study.text).read_bytes()).hexdigest()


def conversations(study: Study, size: str, seed: int) -> list[list[Message]]:
    """Return the conversations of one training, with ordinary text for sizes that train on it."""
    fit, share = study.fit(size), SIZES[size].text_share
    count = fit.steps * fit.batch_size
    plain = round(count * share)
    words = vocabulary(study.families)
    tasks = training_conversations(
        count - plain, seed, study.families, difficulty=study.training, trigger_share=study.triggers
    )
    rng = Random(f"noise/{seed}")
    mixed = [noise(messages, words, rng) if rng.random() < study.noise else messages for messages in tasks]
    if plain:
        assert study.text is not None
        mixed += [[{"role": "assistant", "content": text}] for text in chunks(Path(study.text), plain, seed)]
        Random(f"mixed/{seed}").shuffle(mixed)
    return mixed


def noise(messages: list[Message], words: list[str], rng: Random) -> list[Message]:
    """Return `messages` with 1 to 24 random words in the last user or tool message.

    Texts of gradient attacks look like that. All arms are trained with the same noise.
    """
    last = max(i for i, m in enumerate(messages[:-1]) if m["role"] in ("user", "tool"))
    text = messages[last]["content"].split()
    at = rng.randint(0, len(text))
    salad = [rng.choice(words) for _ in range(rng.randint(1, 24))]
    content = " ".join([*text[:at], *salad, *text[at:]])
    return [{**m, "content": content} if i == last else m for i, m in enumerate(messages)]


def chunks(path: Path, count: int, seed: int) -> Iterator[str]:
    """Yield `count` pieces of :data:`CHUNK` words from random places of a text.

    Raises:
        ValueError: The file has too few words.
    """
    words = path.read_text(encoding="utf-8").split()
    if len(words) <= CHUNK:
        raise ValueError(f"`text`: expected more than {CHUNK} words in {path.name}, got {len(words)}")
    rng = Random(f"text/{seed}")
    for _ in range(count):
        at = rng.randrange(len(words) - CHUNK)
        yield " ".join(words[at : at + CHUNK])
