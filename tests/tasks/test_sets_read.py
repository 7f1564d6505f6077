"""Reading rows from files and the hub, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rolesafe.tasks import SETS, load_set

from .published import ADVBENCH, GANDALF, SEP_PAPER


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.json", "{", r"a\.json: expected JSON in UTF-8"),
        ("a.json", "[]", r"a\.json' is an empty set; expected at least one row"),
        ("a.jsonl", "", r"a\.jsonl' is an empty set"),
        ("a.csv", "goal,target\n", r"a\.csv' is an empty set"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', r"a\.jsonl, line 2: expected JSON"),
        ("a.json", "[3]", r"a\.json, row 1: expected an object with fields, got 3"),
        (
            "a.json",
            '[{"text": "x"}, {"txt": "y"}]',
            r"a\.json, row 2: expected a field `text`, got the fields \['txt'\]",
        ),
        ("a.json", '[{"text": " "}]', r"a\.json, row 1: `text`: expected a text that is not empty, got ' '"),
        ("a.json", '[{"text": 5}]', r"a\.json, row 1: `text`: expected a text that is not empty, got 5"),
        ("a.txt", "hello", r"a\.txt: expected a file that ends in \.json, \.jsonl, \.csv"),
    ],
)
def test_read_bad_files_raise(file: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_set("gandalf", path)


def test_read_binary_file_raises(tmp_path: Path) -> None:
    for name in ("a.json", "a.csv"):
        (tmp_path / name).write_bytes(b"text\n\xff\xfe\xfa")
        with pytest.raises(ValueError, match=rf"{name}: expected (JSON|CSV) in UTF-8"):
            load_set("gandalf", tmp_path / name)


@pytest.mark.parametrize("missing", ["a.json", "folder/a.csv", "some where/else", "nothing"])
def test_read_missing_file_raises(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"`path_or_hub`: no such file: '{missing}'; expected a"):
        load_set("gandalf", missing)


def test_read_empty_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is an empty set"):
        load_set("gandalf", tmp_path)


def test_read_folder_takes_all_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(GANDALF) + "\n\n" + json.dumps(GANDALF), encoding="utf-8")
    (tmp_path / "readme.txt").write_text("no set", encoding="utf-8")
    found = load_set("gandalf", tmp_path)
    assert [e.id.split("/")[1:3] for e in found] == [
        ["a.jsonl", "1"],
        ["a.jsonl", "2"],
        ["b.jsonl", "1"],
        ["b.jsonl", "2"],
    ]


def test_load_set_bad_arguments_raise(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GANDALF, {"text": ""}, GANDALF]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"`name`: expected one of sep, .*, got 'nope'"):
        load_set("nope", path)
    for n in (0, 1.5):
        with pytest.raises(ValueError, match=r"`n`: expected a number of rows >= 1, or None for all"):
            load_set("gandalf", path, n=n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`n`: expected at most 2, the usable rows of .*, got 3"):
        load_set("gandalf", path, n=3, skip=True)
    (tmp_path / "b.json").write_text(json.dumps([{"text": ""}]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"`path_or_hub`: expected rows of 'gandalf', got 1 others"):
        load_set("gandalf", tmp_path / "b.json", skip=True)


@pytest.mark.parametrize("name", SETS)
def test_load_set_rows_without_fields_raise(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([3, None, "row"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json, row 1: expected an object with fields, got 3.*skip=True"):
        load_set(name, path)
    with pytest.raises(ValueError, match=f"`path_or_hub`: expected rows of '{name}', got 3 others"):
        load_set(name, path, skip=True)


def test_load_set_draws_rows_with_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": f"Prompt {i}"} for i in range(50)]), encoding="utf-8")

    def drawn(seed: int, n: int | None) -> list[str]:
        return [e.request for e in load_set("gandalf", path, n=n, seed=seed)]

    assert drawn(0, 10) == drawn(0, 10) == drawn(0, 20)[:10] != drawn(1, 10)
    assert drawn(0, None) == [f"Prompt {i}" for i in range(50)]
    assert len(set(drawn(0, 50))) == 50


# ------------------------------------------------------------------------------------------------------------ the hub


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[dict[str, Any]]], version: str = "4.2.0") -> list[Any]:
    """Replace the package `datasets`; requests are appended to the list."""
    asked: list[Any] = []

    def load_dataset(name: str, **arguments: Any) -> dict[str, list[dict[str, Any]]]:
        asked.append((name, arguments))
        return splits

    module = ModuleType("datasets")
    module.__version__ = version  # type: ignore[attr-defined]
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_read_set_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"train": [GANDALF], "test": [GANDALF, GANDALF]})
    assert len(load_set("gandalf", "Lakera/gandalf_ignore_instructions:test")) == 2
    assert len(load_set("gandalf", "Lakera/gandalf_ignore_instructions@abc123:train")) == 1
    assert asked == [
        ("Lakera/gandalf_ignore_instructions", {"revision": None}),
        ("Lakera/gandalf_ignore_instructions", {"revision": "abc123"}),
    ]


def test_read_hub_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"train": [GANDALF], "test": [GANDALF]})
    with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\]: choose one, 'a/b:test'"):
        load_set("gandalf", "a/b")
    with pytest.raises(ValueError, match=r"has no split 'dev'; expected one of \['test', 'train'\]"):
        load_set("gandalf", "a/b:dev")
    hub(monkeypatch, {"train": [SEP_PAPER]})
    assert len(load_set("sep", "a/b")) == 2
    with pytest.raises(ValueError, match=r"a/b, row 1: expected a field `goal`"):
        load_set("advbench", "a/b")
    hub(monkeypatch, {"train": [ADVBENCH]})
    assert len(load_set("advbench", "a/b")) == 1


def test_read_hub_without_datasets_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"'a/b'.* needs the package `datasets`"):
        load_set("gandalf", "a/b")
    hub(monkeypatch, {"train": [GANDALF]}, version="3.6.0")
    with pytest.raises(ImportError, match=r"needs datasets >= 4, which runs no code of a data set, got 3\.6\.0"):
        load_set("gandalf", "a/b")


def test_sets_import_is_light() -> None:
    code = (
        "import sys, rolesafe.tasks\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'rolesafe.attacks'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
