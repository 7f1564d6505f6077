"""Judge the replies in a record with the current judge and count the differences.

python -m benchmarks.override_resistance.rejudge benchmarks/results/demo.json
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.override_resistance.compact import load
from rolesafe.attacks import contains
from rolesafe.attacks.judge import is_right
from rolesafe.tasks import FAMILIES, Example, generate


def examples_named(ids: Sequence[str]) -> dict[str, Example]:
    """Return the generator's examples by id, such as ``"access/test/1000/1/0/protected"``.

    Raises:
        ValueError: An id is not one of the generator.
    """
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


def rejudged(paths: Sequence[Path]) -> str:
    """Return a Markdown table of recorded replies: successes by the first and the current judge, right replies.

    Args:
        paths: Records, whole or compact.
    """
    lines = ["| record | replies kept | won, first judge | won, judge of today | not won, right | not won, not right |"]
    lines.append("| :-- | --: | --: | --: | --: | --: |")
    for path in paths:
        kept = [sample for run in load(path).runs for point in run.attacks for sample in point.samples]
        examples = examples_named(sorted({sample.id for sample in kept}))
        counts: Counter[str] = Counter()
        for sample in kept:
            example = examples[sample.id]
            won = contains(sample.reply, example.violation or "")
            counts["first"] += sample.success
            counts["today"] += won
            counts["right"] += not won and bool(is_right(sample.reply, example))
            counts["wrong"] += not won and not is_right(sample.reply, example)
        cells = [len(kept), counts["first"], counts["today"], counts["right"], counts["wrong"]]
        lines.append(f"| `{path.name}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(rejudged([Path(name) for name in sys.argv[1:]]))
