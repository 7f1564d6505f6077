"""Read the JSON and safetensors files of a checkpoint. Every fault is a ValueError that names the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from rolesafe.patching.patched import is_role_name

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

LARGEST_JSON = 64 * 1024 * 1024
"""Bytes. The index of a checkpoint of 100,000 tensors has about 10 MB."""


@dataclass(frozen=True)
class Source:
    """Directory, or repository of the hub, to read files from.

    Args:
        path: The directory or hub id.
        options: Those of :data:`HUB_OPTIONS` that were given.
    """

    path: str | Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def find(self, name: str) -> Path | None:
        """Return the path of the file `name`, or None where there is no such file."""
        if Path(self.path).is_dir():
            file = Path(self.path) / (self.options.get("subfolder") or "") / name
            return file if file.is_file() else None
        found = cached_file(str(self.path), name, _raise_exceptions_for_missing_entries=False, **self.options)
        return None if found is None else Path(found)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the object in the JSON file `name`, or None where there is no such file.

        Raises:
            ValueError: It is no JSON, no object, or too large.
        """
        file = self.find(name)
        if file is None:
            return None
        if (size := file.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"`path`: {name} in {str(self.path)!r} has {size} bytes, expected at most {LARGEST_JSON}")
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"`path`: {name} in {str(self.path)!r} is no valid JSON: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"`path`: expected an object in {name} in {str(self.path)!r}, got {type(read).__name__}")
        return read


def field_of(about: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """Return the value of `name` in `about`, the content of the file `where`.

    Raises:
        ValueError: It is missing, or of another type than `kind`.
    """
    value = about.get(name)
    if type(value) is not kind:
        raise ValueError(f"`path`: expected `{name}` of type {kind.__name__} in {where}, got {value!r:.100}")
    return value


def check_keys(about: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise a ValueError for unknown keys in `about`, the content of the file `where`."""
    if unknown := sorted(map(str, set(about) - set(known))):
        raise ValueError(f"`path`: unknown keys {unknown[:5]} in {where}; expected {sorted(known)}")


# -------------------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Tensors:
    """Tensors of one or more safetensors files: `shapes` as (dtype, shape) by name, and the file of each."""

    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    @property
    def role_names(self) -> list[str]:
        """Names of the tensors of a role layer, sorted."""
        return sorted(name for name in self.shapes if is_role_name(name))

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return the tensors with these `names` (None: all), mapped into memory."""
        wanted = set(self.files if names is None else names)
        found: dict[str, Tensor] = {}
        for file in sorted(set(self.files.values())):
            with _opened(file) as handle:
                found.update({k: handle.get_tensor(k) for k in handle.keys() if k in wanted})  # noqa: SIM118
        return found

    def layout_digest(self) -> str:
        """Return the digest of all names, dtypes and shapes."""
        return digest(sorted((name, dtype, list(shape)) for name, (dtype, shape) in self.shapes.items()))

    def role_digest(self) -> str:
        """Return the digest of the role tensors."""
        return tensor_digest(self.read(self.role_names))


def open_tensors(files: Iterable[Path]) -> Tensors:
    """Read the headers of safetensors files.

    Raises:
        ValueError: A file is no safetensors file, or two hold a tensor of one name.
    """
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    where: dict[str, Path] = {}
    for file in files:
        with _opened(file) as handle:
            for name in handle.keys():  # noqa: SIM118
                if name in where:
                    raise ValueError(f"`path`: tensor {name!r} is in {where[name].name} and in {file.name}")
                part = handle.get_slice(name)
                shapes[name] = (part.get_dtype(), tuple(part.get_shape()))
                where[name] = file
    return Tensors(shapes, where)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`path`: {file.name} in {str(file.parent)!r} is no whole safetensors file: {error}"
        ) from error


def read_metadata(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with _opened(file) as handle:
        return handle.metadata() or {}


def weight_names(variant: str | None) -> tuple[str, str]:
    """Return the names of the file that holds all weights and of the index of several such files."""
    if variant is None:
        return SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME
    if not isinstance(variant, str) or not variant.isidentifier():
        raise ValueError(f"`variant`: expected a name such as 'fp16', got {variant!r}")
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def model_tensors(source: Source, variant: str | None = None) -> Tensors:
    """Find the weights of a model.

    Raises:
        ValueError: There are none in safetensors files, or two sets of them, or the index does not fit its files.
    """
    name, index_name = weight_names(variant)
    whole, index = source.find(name), source.read_json(index_name)
    if whole is not None and index is not None:
        raise ValueError(
            f"`path`: expected one set of weights in {str(source.path)!r}, found {name} and {index_name}. Delete the "
            "one of an earlier save."
        )
    if whole is not None:
        return open_tensors([whole])
    if index is None:
        raise ValueError(
            f"`path`: found no {name} in {str(source.path)!r}. Weights in other formats (pytorch_model.bin, ...) are "
            "not read, because pickle runs code. Save them with safetensors first."
        )
    placed: dict[str, str] = field_of(index, "weight_map", dict, index_name)
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"`path`: expected names of safetensors files in {index_name}, got {file!r:.100}")
    found = {file: source.find(file) for file in sorted(set(placed.values()))}
    if lost := [file for file, at in found.items() if at is None]:
        raise ValueError(f"`path`: {lost[0]}, which {index_name} names, is missing in {str(source.path)!r}")
    tensors = open_tensors(at for at in found.values() if at is not None)
    if odd := sorted(tensors.shapes.keys() ^ placed.keys()):
        raise ValueError(f"`path`: {index_name} does not fit its files; only on one side: {', '.join(odd[:3])}")
    for tensor, file in placed.items():
        if tensors.files[tensor] != found[file]:
            raise ValueError(
                f"`path`: {index_name} expects {tensor!r} in {file}, it is in {tensors.files[tensor].name}"
            )
    return tensors


# -------------------------------------------------------------------------------------------------------------- digests


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys and of white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
