"""Write the generated parts of all documentation pages from the committed records.

    python -m benchmarks.pages           # write
    python -m benchmarks.pages --check   # write nothing; exit status 1 if a part is out of date

A generated part is between ``<!-- NAME -->`` and ``<!-- end -->``. NAME is a key of :data:`BLOCKS`, with arguments
after colons, as in ``<!-- table:deep:0.1M -->``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import families, stacks, steering
from benchmarks.alignment_depth import page as alignment_page
from benchmarks.alignment_depth.chat import page as alignment_chat_page
from benchmarks.clients import page as clients_page
from benchmarks.costs import costs
from benchmarks.court import page as court_page
from benchmarks.demo_blocks import demo
from benchmarks.depth_theory import page as depth_page
from benchmarks.kernel_loops import loops
from benchmarks.override_resistance import blocks as study
from benchmarks.pretrained import page as pretrained
from rolesafe.files import write_whole
from rolesafe.terminal import print_error, run_main

ROOT = Path(__file__).parents[1]

BLOCKS: dict[str, Callable[..., str]] = {
    **study.BLOCKS,
    "alignment-depth": alignment_page.block,
    "alignment-depth-chat": alignment_chat_page.block,
    "clients": clients_page.block,
    "costs": costs,
    "loops": loops,
    "court": court_page.block,
    "depth-theory": depth_page.block,
    "families": families.block,
    "frozen": court_page.frozen,
    "pretrained": pretrained.generated,
    "pretrained-longer": pretrained.longer,
    "demo": demo,
    "stacks": stacks.block,
    "steering": steering.block,
}
"""Name of a generated part to the function that returns its Markdown."""

_BLOCK = re.compile(r"<!-- ([a-z][\w: .+-]*) -->\n.*?<!-- end -->", re.S)


def pages(root: Path = ROOT) -> Iterator[Path]:
    """Yield the Markdown files that have generated parts."""
    for folder, pattern in ((root, "*.md"), (root / "docs", "**/*.md"), (root / "benchmarks", "*.md"),
                            (root / "kernels", "*.md")):  # fmt: skip
        yield from (path for path in sorted(folder.glob(pattern)) if _BLOCK.search(path.read_text(encoding="utf-8")))


def filled(text: str) -> str:
    """Return `text` with every generated part written anew.

    Args:
        text: Markdown.

    Raises:
        ValueError: A part has an unknown name.
    """

    def one(found: re.Match[str]) -> str:
        kind, *arguments = found[1].split(":")
        if kind not in BLOCKS:
            raise ValueError(f"`text`: expected parts out of {sorted(BLOCKS)}, got {found[1]!r}")
        return f"<!-- {found[1]} -->\n{BLOCKS[kind](*arguments)}\n<!-- end -->"

    return _BLOCK.sub(one, text)


def main() -> int:
    """Write or check all pages and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a part is out of date")
    check = parser.parse_args().check
    stale = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                write_whole(path, new)
    if stale and check:
        return print_error(f"out of date: {', '.join(stale)}. Run python -m benchmarks.pages.", 1)
    print(f"{'written' if stale else 'up to date'}: {', '.join(stale) or 'all pages'}")
    return 0


if __name__ == "__main__":
    run_main(main)
