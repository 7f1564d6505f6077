"""Files of articles: JSON and YAML."""

from __future__ import annotations

import json
import os
from pathlib import Path

import yaml

from rolesafe.court.articles import Articles
from rolesafe.files import read_whole, write_whole


def load_articles(path: str | os.PathLike[str]) -> Articles:
    """Read articles from a JSON or YAML file.

    Raises:
        ValueError: It holds no articles, or a field does not fit; the message has the path to it.
        OSError: It cannot be read.
    """
    text = read_whole(path)
    try:
        values = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"`path`: expected articles as JSON or YAML in {str(path)!r}, got something else: {error}"
        ) from error
    return Articles.from_dict(values)


def load_articles_file(path: str | os.PathLike[str]) -> Articles:
    """Return the articles in the file of the option ``--court``.

    Raises:
        ValueError: It cannot be read, or holds no articles.
    """
    try:
        return load_articles(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--court`: expected a file of articles, got {os.fspath(path)!r}: {error}") from error


def save_articles(articles: Articles, path: str | os.PathLike[str]) -> None:
    """Write articles to a file as a whole: JSON for a name in ``.json``, else YAML."""
    values = articles.to_dict()
    if Path(path).suffix == ".json":
        write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    else:
        write_whole(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
