"""Examples in the docstrings of the public names run, offline and on tiny models."""

from __future__ import annotations

import doctest
import socket
from typing import Any

import pytest

import rolesafe

NAMES = [name for name in rolesafe.__all__ if name != "__version__"]
WITHOUT = {"role_attention", "save_role_layer"}
"""Names that need no example."""


@pytest.mark.parametrize("name", NAMES)
def test_docstring_example_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: Any) -> None:
        raise OSError("examples must run offline")

    monkeypatch.setattr(socket.socket, "connect", connect)
    (test,) = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(getattr(rolesafe, name), name, globs={})
    assert test.examples or name in WITHOUT, f"`{name}`: expected an example in its docstring, found none"
    failed: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=failed.append, clear_globs=True)
    assert not failed, "".join(failed)
