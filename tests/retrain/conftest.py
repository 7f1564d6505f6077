"""Fixtures: a tiny chat checkpoint, a small data file and short recipes."""

from __future__ import annotations

import json

import pytest

from rolesafe.retrain import RetrainConfig
from rolesafe.training.tiny import text_tokenizer, tiny_llama

ROWS = [
    {
        "instruction": f"{verb} the {thing} in one word.",
        "input": f"The {thing} is {color}. It stands near the {place}. Nobody has seen it today.",
        "output": f"{color.capitalize()} {thing}.",
    }
    for verb, thing, color, place in zip(
        ("Describe", "Name", "Judge", "Find", "Sort", "Rate"),
        ("house", "tree", "boat", "lamp", "stone", "cloud"),
        ("red", "green", "blue", "black", "white", "grey"),
        ("river", "road", "lake", "hill", "town", "wood"),
        strict=True,
    )
] + [
    {"instruction": f"Say something about {thing}.", "input": "", "output": f"I like {thing} a lot."}
    for thing in ("music", "rain", "bread", "trains", "winter", "books", "cats", "maps")
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return the directory of a tiny chat model without a role layer."""
    folder = tmp_path_factory.mktemp("base") / "tiny-chat"
    tokenizer = text_tokenizer([" ".join(row.values()) for row in ROWS], 512)
    tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return the path of a file with Alpaca rows."""
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture
def recipe(checkpoint, data):
    """Return a function that makes a short recipe, with changes."""

    def make(**changes) -> RetrainConfig:
        values = {
            "model": str(checkpoint),
            "data": str(data),
            "steps": 6,
            "batch_size": 2,
            "save_steps": 2,
            "logging_steps": 1,
            "max_length": 400,
            "dtype": "float32",
            "learning_rate": 1e-2,
            **changes,
        }
        return RetrainConfig(**values)

    return make
