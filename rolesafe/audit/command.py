"""Implementation of `rolesafe audit`: load, audit, print, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from rolesafe.audit.load import Dtype, load
from rolesafe.audit.records import AuditReport, AuditSettings
from rolesafe.audit.run import audit
from rolesafe.audit.terminal import draw, progress_bar
from rolesafe.court.storing import load_articles_file
from rolesafe.files import check_writable
from rolesafe.tasks import Example


def run_audit(
    model: str,
    *,
    settings: Mapping[str, Any],
    data: tuple[str, str] | None = None,
    preset: str | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
    json_path: Path | None = None,
    court: Path | None = None,
) -> AuditReport:
    """Audit the model at a path, print the report, and write it to `json_path`.

    Args:
        model: Directory or hub id.
        settings: Arguments of :class:`AuditSettings`.
        data: Name and path of a published set, see :func:`rolesafe.tasks.sets.load_set`; ``settings["examples"]`` of
            its examples are drawn.
        preset: As in :func:`rolesafe.audit.load.load`, like `device` and `dtype`.
        device: As in `load`.
        dtype: As in `load`.
        json_path: File to write; checked before the audit starts.
        court: File of articles to break; None: no court.

    Raises:
        ValueError: An argument does not fit.
        OSError: The report cannot be written.
        ImportError: A package is missing, such as `datasets` for a set from the hub.
    """
    from transformers.utils import logging

    chosen = AuditSettings(**settings)
    if json_path is not None:
        check_writable(json_path, "--json")
    articles = None if court is None else load_articles_file(court)
    examples, source = None, ""
    if data is not None:
        from rolesafe.tasks import sets

        name, path = data
        try:
            found = sets.load_set(name, path, seed=chosen.seed)
        except OSError as error:
            raise ValueError(str(error)) from error
        examples = _drawn(found, chosen)
        source = f"{name}, {path}"
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load(model, preset=preset, device=device, dtype=dtype)
    with progress_bar(Console(stderr=True)) as step:
        report = audit(
            loaded.model,
            loaded.tokenizer,
            examples,
            settings=chosen,
            name=model,
            source=source,
            notes=loaded.notes,
            progress=step,
            articles=articles,
        )
    try:
        draw(report, Console())
    finally:  # also after a broken pipe, as in `rolesafe audit ... | head`
        if json_path is not None:
            report.save(json_path)
    return report


def _drawn(found: Sequence[Example], settings: AuditSettings) -> list[Example]:
    """Draw ``settings.examples`` examples, with their benign twins if the set has them."""
    by_id = {e.id: e for e in found}
    protected = [e for e in found if e.kind == "protected"]
    Random(f"audit/{settings.seed}").shuffle(protected)
    chosen: dict[str, Example] = {}
    for example in protected:
        pair = [e for e in (example, by_id.get(example.twin)) if e is not None]
        if len(chosen) + len(pair) > settings.examples:
            break
        chosen.update((e.id, e) for e in pair)
    return list(chosen.values())
