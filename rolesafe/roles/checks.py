"""Checks of the arguments of :func:`rolesafe.encode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rolesafe.config import RoleConfig
from rolesafe.roles.fields import check_depth
from rolesafe.roles.role import role_id


def read_config(config: RoleConfig | None) -> RoleConfig:
    """Return `config`, or the default one."""
    if config is None:
        return RoleConfig()
    check(isinstance(config, RoleConfig), "config", "a RoleConfig or None", config)
    return config


def check_tokenizer(tokenizer: Any) -> None:
    """Raise where `tokenizer` is none of transformers, or has no Jinja chat template."""
    if any(kind.__name__ == "MistralCommonBackend" for kind in type(tokenizer).__mro__):
        raise ValueError(
            f"`tokenizer`: expected one with a Jinja chat template, got {type(tokenizer).__name__}, whose own "
            "printing code cannot be traced. Load tokenizer.json of the checkpoint: "
            "PreTrainedTokenizerFast.from_pretrained(path), with a chat template."
        )
    if not all(
        hasattr(tokenizer, name) for name in ("get_chat_template", "added_tokens_decoder", "special_tokens_map")
    ):
        way_out = " Pass its `.tokenizer`." if hasattr(tokenizer, "tokenizer") else ""
        raise ValueError(f"`tokenizer`: expected a transformers tokenizer, got {type(tokenizer).__name__}.{way_out}")


def check_list(value: Any, argument: str) -> None:
    """Raise where `tools` or `documents` is no list, or is nested too deep."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"`{argument}`: expected a list, got {type(value).__name__}. Pass a list, also for one.")
    for i, item in enumerate(value):
        if not isinstance(item, Mapping) and (argument == "documents" or not callable(item)):
            raise ValueError(f"`{argument}[{i}]`: expected a mapping, got {type(item).__name__}: {item!r:.80}")
    check_depth(value, argument)


def check(good: bool, argument: str, expected: str, got: Any) -> None:
    """Raise a ValueError about `argument` unless `good`."""
    if not good:
        raise ValueError(f"`{argument}`: expected {expected}, got {got!r}")


def read_variable_roles(
    given: Mapping[str, str] | None, variables: Mapping[str, Any], config: RoleConfig
) -> dict[str, int]:
    """Return the role id of each variable in `given`; `variables` are those that were passed."""
    check(given is None or isinstance(given, Mapping), "variable_roles", "a mapping of names to roles, or None", given)
    for name in given or ():
        if name not in variables:
            raise ValueError(
                "`variable_roles`: expected names of `template_kwargs`, `tools` or `documents` that are passed "
                f"({sorted(variables)}), got {name!r}. Leave it out, or pass the variable."
            )
    return {
        name: role_id(role, config.roles, argument=f"variable_roles[{name!r}]") for name, role in (given or {}).items()
    }
