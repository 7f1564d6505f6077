"""`RoleConfig`: everything that decides what a role-aware model is, in one frozen, serialisable value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rolesafe.roles.role import DEFAULT_PRIVILEGED, DEFAULT_ROLES, MAX_ROLES

FORMAT_VERSION = 1
"""Version of the dictionary that :meth:`RoleConfig.to_dict` writes."""

EMBEDDINGS = ("none", "input", "layers")
IMPLEMENTATIONS = ("auto", "reference", "sdpa", "triton")

_PRESETS: dict[str, dict[str, Any]] = {
    "bias": {},
    "ise": {"bias": False, "embedding": "input"},
    "channel": {"embedding": "layers", "dedicated_heads": 0.5, "share": 0.5, "integrity": True},
}


@dataclass(frozen=True, kw_only=True)
class RoleConfig:
    """What makes a model role-aware.

    Every part is at rest when it is added (zero tables, zero share), so ``RoleConfig()`` leaves the base model's
    outputs unchanged bit for bit until it is trained. Dedicated heads, a positive share and the integrity mask change
    the outputs at once: they are meant to be trained with.

    Args:
        roles: Names of the roles, most privileged first; at most 16. A role's id is its index.
        privileged: Which of `roles` form the privileged channel.
        generated: Role of the tokens that the model writes itself.
        embedding: ``"none"``; ``"input"``: a vector per role added to the input of the first layer (ISE,
            arXiv 2410.09102); ``"layers"``: a vector per role and layer, added before every layer (AIR,
            arXiv 2505.18907).
        embedding_std: Standard deviation of the role vectors at the start. 0 (bit-exact with the base) or what the
            papers use: 0.01 (ISE), 0.02 (AIR).
        bias: A learned bias per layer, head and pair of roles, added to the attention scores; zero at the start.
        dedicated_heads: Heads of every patched layer that see privileged keys only: a share of the heads in [0, 1]
            (float) or their number (int). They output 0 where no privileged key is visible.
        share: Reserved share in [0, 1] of every other head: the attention mass on privileged keys is at least this,
            whatever else is in the context.
        learn_share: Whether `share` is a learned parameter per head (it starts at `share`) or a constant.
        integrity: Privileged queries see privileged keys only: no text can change the privileged channel's states.
        layers: Indices of the decoder layers whose attention is patched; ``None``: all of them.
        impl: Backend of :func:`rolesafe.role_attention`. ``"auto"`` chooses by device and by the base model's own
            attention implementation; an explicit choice never falls back.
    """

    roles: tuple[str, ...] = DEFAULT_ROLES
    privileged: tuple[str, ...] = DEFAULT_PRIVILEGED
    generated: str = "assistant"
    embedding: str = "none"
    embedding_std: float = 0.0
    bias: bool = True
    dedicated_heads: float | int = 0
    share: float = 0.0
    learn_share: bool = True
    integrity: bool = False
    layers: tuple[int, ...] | None = None
    impl: str = "auto"

    def __post_init__(self) -> None:
        for name in ("roles", "privileged", "layers"):  # lists come out of JSON
            value = getattr(self, name)
            if value is None and name == "layers":
                continue
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"`{name}`: expected a sequence, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        self._check_roles()
        self._check_parts()

    def _check_roles(self) -> None:
        if not 1 <= len(self.roles) <= MAX_ROLES:
            raise ValueError(f"`roles`: expected 1 to {MAX_ROLES} names, got {len(self.roles)}")
        for name in self.roles:
            if not isinstance(name, str) or not name or name != name.lower():
                raise ValueError(f"`roles`: expected lower-case names, got {name!r}")
        if len(set(self.roles)) != len(self.roles):
            raise ValueError(f"`roles`: expected distinct names, got {self.roles}")
        for name in self.privileged:
            if name not in self.roles:
                raise ValueError(
                    f"`privileged`: role {name!r} does not exist; expected some of {self.roles}. "
                    "Declare it in `roles` or leave it out."
                )
        if len(set(self.privileged)) != len(self.privileged):
            raise ValueError(f"`privileged`: expected distinct names, got {self.privileged}")
        if self.generated not in self.roles:
            raise ValueError(f"`generated`: role {self.generated!r} does not exist; expected one of {self.roles}")
        if self.generated in self.privileged:
            raise ValueError(
                f"`generated`: role {self.generated!r} is privileged; what a model writes must not be, or it could "
                "write itself into the privileged channel. Leave it out of `privileged`."
            )

    def _check_parts(self) -> None:
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"`embedding`: expected one of {EMBEDDINGS}, got {self.embedding!r}")
        if self.impl not in IMPLEMENTATIONS:
            raise ValueError(f"`impl`: expected one of {IMPLEMENTATIONS}, got {self.impl!r}")
        for name in ("bias", "learn_share", "integrity"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}`: expected True or False, got {getattr(self, name)!r}")
        if not _is_number(self.embedding_std) or not self.embedding_std >= 0 or math.isinf(self.embedding_std):
            raise ValueError(f"`embedding_std`: expected a finite number >= 0, got {self.embedding_std!r}")
        if not _is_number(self.share) or not 0.0 <= self.share <= 1.0:
            raise ValueError(f"`share`: expected a number in [0, 1], got {self.share!r}")
        heads = self.dedicated_heads
        if not _is_number(heads) or heads < 0 or (isinstance(heads, float) and not heads <= 1.0):
            raise ValueError(
                "`dedicated_heads`: expected a share of the heads in [0, 1] (float) or their number >= 0 (int), "
                f"got {heads!r}"
            )
        if self.layers is not None:
            if not self.layers:
                raise ValueError("`layers`: expected at least one layer index, or None for all layers, got ()")
            if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in self.layers):
                raise ValueError(f"`layers`: expected layer indices >= 0, got {self.layers}")
            if len(set(self.layers)) != len(self.layers):
                raise ValueError(f"`layers`: expected distinct layer indices, got {self.layers}")
        if not self.privileged and (heads or self.share or self.integrity):
            raise ValueError(
                "`privileged`: is empty, so `dedicated_heads`, `share` and `integrity` have no keys to look at; "
                "name at least one privileged role or switch them off"
            )

    # ------------------------------------------------------------------------------------------------- derived values

    @property
    def privileged_ids(self) -> tuple[int, ...]:
        """Ids of the privileged roles, ascending."""
        return tuple(sorted(self.roles.index(name) for name in self.privileged))

    @property
    def generated_id(self) -> int:
        """Id of the role of generated tokens."""
        return self.roles.index(self.generated)

    def count_dedicated(self, heads: int) -> int:
        """Number of dedicated heads of a layer with `heads` query heads.

        Raises:
            ValueError: More dedicated heads are asked for than the layer has.
        """
        wanted = self.dedicated_heads
        count = round(wanted * heads) if isinstance(wanted, float) else wanted
        if count > heads:
            raise ValueError(
                f"`dedicated_heads`: {count} asked for, but the model's attention has {heads} heads; expected at most "
                f"{heads}, or a share of them as a float in [0, 1]"
            )
        return count

    # ------------------------------------------------------------------------------------------- presets, dictionaries

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RoleConfig:
        """A named configuration, with `changes` to it.

        ``"bias"``: the learned bias alone (the default). ``"ise"``: an input embedding per role alone.
        ``"channel"``: the recommended one: per-layer role embeddings, learned bias, half of the heads dedicated,
        a reserved share of 0.5 in the others, integrity mask.
        """
        if name not in _PRESETS:
            raise ValueError(f"`name`: unknown preset {name!r}; expected one of {sorted(_PRESETS)}")
        return cls(**{**_PRESETS[name], **changes})

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Names that :meth:`preset` knows."""
        return tuple(_PRESETS)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON values that :meth:`from_dict` reads back to an equal configuration."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"format_version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoleConfig:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: A key this version does not know, or a newer format: dropping it could switch a defence off.
        """
        values = dict(values)
        version = values.pop("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"`format_version`: {version!r} was written by a newer rolesafe; this one reads up to "
                f"{FORMAT_VERSION}. Upgrade rolesafe."
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown keys {unknown} in a role configuration; expected {sorted(known)}")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
