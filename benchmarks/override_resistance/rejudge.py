"""Judge the replies that a record holds by the judge of today, and say what changed.

python -m benchmarks.override_resistance.rejudge benchmarks/results/demo.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rolesafe.attacks import contains
from rolesafe.attacks.judge import is_right
from rolesafe.tasks import FAMILIES, Example, generate


def examples_named(ids: Sequence[str]) -> dict[str, Example]:
    """Return the generator's examples of these ids, such as ``"access/test/1000/1/0/protected"``."""
    found: dict[str, Example] = {}
    for split, seed in sorted({(id.split("/")[1], int(id.split("/")[2])) for id in ids}):
        wanted = {id for id in ids if id.split("/")[1:3] == [split, str(seed)]}
        for some in (("access", "form", "data"), FAMILIES):
            count = 2 * (1 + max(int(id.split("/")[4]) for id in wanted))
            made = {e.id: e for e in generate(split, count, seed, some)}  # type: ignore[arg-type]
            if wanted <= set(made):
                found.update((id, made[id]) for id in wanted)
                break
        else:
            raise ValueError(f"`ids`: expected examples of the generator, {sorted(wanted)[0]!r} is none")
    return found


def samples(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the attacked conversations with their replies that a record of results keeps."""
    for run in record["runs"]:
        for point in run["attacks"]:
            yield from point["samples"]


def rejudged(paths: Sequence[Path]) -> str:
    """Return a Markdown table: replies kept, successes of the first judge and of today's, right replies."""
    lines = ["| record | replies kept | won, first judge | won, judge of today | not won, right | not won, not right |"]
    lines.append("| :-- | --: | --: | --: | --: | --: |")
    for path in paths:
        kept = list(samples(json.loads(path.read_text(encoding="utf-8"))))
        examples = examples_named(sorted({sample["id"] for sample in kept}))
        counts: Counter[str] = Counter()
        for sample in kept:
            example = examples[sample["id"]]
            won = contains(sample["reply"], example.violation or "")
            counts["first"] += sample["success"]
            counts["today"] += won
            counts["right"] += not won and bool(is_right(sample["reply"], example))
            counts["wrong"] += not won and not is_right(sample["reply"], example)
        cells = [len(kept), counts["first"], counts["today"], counts["right"], counts["wrong"]]
        lines.append(f"| `{path.name}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(rejudged([Path(name) for name in sys.argv[1:]]))
