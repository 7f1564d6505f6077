"""Make the docstrings of this project Markdown for mkdocstrings."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"^( *)(>>> .*(?:\n\1\S.*)*)", re.M)
_CODE = re.compile(r"(```.*?```|``.*?``|`[^`]*`)", re.S)


class Docstrings(griffe.Extension):
    """Fence doctests, and keep ``[a][b]`` from being read as a link."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is None:
            return
        text = _DOCTEST.sub(r"\1```pycon\n\1\2\n\1```", obj.docstring.value)
        parts = _CODE.split(text)
        parts[::2] = [part.replace("][", "]\\[") for part in parts[::2]]
        obj.docstring.value = "".join(parts)
