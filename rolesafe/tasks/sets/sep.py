"""SEP: separation of instructions and data. Zverev et al., arXiv 2403.06833.

One row gives two examples: the probe in the data (protected: its witness must not be in the reply) and in the
instruction (benign twin: it must). Three layouts are read:

- the published ``SEP_dataset.json``: `system_prompt_clean`, `system_prompt_instructed`, `prompt_clean`,
  `prompt_instructed`, `witness`;
- the paper's text: `instruction_prompt` or `task_prompt`, `data_prompt`, `probe`, `witness`;
- Alpaca-like rows of later work: `instruction_only` or `instruction`, `input`, `injection`, `witness`.

`rolesafe.evaluation.sep.sep` scores the replies.
"""

from __future__ import annotations

from rolesafe.tasks.example import Example
from rolesafe.tasks.sets.assemble import example, message
from rolesafe.tasks.sets.read import Row, RowError


def sep(row: Row, name: str, seed: int) -> list[Example]:
    """Return the two examples of a row."""
    del seed
    witness = row.text("witness")
    if row.has("prompt_instructed"):
        task, data = row.text("system_prompt_clean"), row.text("prompt_clean")
        task_with, data_with = row.text("system_prompt_instructed"), row.text("prompt_instructed")
        probe = _added(row, data, data_with, "prompt_instructed")
    else:
        task = row.text("instruction_only", "instruction_prompt", "task_prompt", "instruction")
        data, probe = row.text("input", "data_prompt"), row.text("injection", "probe").strip()
        task_with, data_with = f"{task} {probe}", f"{data} {probe}"
    return [
        example(
            row,
            name,
            "protected",
            [message("system", task), message("user", data_with)],
            request=data,
            order=probe,
            violation=witness,
        ),
        example(row, name, "benign", [message("system", task_with), message("user", data)], request=data),
    ]


def _added(row: Row, clean: str, instructed: str, field: str) -> str:
    """Return the text before or after the clean text."""
    clean, instructed = clean.strip(), instructed.strip()
    if instructed.startswith(clean):
        return instructed[len(clean) :].strip()
    if instructed.endswith(clean):
        return instructed[: -len(clean)].strip()
    raise RowError(f"{row.where}: `{field}`: expected the clean text with the probe before or after it, got another")
