"""Attacks that read the model: gradients, its own predictions, its embeddings. All of them pass roles.

``gcg_search`` exchanges tokens by gradient (GCG), ``beam_search`` grows a text from the model's own predictions
(BEAST), ``soft_search`` moves embeddings that nobody can type (PGD): a bound for the others. Each has the signature of
:class:`rolesafe.attacks.search.Search`.
"""

from __future__ import annotations

import functools
from typing import Any

from rolesafe.attacks.search import Found


def gcg_search(model: Any, tokenizer: Any, example: Any, *, draft: Any = "", **options: Any) -> Found:
    """See :func:`rolesafe.attacks.gradient.gcg.gcg`; `draft` may be a directory or hub id too, empty for none."""
    from rolesafe.attacks.gradient.gcg import gcg

    if isinstance(draft, str):
        draft = _read_draft(draft, str(model.device)) if draft else None
    return gcg(model, tokenizer, example, draft=draft, **options)


@functools.lru_cache(maxsize=1)
def _read_draft(path: str, device: str) -> Any:
    from rolesafe.patching.loading import read_model

    try:
        return read_model(path).to(device)
    except ValueError as error:
        raise ValueError(f"`draft`: {error}") from error


def beam_search(model: Any, tokenizer: Any, example: Any, **options: Any) -> Found:
    """See :func:`rolesafe.attacks.gradient.beam.beast`."""
    from rolesafe.attacks.gradient.beam import beast

    return beast(model, tokenizer, example, **options)


def soft_search(model: Any, tokenizer: Any, example: Any, **options: Any) -> Found:
    """See :func:`rolesafe.attacks.gradient.soft.pgd`."""
    from rolesafe.attacks.gradient.soft import pgd

    return pgd(model, tokenizer, example, **options)
