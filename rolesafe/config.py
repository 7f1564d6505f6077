"""`RoleConfig`: the configuration of a role layer, frozen and serialisable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from rolesafe.arguments import is_integer, is_number
from rolesafe.presets import PRESETS
from rolesafe.roles.role import DEFAULT_GENERATED, DEFAULT_PRIVILEGED, DEFAULT_ROLES, MAX_ROLES

FORMAT_VERSION = 2
"""Version of the dictionary that :meth:`RoleConfig.to_dict` writes. Version 1 had the parts up to `impl`."""

Embedding = Literal["none", "input", "layers", "all"]
Implementation = Literal["auto", "reference", "sdpa", "triton"]
EMBEDDINGS: tuple[str, ...] = get_args(Embedding)
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)
_SOME_ROLES = ("data_roles", "embedding_roles")


@dataclass(frozen=True, kw_only=True)
class RoleConfig:
    """Configure the role layer of a model.

    Learned parts start at rest (zero tables), so ``RoleConfig()`` leaves the base model's outputs unchanged bit for bit
    until it is trained. Dedicated heads, a positive share and the integrity mask change the outputs at once: train the
    model with them.

    >>> from rolesafe import RoleConfig
    >>> RoleConfig.preset("channel", share=0.3).dedicated_heads
    0.5
    >>> RoleConfig(roles=("operator", "user", "assistant"), privileged=("operator",)).privileged_ids
    (0,)
    >>> RoleConfig.from_dict(RoleConfig(bias=False).to_dict()) == RoleConfig(bias=False)
    True

    Args:
        roles: Names of the roles, most privileged first; at most 16. A role's id is its index.
        privileged: Names of the roles that form the privileged channel.
        generated: Name of the role of generated tokens.
        embedding: ``"none"``; ``"input"``: a vector per role added to the input of the first layer (ISE,
            arXiv 2410.09102); ``"layers"``: a vector per role and layer, added before every layer; ``"all"``: and one
            after the last layer, before the final norm (AIR, arXiv 2505.18907).
        embedding_std: Standard deviation of the initial role vectors. 0 is bit-exact with the base; the papers use
            0.01 (ISE) and 0.02 (AIR).
        embedding_roles: Roles that have a vector; ``None``: all. With the roles of data alone, a text without data is
            computed as in a model without vectors.
        bias: A learned bias per layer, head and pair of roles, added to the attention scores; zero at the start.
        dedicated_heads: Heads of every patched layer that see privileged keys only: a share of the heads in [0, 1]
            (float) or their number (int), the first ones; or pairs (layer, head), for example those that the model
            needs least (:func:`rolesafe.training.choose_dedicated`). A patch moves listed heads to the front of their
            layer by exchanging rows and columns of its projections, so the base's outputs are kept up to rounding. In
            a layer with grouped keys they are whole groups and a part of at most one more. They output 0 where no
            privileged key is visible.
        share: Reserved share in [0, 1] of every other head: the attention mass on visible privileged keys is at least
            this, however much other text is in the context.
        learn_share: True: `share` is the initial value of a learned parameter per head. False: it is constant.
        share_floor: Least reserved share in [0, share] that training can reach: the share is learned above it only. For
            a pretrained model anneal the strength (:class:`rolesafe.training.AnnealRoles`): the reserved share then
            rises from 0, where the model is unchanged, to the floor.
        integrity: Privileged queries see privileged keys only: other text cannot change the privileged channel's
            states. CIV, arXiv 2508.09288, masks lower levels of trust in a frozen model and signs each token's
            provenance.
        layers: Indices of the decoder layers whose attention is patched; ``None``: all of them.
        rotation: Angle in radians by which pairs of dimensions (0, 1), (2, 3), ... of the first layer's input are
            rotated at data tokens, including learned positions where the model adds them to its embeddings; not
            learned (ASIDE, arXiv 2503.10566, uses pi / 2).
        shift: A learned linear shift ``h + W h + b`` of the first layer's input at data tokens, after the rotation; W
            and b are zero at the start (the token-wise shift of DRIP, arXiv 2511.00447).
        data_roles: Roles whose tokens `rotation` and `shift` change; ``None``: all but the privileged and the
            generated one.
        position_gap: Offset, in tokens, of the positions of all tokens that are not privileged, generated ones
            included (PFT, arXiv 2505.00626, uses 512 between system and user text; public code adds it once more for
            the reply).
        own_positions: Privileged tokens count their positions 0, 1, 2, ... among themselves, and so do the others.
            With `integrity` the privileged states then depend on neither content, place nor length of other text (as
            long as sliding windows contain the privileged keys).
        boost: Factor >= 1 of the attention to privileged keys, before renormalisation (InstABoost, arXiv 2506.13734,
            tunes it per model and task between 1 and 19); no training.
        dampen: Factor in (0, 1] of the attention to all other keys (PASTA, arXiv 2311.02262, uses 0.01 on profiled
            heads); no training.
        steered_heads: Pairs (layer, head) that `boost` and `dampen` act on; ``None``: all heads of `layers`.
        mass_target: In [0, 1]: where a row's attention mass m on privileged keys is lower, log(target / m) is added to
            their scores, so the mass becomes target / (1 + target - m) (SpotLight, arXiv 2505.12025, uses 0.2); no
            training. Applied before `share`. Not with ``impl="triton"``.
        added_heads: Heads added to each layer, as a share of its heads in [0, 1] (float) or as their number (int), at
            most as many as it has. They read privileged keys only, start as copies of heads of the base with an output
            projection of zero, so that the model is unchanged before training, and have key/value heads of their own
            in the cache.
        impl: Backend of :func:`rolesafe.role_attention`. ``"auto"`` chooses by device and by the base model's own
            attention implementation; an explicit choice never falls back.

    Raises:
        ValueError: A value is out of range, or a part has no effect without another one.
    """

    roles: tuple[str, ...] = DEFAULT_ROLES
    privileged: tuple[str, ...] = DEFAULT_PRIVILEGED
    generated: str = DEFAULT_GENERATED
    embedding: Embedding = "none"
    embedding_std: float = 0.0
    embedding_roles: tuple[str, ...] | None = None
    bias: bool = True
    dedicated_heads: float | int | tuple[tuple[int, int], ...] = 0
    share: float = 0.0
    learn_share: bool = True
    share_floor: float = 0.0
    integrity: bool = False
    layers: tuple[int, ...] | None = None
    impl: Implementation = "auto"
    rotation: float = 0.0
    shift: bool = False
    data_roles: tuple[str, ...] | None = None
    position_gap: int = 0
    own_positions: bool = False
    boost: float = 1.0
    dampen: float = 1.0
    steered_heads: tuple[tuple[int, int], ...] | None = None
    mass_target: float = 0.0
    added_heads: float | int = 0

    def __post_init__(self) -> None:
        for name in ("roles", "privileged", "layers", *_SOME_ROLES, "steered_heads"):  # lists come out of JSON
            value = getattr(self, name)
            if value is None and name not in ("roles", "privileged"):
                continue
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ValueError(f"`{name}`: expected a sequence, got {value!r}")
            object.__setattr__(self, name, _tuples(value))
        if isinstance(self.dedicated_heads, (list, tuple)):
            object.__setattr__(self, "dedicated_heads", _tuples(self.dedicated_heads))
        self._check_roles()
        self._check_parts()
        self._check_heads()
        self._check_channel()

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
                    f"`privileged`: expected some of {self.roles}, got {name!r}. Declare it in `roles` or leave it out."
                )
        if len(set(self.privileged)) != len(self.privileged):
            raise ValueError(f"`privileged`: expected distinct names, got {self.privileged}")
        if self.generated not in self.roles:
            raise ValueError(f"`generated`: expected one of {self.roles}, got {self.generated!r}")
        if self.generated in self.privileged:
            raise ValueError(
                f"`generated`: expected an unprivileged role, got {self.generated!r}: the model could write into the "
                "privileged channel. Leave it out of `privileged`."
            )

    def _check_parts(self) -> None:
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"`embedding`: expected one of {EMBEDDINGS}, got {self.embedding!r}")
        if self.impl not in IMPLEMENTATIONS:
            raise ValueError(f"`impl`: expected one of {IMPLEMENTATIONS}, got {self.impl!r}")
        for name in ("bias", "learn_share", "integrity", "shift", "own_positions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}`: expected True or False, got {getattr(self, name)!r}")
        for name, expected, fits in (
            ("embedding_std", "a finite number >= 0", lambda x: 0 <= x < math.inf),
            ("share", "a number in [0, 1]", lambda x: 0 <= x <= 1),
            ("share_floor", "a number in [0, 1]", lambda x: 0 <= x <= 1),
            ("rotation", "a finite angle in radians", math.isfinite),
            ("boost", "a finite number >= 1", lambda x: 1 <= x < math.inf),
            ("dampen", "a number in (0, 1]", lambda x: 0 < x <= 1),
            ("mass_target", "a number in [0, 1]", lambda x: 0 <= x <= 1),
        ):
            value = getattr(self, name)
            if not is_number(value) or not fits(value):
                raise ValueError(f"`{name}`: expected {expected}, got {value!r}")
        if self.share_floor > self.share:
            raise ValueError(
                f"`share`: expected at least share_floor={self.share_floor}, got {self.share}. Raise the initial "
                "share, or lower the floor."
            )
        if self.share_floor and not self.learn_share:
            raise ValueError(
                f"`share_floor`: expected 0 with learn_share=False, got {self.share_floor}. A constant share is its "
                "own floor."
            )
        if not is_integer(self.position_gap, 0):
            raise ValueError(f"`position_gap`: expected a whole number of positions >= 0, got {self.position_gap!r}")
        for name in _SOME_ROLES:
            names = getattr(self, name) or ()
            if unknown := [role for role in names if role not in self.roles]:
                raise ValueError(f"`{name}`: expected some of {self.roles}, got {unknown[0]!r}")
            if len(set(names)) != len(names):
                raise ValueError(f"`{name}`: expected distinct names, got {names}")
        if self.embedding_roles is not None and (self.embedding == "none" or not self.embedding_roles):
            got = f"{self.embedding_roles} with embedding={self.embedding!r}"
            raise ValueError(f"`embedding_roles`: expected None, or some roles and an `embedding`, got {got}")
        if (self.rotation or self.shift) and not self.data_ids:
            raise ValueError(
                "`data_roles`: expected at least one role for `rotation` and `shift`, got none. Name one, or disable "
                "them."
            )

    def _check_heads(self) -> None:
        for name in ("dedicated_heads", "added_heads"):
            heads = getattr(self, name)
            if name == "dedicated_heads" and isinstance(heads, tuple):
                self._check_pairs(name, "0 for none")
            elif not is_number(heads) or heads < 0 or (isinstance(heads, float) and not heads <= 1.0):
                expected = "a share of the heads in [0, 1] (float) or their number >= 0 (int)"
                raise ValueError(f"`{name}`: expected {expected}, got {heads!r}")
        if self.layers is not None:
            if not self.layers:
                raise ValueError("`layers`: expected at least one layer index, or None for all layers, got ()")
            if not all(is_integer(i, 0) for i in self.layers):
                raise ValueError(f"`layers`: expected layer indices >= 0, got {self.layers}")
            if len(set(self.layers)) != len(self.layers):
                raise ValueError(f"`layers`: expected distinct layer indices, got {self.layers}")
        if self.steered_heads is not None:
            self._check_pairs("steered_heads", "None for all")
            if isinstance(self.dedicated_heads, tuple):
                raise ValueError(
                    "`steered_heads`: expected None with listed `dedicated_heads`, which move to the front of their "
                    "layer, got pairs. Leave one of them out."
                )

    def _check_pairs(self, name: str, without: str) -> None:
        pairs = getattr(self, name)
        if not pairs:
            raise ValueError(f"`{name}`: expected at least one pair (layer, head), or {without}, got ()")
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2 or not all(is_integer(i, 0) for i in pair):
                raise ValueError(f"`{name}`: expected pairs (layer, head) of indices >= 0, got {pair!r}")
            if self.layers is not None and pair[0] not in self.layers:
                raise ValueError(f"`{name}`: expected layers among `layers` {self.layers}, got {pair[0]}")
        if len(set(pairs)) != len(pairs):
            raise ValueError(f"`{name}`: expected distinct pairs, got {pairs}")

    def _check_channel(self) -> None:
        if self.privileged:
            return
        needs = ("added_heads", "dedicated_heads", "share", "integrity", "position_gap", "own_positions", "mass_target")
        used = [name for name in needs if getattr(self, name)]
        used += [name for name in ("boost", "dampen") if getattr(self, name) != 1.0]
        if used:
            raise ValueError(
                f"`privileged`: expected at least one role with {', '.join(f'`{name}`' for name in used)}, got (). "
                "Name a privileged role, or disable these parts: they would have no effect."
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

    @property
    def embedding_ids(self) -> tuple[int, ...] | None:
        """Ids of the roles in `embedding_roles`, ascending; None for all."""
        names = self.embedding_roles
        return None if names is None else tuple(sorted(map(self.roles.index, names)))

    @property
    def data_ids(self) -> tuple[int, ...]:
        """Ids of the roles that `rotation` and `shift` act on, ascending."""
        names = self.data_roles
        if names is None:
            names = tuple(name for name in self.roles if name not in self.privileged and name != self.generated)
        return tuple(sorted(self.roles.index(name) for name in names))

    @property
    def moves_positions(self) -> bool:
        """True if tokens have other positions than in the base model."""
        return bool(self.position_gap) or self.own_positions

    def count_parameters(self, *, layers: int, hidden: int, heads: int) -> int:
        """Return the number of learned scalars in a model of `layers` attention layers with `heads` query heads."""
        roles, patched = len(self.roles), range(layers) if self.layers is None else self.layers
        active = len(patched)
        vectors = {"none": 0, "input": 1, "layers": layers, "all": layers + 1}[self.embedding]
        shares = heads * sum(self.share > 0 and self.count_dedicated(heads, i) < heads for i in patched)
        tables = heads * roles * roles if self.bias else 0
        added = 4 * hidden * (hidden // heads) * self.count_added(heads)  # one width of heads and groups, no biases
        return vectors * roles * hidden + active * (tables + added) + shares + (hidden * hidden + hidden) * self.shift

    def listed_heads(self, layer: int) -> tuple[int, ...]:
        """Return the dedicated heads of a layer where `dedicated_heads` lists pairs, ascending; else ()."""
        pairs = self.dedicated_heads
        return tuple(sorted(head for i, head in pairs if i == layer)) if isinstance(pairs, tuple) else ()

    def count_dedicated(self, heads: int, layer: int = 0) -> int:
        """Return the number of dedicated heads of a layer with `heads` query heads.

        Args:
            heads: Query heads of the layer.
            layer: Its index, which matters where `dedicated_heads` lists pairs.

        Raises:
            ValueError: The configuration has more dedicated heads than the layer has heads, or names others.
        """
        if not isinstance(self.dedicated_heads, tuple):
            return self._count("dedicated_heads", heads)
        listed = self.listed_heads(layer)
        if listed and listed[-1] >= heads:
            raise ValueError(
                f"`dedicated_heads`: expected a head below {heads} in layer {layer}, got the pair {(layer, listed[-1])}"
            )
        return len(listed)

    def count_added(self, heads: int) -> int:
        """Return the number of heads that are added to a layer with `heads` query heads; 1 at least for any share.

        Raises:
            ValueError: More are asked for than the layer has, from which they are copied.
        """
        return max(self._count("added_heads", heads), int(self.added_heads > 0))

    def _count(self, name: str, heads: int) -> int:
        wanted = getattr(self, name)
        count: int = round(wanted * heads) if isinstance(wanted, float) else wanted
        if count > heads:
            raise ValueError(
                f"`{name}`: expected at most the {heads} heads of the model's attention, or a share of them (float in "
                f"[0, 1]), got {count}"
            )
        return count

    # ------------------------------------------------------------------------------------------- presets, dictionaries

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RoleConfig:
        """Return a named configuration with some values changed.

        Single parts: ``"bias"`` (the default configuration), ``"dedicated"``, ``"added"``, ``"share"``,
        ``"integrity"``, ``"embedding"``. Published mechanisms: ``"ise"``, ``"air"``, ``"aside"``, ``"pft"``, ``"drip"``
        and, without training, ``"instaboost"``, ``"pasta"``, ``"spotlight"``. Recommended for models trained from
        nothing: ``"channel"`` (per-layer role embeddings, learned bias, half of the heads dedicated, a reserved share
        of 0.5 in the others, integrity mask), or ``"separate"``, which adds own positions. Recommended for existing
        checkpoints: ``"pretrained"`` (a vector of tool results before every layer; without effect until trained; name
        other roles of data as `embedding_roles`). :mod:`rolesafe.presets` has their papers and guarantees; the command
        ``rolesafe mechanisms`` prints them.

        Args:
            name: Name of the preset.
            **changes: Arguments of `RoleConfig` that replace those of the preset.

        Raises:
            ValueError: There is no such preset, or a change does not fit.
        """
        if name not in PRESETS:
            raise ValueError(f"`name`: expected one of {sorted(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name].values, **changes})

    @classmethod
    def presets(cls) -> tuple[str, ...]:
        """Return the names of all presets."""
        return tuple(PRESETS)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of JSON values; :meth:`from_dict` returns an equal configuration from it."""
        return {"format_version": FORMAT_VERSION, **{k: _plain(v) for k, v in asdict(self).items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoleConfig:
        """Return the configuration that :meth:`to_dict` wrote.

        Raises:
            ValueError: Unknown keys, or a newer format: ignoring them could disable a defence.
        """
        values = dict(values)
        version = values.pop("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            expected = f"`format_version`: expected at most {FORMAT_VERSION}"
            raise ValueError(f"{expected}, got {version!r} of a newer rolesafe. Upgrade rolesafe.")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"`values`: expected keys of a role configuration {sorted(known)}, got {unknown}")
        return cls(**values)


def _tuples(value: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(x) if isinstance(x, list) else x for x in value)


def _plain(value: Any) -> Any:
    return [_plain(x) for x in value] if isinstance(value, tuple) else value
