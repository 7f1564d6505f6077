"""All attacks and the parameter points they are run at, mildest first."""

from __future__ import annotations

from rolesafe.attacks import builders, encodings, forging, personas, places
from rolesafe.attacks.best_of_n import best_of_n
from rolesafe.attacks.delimiters import literal, with_answer
from rolesafe.attacks.family import AttackFamily, points
from rolesafe.attacks.gradient import beam_search, gcg_search, soft_search
from rolesafe.attacks.near import near
from rolesafe.attacks.trajectory import prefill, worst_insertion

_WORDED = points("wording", personas.WORDINGS)
_FORGED = tuple({"turns": turns, "delimiters": literal} for literal in (True, False) for turns in (1, 4, 16))
_COMPLETED = tuple(
    {"delimiters": literal, "wording": wording} for literal in (True, False) for wording in personas.WORDINGS
)
_COMBINED = tuple(
    {"kind": kind, "wording": wording} for wording in personas.WORDINGS for kind in ("newlines", "dashes")
)
_POSITIONS = (
    *points("at", (1.0, 0.75, 0.5, 0.25, 0.0), words=70, repeats=6, system="first"),
    *points("at", (1.0, 0.5, 0.0), words=70, repeats=6, system="last"),
)
_PLACEMENTS = tuple(
    {"system": system, "at": at, "words": 70, "repeats": repeats}
    for repeats, fractions in ((1, (0.0, 0.25, 0.5, 0.75, 1.0)), (6, (0.0, 0.5, 1.0)))
    for system in places.SYSTEM
    for at in fractions
)
_FILLED = tuple({"where": where, "words": words} for where in places.SIDES for words in (70, 280))
_DISGUISED = tuple({"style": forging.ANY, "mutation": mutation} for mutation in (forging.NONE, forging.ANY))
_INSERTED = ({"words": 0, "repeats": 1}, {"words": 35, "repeats": 1}, {"words": 35, "repeats": 4})
_WORST_INSERTED = tuple({"words": words, "places": 64, "tries": 8} for words in (0, 35))
_BEST = (
    *points("n", (16, 128), augment="words", strength=0.4),
    *points("n", (16, 128), augment="letters", strength=0.4),
)
_GCG = tuple(
    {
        "num_steps": steps,
        "search_width": 512,
        "topk": 256,
        "objective": objective,
        "weight": 1.0,
        "length": 20,
        "place": "suffix",
        "carrier": carrier,
        "draft": "",
    }
    for steps, objective, carrier in (
        (250, "ce", "request"),
        (500, "ce", "request"),
        (250, "mellowmax", "request"),
        (250, "attention", "request"),
        (250, "role-shift", "request"),
        (500, "ce", "injection"),
        (250, "attention", "injection"),
        (250, "role-shift", "injection"),
    )
)
_BEAM = tuple(
    {"length": 20, "beams": 15, "branches": 15, "temperature": 1.0, "objective": "ce", "carrier": carrier}
    for carrier in ("request", "injection")
)
_SOFT = points("num_steps", (100,), step_size=0.1, norm="none", eps=1.0, length=20, carrier="request")

FAMILIES: tuple[AttackFamily, ...] = (
    AttackFamily(name="none", about="no attack", build=builders.none, grid=({},), quick=({},)),
    # ------------------------------------------------------------------------------------------- semantic redirection
    AttackFamily(
        name="ignore-previous",
        about="an order to ignore the rules, then another rule",
        build=builders.ignore_previous,
        grid=points("repeats", (1, 4)),
        quick=points("repeats", (1,)),
    ),
    AttackFamily(
        name="ignore-general",
        about="an order to ignore what came before, in general English",
        build=personas.ignore_general,
        grid=points("repeats", (1, 4)),
        quick=points("repeats", (1,)),
    ),
    AttackFamily(
        name="persona",
        about="another identity that has no rules",
        build=personas.persona,
        grid=_WORDED,
        quick=_WORDED[:1],
    ),
    AttackFamily(
        name="fake-completion",
        about="an answer that was never given, then a new task",
        build=personas.fake_completion,
        grid=_COMPLETED,
        quick=_COMPLETED[:1],
        marks=with_answer,
    ),
    AttackFamily(
        name="escape-characters",
        about="escape characters between the text and the opposite rule",
        build=personas.escape,
        grid=points("kind", personas.ESCAPES),
        quick=points("kind", ("newlines", "backspaces")),
    ),
    AttackFamily(
        name="encoded",
        about="the opposite rule in a code or another language",
        build=encodings.encoded,
        grid=points("code", encodings.CODES),
        quick=points("code", ("base64", "spanish")),
    ),
    AttackFamily(
        name="combined",
        about="escape characters, a fake answer and an order to ignore",
        build=personas.combined,
        grid=_COMBINED,
        quick=_COMBINED[:1],
    ),
    # --------------------------------------------------------------------------------------------------------- mimicry
    AttackFamily(
        name="mimicry",
        about="the opposite rule in the system text's own words",
        build=builders.mimicry,
        grid=points("place", ("after", "before")),
        quick=points("place", ("after",)),
    ),
    AttackFamily(
        name="fake-system",
        about="forged system turns, with and without the literal delimiters",
        build=builders.fake_system,
        grid=_FORGED,
        quick=(_FORGED[1],),
        marks=literal,
    ),
    AttackFamily(
        name="near-delimiters",
        about="forged system turns with tokens that look like the delimiters to the model",
        build=builders.near_system,
        grid=points("turns", (1, 4, 16)),
        quick=points("turns", (4,)),
        marks=near,
    ),
    AttackFamily(
        name="role-forging",
        about="forged system turns in the style of any chat format, disguised or not",
        build=forging.forged_turn,
        grid=_DISGUISED,
        quick=_DISGUISED[:1],
    ),
    # ------------------------------------------------------------------------------------------- dilution and position
    AttackFamily(
        name="dilution",
        about="the opposite rule, many times",
        build=builders.dilution,
        grid=points("repeats", (1, 2, 4, 8, 16, 32, 64)),
        quick=points("repeats", (1, 8, 32)),
    ),
    AttackFamily(
        name="filler",
        about="much harmless text before, after or around the opposite rule",
        build=places.long_filler,
        grid=_FILLED,
        quick=_FILLED[:1],
    ),
    AttackFamily(
        name="position",
        about="six injections at some place of a long harmless text",
        build=builders.position,
        grid=_POSITIONS,
        quick=(_POSITIONS[0], _POSITIONS[2], _POSITIONS[4]),
    ),
    AttackFamily(
        name="placement",
        about="the system text first, in the middle or last, injections at some place of a text",
        build=places.placement,
        grid=_PLACEMENTS,
        quick=(_PLACEMENTS[2], _PLACEMENTS[7], _PLACEMENTS[12]),
    ),
    # ------------------------------------------------------------------------------------------------------ trajectory
    AttackFamily(
        name="insertion",
        about="the opposite rule between two random words",
        build=places.insertion,
        grid=_INSERTED,
        quick=_INSERTED[:1],
    ),
    AttackFamily(
        name="worst-insertion",
        about="the opposite rule between the two words where it works best",
        search=worst_insertion,
        grid=_WORST_INSERTED,
        quick=_WORST_INSERTED[:1],
    ),
    AttackFamily(
        name="prefill",
        about="the first tokens of the wanted reply, given in advance",
        search=prefill,
        grid=points("k", (1, 2, 3, 4, 8)),
        quick=points("k", (2,)),
        typed=False,
    ),
    # ---------------------------------------------------------------------------------------------- search and gradient
    AttackFamily(
        name="best-of-n",
        about="random variants of the injection until one works",
        search=best_of_n,
        grid=_BEST,
        quick=_BEST[:1],
    ),
    AttackFamily(
        name="beam",
        about="a text grown from the model's own predictions (BEAST)",
        search=beam_search,
        grid=_BEAM,
        quick=({**_BEAM[0], "length": 10, "beams": 5, "branches": 5},),
    ),
    AttackFamily(
        name="gcg",
        about="tokens exchanged by gradient (GCG), with losses that know the defence",
        search=gcg_search,
        grid=_GCG,
        quick=({**_GCG[0], "num_steps": 50, "search_width": 128, "topk": 64},),
    ),
    AttackFamily(
        name="soft-prompt",
        about="embeddings moved by gradient (PGD), which nobody can type",
        search=soft_search,
        grid=_SOFT,
        quick=({**_SOFT[0], "num_steps": 30},),
        typed=False,
    ),
)
"""All attacks, by group."""
