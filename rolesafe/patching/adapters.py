"""Role layers under PEFT: names for `modules_to_save`, and checks that an adapter holds the trained role layer."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rolesafe.mechanisms import RoleHeads, RolePart
from rolesafe.patching.checkpoint_files import open_tensors
from rolesafe.patching.patched import is_patched, is_role_name

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def role_modules(model: nn.Module) -> list[str]:
    """Return the names of the learned parts of a role layer, for `modules_to_save` of a PEFT configuration.

    With them PEFT trains the role layer, saves it with the adapter and loads it again. Without them it freezes it.

    Raises:
        ValueError: `model` is not patched.
    """
    if not any(is_patched(module) for module in model.modules()):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    return sorted({path.rsplit(".", 1)[-1] for path, part in model.named_modules() if _learns(part)})


def _learns(part: nn.Module) -> bool:
    """Return True for a role part with parameters that its configuration lets train."""
    if isinstance(part, RoleHeads):
        return part.bias is not None or (part.share is not None and part.learns_share)
    return isinstance(part, RolePart) and next(part.parameters(), None) is not None


def learned_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters of the role layer without those that are constants, trainable now or not."""
    return [
        (f"{path}.{name}", parameter)
        for path, part in model.named_modules()
        if _learns(part)
        for name, parameter in part.named_parameters(recurse=False)
        if not (isinstance(part, RoleHeads) and name == "share" and not part.learns_share)
    ]


def freeze_constants(model: nn.Module) -> None:
    """Freeze constant shares again: PEFT unfreezes everything that it saves."""
    for part in model.modules():
        if isinstance(part, RoleHeads) and part.share is not None and not part.learns_share:
            part.share.requires_grad_(False)


def check_adapter(directory: str | Path, model: nn.Module, adapter: str) -> None:
    """Raise a ValueError where the adapter in `directory` lacks role parameters that `model` trains."""
    file = Path(directory) / ADAPTER_WEIGHTS
    file = file if file.is_file() else Path(directory) / adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ValueError(f"`path`: expected {ADAPTER_WEIGHTS} in {str(directory)!r}, found none")
    trained = [n for n, p in model.named_parameters() if is_role_name(n) and p.requires_grad]
    expected = {name.replace(f".modules_to_save.{adapter}.", ".") for name in trained}
    if lost := sorted(expected - open_tensors([file]).shapes.keys()):
        raise ValueError(
            f"`path`: the adapter in {str(directory)!r} holds no {lost[0]}, which this model trains. Train it "
            "again with modules_to_save=rolesafe.patching.role_modules(model)."
        )
