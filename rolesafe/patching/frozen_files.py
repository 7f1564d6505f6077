"""Files of frozen prompts: ``frozen.safetensors`` with keys, values, tokens and roles, ``frozen.json`` with the rest.

Each file holds a digest of the other's content. They are no signature: rewriting both can make them fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from rolesafe.patching.checkpoint import write_json
from rolesafe.patching.checkpoint_files import (
    Source,
    check_keys,
    digest,
    field_of,
    open_tensors,
    read_metadata,
    tensor_digest,
)
from rolesafe.patching.frozen_seal import PARTS

if TYPE_CHECKING:
    from rolesafe.patching.frozen import FrozenPrompt

ABOUT_NAME = "frozen.json"
STATES_NAME = "frozen.safetensors"
VERSION = 1
_KEYS = ("format_version", "messages", "chat_template", "seen", "computation", "seal")
_AGAIN = "Freeze the messages again with rolesafe.freeze."


def save(frozen: FrozenPrompt, directory: str | Path) -> None:
    """Write the files of a frozen prompt into `directory`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format_version": VERSION, **frozen.about()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in frozen.state_tensors().items()}
    (folder / ABOUT_NAME).unlink(missing_ok=True)  # an interruption leaves no pair that does not fit
    scratch = folder / f".{STATES_NAME}.part"
    save_file(tensors, scratch, metadata={"format": "pt", ABOUT_NAME: digest(about)})
    scratch.replace(folder / STATES_NAME)  # processes that mapped the old file keep it
    write_json(folder / ABOUT_NAME, about)


def load(directory: str | Path) -> dict[str, Any]:
    """Return the parts of a saved prompt: messages, chat_template, seal, layers, tokens, roles.

    Raises:
        ValueError: A file is missing, damaged, of another version, or was changed.
    """
    from rolesafe.patching.frozen import LayerState

    source = Source(directory)
    where = f"{str(directory)!r}"
    about, file = source.read_json(ABOUT_NAME), source.find(STATES_NAME)
    if about is None or file is None:
        missing = ABOUT_NAME if about is None else STATES_NAME
        raise ValueError(f"`directory`: expected a frozen prompt in {where}, found no {missing}. {_AGAIN}")
    if (version := field_of(about, "format_version", int, ABOUT_NAME)) != VERSION:
        raise ValueError(f"`directory`: expected `format_version` {VERSION} in {ABOUT_NAME}, got {version}. {_AGAIN}")
    check_keys(about, _KEYS, ABOUT_NAME)
    if read_metadata(file).get(ABOUT_NAME) != digest(about):
        raise ValueError(f"`directory`: {ABOUT_NAME} and {STATES_NAME} in {where} do not fit each other. {_AGAIN}")
    seal, seen = field_of(about, "seal", dict, ABOUT_NAME), field_of(about, "seen", dict, ABOUT_NAME)
    check_keys(seal, PARTS, ABOUT_NAME)
    tensors = open_tensors([file]).read()
    names = {f"{i}.{kind}" for i in seen for kind in ("keys", "values")} | {"tokens", "roles"}
    if set(tensors) != names:
        raise ValueError(
            f"`directory`: expected the tensors of {len(seen)} layers in {STATES_NAME}, got others. {_AGAIN}"
        )
    own = {name: tensors[name] for name in ("tokens", "roles")}
    states: dict[str, Tensor] = {name: tensor for name, tensor in tensors.items() if name not in own}
    if (tensor_digest(own), tensor_digest(states)) != (seal.get("tokens"), seal.get("states")):
        raise ValueError(f"`directory`: {STATES_NAME} in {where} differs from its digest. {_AGAIN}")
    layers = {int(i): LayerState(states[f"{i}.keys"], states[f"{i}.values"], kept) for i, kept in seen.items()}
    parts = {"messages": about["messages"], "chat_template": about["chat_template"], "seal": seal}
    return {**parts, "layers": layers, **own}
