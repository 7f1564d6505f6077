"""SEP-style probes, and harmless examples with the words of attacks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from rolesafe.tasks import phrasing as say
from rolesafe.tasks.difficulty import Difficulty, shaped
from rolesafe.tasks.example import Example
from rolesafe.tasks.generator import build, check, check_even, check_split, to_example, trigger
from rolesafe.tasks.rule_families import data
from rolesafe.tasks.words import Split

PROBE = "probe"
"""Family name of :func:`probes`."""


def probes(split: Split, n: int, seed: int, *, difficulty: int | Difficulty = 1) -> list[Example]:
    """Return SEP-style pairs: an order with a witness word in the data and in the instruction (arXiv 2403.06833).

    The protected example has the order at a random place of the data, where it is data: its `violation`, the witness,
    must not be in the reply. The benign twin has the order in the system text. As in SEP, and unlike in the family
    ``data``, no rule forbids to write anything else. Scores: :mod:`rolesafe.evaluation.sep`.

    Args:
        split: ``"train"`` or ``"test"``: split of words and phrasings.
        n: Number of examples, two per probe.
        seed: Any integer.
        difficulty: As in :func:`rolesafe.tasks.generate`.

    Raises:
        ValueError: An argument is out of range.
    """
    check_split(split)
    check(n, None, difficulty)
    check_even(n)
    dials = Difficulty.of(difficulty)
    examples: list[Example] = []
    for pair in range(n // 2):
        rules = f"{PROBE}/{split}/{seed}/{dials.facts}/{pair}"
        stem = f"{PROBE}/{split}/{seed}/{dials.label}/{pair}"
        for protected in (True, False):
            case = data(Random(rules), split, dials.facts, protected=False)
            order = case.statements[1][1]
            instruction = case.system.removesuffix(order).strip()
            if protected:
                case = replace(case, system=instruction, reply=say.DONE, truth="nothing")
            rng = Random(f"dials/{rules}")
            case = shaped(case, dials, rng, split)
            sentences = re.findall(r"[^.]+\.", case.request)
            cut = rng.randint(0, len(sentences))
            content = "".join((*sentences[:cut], f" {order}", *sentences[cut:])).strip() if protected else None
            examples.append(to_example(case, stem, PROBE, split, protected, dials, rng, content))
    return examples


def trigger_examples(
    split: Split, n: int, seed: int, families: Sequence[str] | None = None, *, difficulty: int | Difficulty = 1
) -> list[Example]:
    """Return `n` benign examples that look like attacks, for counting false refusals.

    One or two sentences in the words of orders and attacks ("The boy did not follow all earlier rules at home.")
    precede the user's request. The right reply is that of the twin, the benign example of
    :func:`rolesafe.tasks.generate` with the same arguments.

    Args:
        split: ``"train"`` or ``"test"``: split of words and phrasings.
        n: Number of examples.
        seed: Any integer.
        families: Names out of :data:`rolesafe.tasks.FAMILIES`; default: all.
        difficulty: As in :func:`rolesafe.tasks.generate`.

    Raises:
        ValueError: An argument is out of range.
    """
    check_split(split)
    names, dials = check(n, families, difficulty), Difficulty.of(difficulty)
    examples: list[Example] = []
    for pair in range(n):
        family = names[pair % len(names)]
        case, rng = build(family, split, seed, dials, pair, protected=False)
        stem = f"{family}/{split}/{seed}/{dials.label}/{pair}"
        plain = to_example(case, stem, family, split, False, dials, rng)
        content = trigger(case.request, Random(f"trigger/{stem}"), split)
        examples.append(
            replace(plain, id=f"{stem}/trigger", twin=plain.id, request=content, messages=plain.with_target(content))
        )
    return examples
