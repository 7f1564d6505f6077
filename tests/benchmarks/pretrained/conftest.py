"""Fixtures: made-up sets and tiny models, written once."""

from __future__ import annotations

import pytest

from tests.benchmarks.pretrained.made_up import save_model, write_sets


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def channel(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("channel"), "channel")
