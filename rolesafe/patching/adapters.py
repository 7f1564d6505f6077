"""Role layers under PEFT: what an adapter has to hold so that nothing that was trained is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rolesafe.mechanisms import RoleHeads, RolePart
from rolesafe.patching.apply import is_patched
from rolesafe.patching.files import open_tensors
from rolesafe.patching.seal import is_role_name

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def role_modules(model: nn.Module) -> list[str]:
    """See :func:`rolesafe.patching.role_modules`."""
    if not any(is_patched(module) for module in model.modules()):
        raise ValueError(f"`model`: expected a model patched by rolesafe, got {type(model).__name__}")
    return sorted({path.rsplit(".", 1)[-1] for path, part in model.named_modules() if _learns(part)})


def _learns(part: nn.Module) -> bool:
    """Return whether a module is a role part with parameters that its configuration lets train."""
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
    """Take constant shares out of training again, where PEFT switched everything on that it saves."""
    for part in model.modules():
        if isinstance(part, RoleHeads) and part.share is not None and not part.learns_share:
            part.share.requires_grad_(False)


def check_adapter(directory: Any, model: nn.Module, adapter: str) -> None:
    """Raise where the adapter in `directory` lacks role parameters that `model` trains."""
    file = Path(directory) / ADAPTER_WEIGHTS
    file = file if file.is_file() else Path(directory) / adapter / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ValueError(f"`path`: expected {ADAPTER_WEIGHTS} in {str(directory)!r}, found none")
    trained = [n for n, p in model.named_parameters() if is_role_name(n) and p.requires_grad]
    expected = {name.replace(f".modules_to_save.{adapter}.", ".") for name in trained}
    if lost := sorted(expected - open_tensors([file]).shapes.keys()):
        raise ValueError(
            f"`path`: the adapter in {str(directory)!r} holds no {lost[0]}, which this model trains; it was saved "
            "without its role layer. Train it again with modules_to_save=rolesafe.patching.role_modules(model)"
        )
