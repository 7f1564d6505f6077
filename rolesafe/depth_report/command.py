"""Implementation of `rolesafe depth`: load, measure, print, write, resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from rolesafe.audit.load import Dtype, load
from rolesafe.audit.terminal import progress_bar
from rolesafe.depth import Branches, load_branches, save_branches
from rolesafe.depth_report.page import write_page
from rolesafe.depth_report.records import DepthReport, DepthSettings
from rolesafe.depth_report.run import depth_report
from rolesafe.depth_report.terminal import draw
from rolesafe.files import check_writable
from rolesafe.report.chart import require_matplotlib


def run_depth(
    model: str,
    *,
    settings: Mapping[str, Any],
    against: str | None = None,
    data: tuple[str, str] | None = None,
    device: str | None = None,
    dtype: Dtype = "auto",
    json_path: Path | None = None,
    page_path: Path | None = None,
) -> DepthReport:
    """Measure the model at a path, print the report, and write it to `json_path` and `page_path`.

    An interrupted report in `json_path` is continued. Its rollouts are in a file next to it, with the ending
    ``.branches.json``.

    Args:
        model: Directory or hub id.
        settings: Arguments of :class:`DepthSettings`.
        against: Directory or hub id of the base model.
        data: Name and path of a published set, see :func:`rolesafe.tasks.sets.load_set`.
        device: As in :func:`rolesafe.audit.load.load`, like `dtype`.
        dtype: As in `load`.
        json_path: File of the report.
        page_path: File of the page; needs matplotlib.

    Raises:
        ValueError: An argument does not fit.
        OSError: The report cannot be written.
        ImportError: A package is missing.
    """
    from transformers.utils import logging

    chosen = DepthSettings(**settings)
    for path, option in ((json_path, "--json"), (page_path, "--page")):
        if path is not None:
            check_writable(path, option)
    if page_path is not None:
        require_matplotlib()
    examples, source = None, ""
    if data is not None:
        from rolesafe.tasks import sets

        try:
            found = sets.load_set(*data, seed=chosen.seed)
        except OSError as error:
            raise ValueError(str(error)) from error
        examples = [e for e in found if e.kind == "protected"][: chosen.examples]
        source = ", ".join(data)
    done, branches, rollouts = None, None, None
    if json_path is not None:
        rollouts = json_path.with_name(f"{json_path.stem}.branches.json")
        if json_path.exists():
            done = DepthReport.load(json_path)
            if rollouts.exists():
                branches = load_branches(rollouts)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded = load(model, device=device, dtype=dtype)
    base = None if against is None else load(against, device=device, dtype=dtype)

    kept: Branches | None = branches

    def keep(report: DepthReport, sampled: Branches | None) -> None:
        nonlocal kept
        if json_path is None or rollouts is None:
            return
        if sampled is not None and sampled is not kept and sampled.settings is not None:
            save_branches(sampled, rollouts)
            kept = sampled
        report.save(json_path)

    with progress_bar(Console(stderr=True)) as step:
        report = depth_report(
            loaded.model,
            loaded.tokenizer,
            examples,
            base=None if base is None else base.model,
            base_tokenizer=None if base is None else base.tokenizer,
            settings=chosen,
            name=model,
            base_name=against or "",
            source=source,
            notes=loaded.notes,
            done=done,
            branches=branches,
            keep=keep,
            progress=step,
        )
    try:
        draw(report, Console())
    finally:  # also after a broken pipe, as in `rolesafe depth ... | head`
        if page_path is not None:
            write_page(report, page_path)
    return report
