"""Adaptive tries against forbidden phrases and a secret: an attacker that sets the logits, one that forges roles."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

from rolesafe.audit.articles import declare
from rolesafe.court import Court, ForbiddenPhrases, Secrets
from rolesafe.court.goals import Goal, goal
from rolesafe.court.tries import ROWS, SEARCHES, LogitAttacker, breaks

STEPS = 28


def run(tokenizer: Any, phrases: tuple[str, ...], secret: str, tries: int, seed: int = 0) -> dict[str, Any]:
    """Return the number of violations in `tries` replies of `STEPS` tokens, by a check of whole texts.

    In each reply the attacker spells a phrase, the secret, the secret reversed or its Base64 in random tokens, and goes
    on after every veto, from the rest of the text or from its beginning. A third of the replies each are greedy,
    sampled and searched with beams.
    """
    articles = (
        ForbiddenPhrases(name="phrases", phrases=phrases, lookalikes=True),
        Secrets(name="secret", values=(secret,), part=12, reversed=True, base64=True),
    )
    court = Court.compile(articles, tokenizer)

    def wish(rng: random.Random) -> Goal:
        return goal(rng, articles[rng.random() < 0.4], court)

    attacker = LogitAttacker(court, wish, seed)
    done = dict.fromkeys(SEARCHES, 0)
    violations = 0
    while (total := sum(done.values())) < tries:
        search = SEARCHES[total // ROWS % len(SEARCHES)]
        for ids in attacker.replies(ROWS, STEPS, search):
            violations += breaks(court, ids, lambda text, ids, ended: False)
            done[search] += 1
    return {
        "tries": sum(done.values()),
        "by_search": done,
        "steps": STEPS,
        "violations": violations,
        "first_choices_vetoed": attacker.vetoes,
        "forging": asdict(declare(tries, seed)),
    }
