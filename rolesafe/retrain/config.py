"""`RetrainConfig`: all settings of a retraining in one frozen value, readable and writable as YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.files import read_whole, write_whole
from rolesafe.retrain.recipe import dump_yaml, load_yaml

FORMAT_VERSION: Final = 1
RECIPE_NAME: Final = "recipe.yaml"
"""File name of the recipe in the checkpoint directory."""
PLAIN: Final = "plain"
"""Preset that adds no role layer: supervised fine-tuning on the same rows in the same order."""

KINDS: Final = ("clean", "injected", "benign", "plain")
DTYPES: Final = ("auto", "bfloat16", "float32")
REPLIES: Final = ("given", "self")
BAD_ROWS: Final = ("error", "drop")
DEDICATED: Final = ("first", "chosen")
AUTO: Final = "auto"

SHARES: Final[Mapping[str, float]] = {"clean": 0.2, "injected": 0.4, "benign": 0.25, "plain": 0.15}
"""Default shares of the kinds of rows."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Recipe of a retraining.

    Args:
        model: Directory or hub id of a chat model without a role layer, or a ``.gguf`` file, which is dequantized.
        data: File (.json, .jsonl, .csv), directory of such files, or hub id as ``owner/name[@revision][:split]``. The
            formats are those of :mod:`rolesafe.retrain.sources`.
        preset: Preset of :class:`rolesafe.RoleConfig`, or ``"plain"`` for no role layer.
        role_config: Fields of `RoleConfig` that differ from those of the preset.
        dedicated: ``"first"`` to dedicate the first heads of a layer, or ``"chosen"`` for those that the model needs
            least on the ordinary rows of the data, see :func:`rolesafe.training.choose_dedicated`.
        held_out: Files, directories or hub ids of test sets: rows of `data` that occur in them are left out.
        rows: Number of rows to prepare; ``None``: as many as the data has.
        steps: Number of optimizer steps; ``None``: derived from `epochs`.
        epochs: Number of passes over the prepared rows; ``None``: 1, or derived from `steps`.
        batch_size: Number of rows of a forward pass.
        gradient_accumulation: Number of forward passes of an optimizer step.
        learning_rate: Peak learning rate of the base parameters, or of LoRA; decays linearly to 0.
        role_learning_rate: Peak learning rate of the role parameters, or a mapping of the learned parts of the role
            layer to their rates (``{bias: 0.05, added: 5e-4}``); None: :data:`rolesafe.training.rates.DEFAULTS`.
        warmup: Share of the steps in [0, 1) with rising learning rates.
        weight_decay: Weight decay of the base parameters. Role parameters have none.
        max_length: Maximum row length in tokens; at most the model's context.
        bad_rows: Treatment of rows in no known format, without a reply, or longer than `max_length`: ``"error"``, or
            ``"drop"`` to leave them out and count them.
        dtype: Dtype of the computation: ``"bfloat16"``, ``"float32"``, or ``"auto"`` for bfloat16 where the processor
            or GPU has instructions for it. Trained weights stay in fp32 during training.
        lora: Rank of LoRA matrices in all linear layers; ``None``: all weights train. The role layer trains in both.
        gradient_checkpointing: True to recompute activations in the backward pass: less memory, about a third more
            time.
        anneal: Share of the steps in (0, 1] over which the strength of the role layer rises from 0 to 1, 0 for none, or
            ``"auto"``: 0.5 where the role layer changes the untrained model's outputs, else 0.
        seed: Seed of preparation, order and training.
        shares: Shares of the kinds of rows; see :mod:`rolesafe.retrain.preparation`. They are divided by their sum; a
            missing kind has the share 0.
        tool_share: Share of the rows with data where the data are a tool result instead of the user message; ``None``:
            0.75 where the chat template supports tool turns, else 0.
        replies: Source of the replies: ``"given"`` for those of the data, ``"self"`` for greedy replies of the
            untouched model, which preserve its ability.
        max_new_tokens: Maximum length of a generated reply in tokens, for `replies` "self". Longer ones are left out.
        generation_batch_size: Number of prompts of a generation batch, for `replies` "self".
        save_steps: Number of steps between checkpoints.
        logging_steps: Number of steps between entries of the loss log.

    Raises:
        ValueError: A value is out of its range, or `preset` and `role_config` give no valid role configuration.
    """

    model: str
    data: str
    preset: str = "pretrained"
    role_config: Mapping[str, Any] = field(default_factory=dict)
    dedicated: str = "first"
    held_out: tuple[str, ...] = ()
    rows: int | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 5e-5
    role_learning_rate: float | Mapping[str, float] | None = None
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_length: int = 512
    bad_rows: str = "error"
    dtype: str = AUTO
    lora: int | None = None
    gradient_checkpointing: bool = False
    anneal: float | str = AUTO
    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
    tool_share: float | None = None
    replies: str = "given"
    max_new_tokens: int = 256
    generation_batch_size: int = 32
    save_steps: int = 100
    logging_steps: int = 10

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()
        self._check_shares()
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"`epochs`: expected None with steps={self.steps}, got {self.epochs!r}. Give one of the two."
            )
        self.roles()

    def _check_texts(self) -> None:
        for name in ("model", "data"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, value := os.fspath(value))
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{name}`: expected a path or hub id, got {value!r}. Give one.")
        for name, known in (("dtype", DTYPES), ("replies", REPLIES), ("bad_rows", BAD_ROWS), ("dedicated", DEDICATED)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}`: expected one of {known}, got {getattr(self, name)!r}. Choose one.")
        if not isinstance(self.gradient_checkpointing, bool):
            raise ValueError(
                f"`gradient_checkpointing`: expected True or False, got {self.gradient_checkpointing!r}. Pass a bool."
            )

        paths = (self.held_out,) if isinstance(self.held_out, (str, os.PathLike)) else self.held_out
        if not isinstance(paths, (list, tuple)) or not all(isinstance(p, (str, os.PathLike)) and str(p) for p in paths):
            raise ValueError(f"`held_out`: expected paths or hub ids of test sets, got {self.held_out!r}. Correct it.")
        object.__setattr__(self, "held_out", tuple(map(os.fspath, paths)))

    def _check_numbers(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "save_steps", "logging_steps", "generation_batch_size"):
            _check(is_integer(getattr(self, name), 1), name, "an integer >= 1", getattr(self, name))
        for name, least in (("max_length", 8), ("max_new_tokens", 1), ("seed", 0)):
            _check(is_integer(getattr(self, name), least), name, f"an integer >= {least}", getattr(self, name))
        for name in ("rows", "steps", "lora"):
            value = getattr(self, name)
            _check(value is None or is_integer(value, 1), name, "an integer >= 1 or None", value)
        _check(self.epochs is None or _above(self.epochs), "epochs", "a number > 0 or None", self.epochs)
        _check(_above(self.learning_rate), "learning_rate", "a number > 0", self.learning_rate)
        rates = self.role_learning_rate
        each = rates.values() if isinstance(rates, Mapping) else (rates,)
        fits = rates is None or (bool(each) and all(map(_above, each)))
        _check(fits, "role_learning_rate", "a number > 0, a mapping of parts to such numbers, or None", rates)
        _check(
            is_number(self.weight_decay) and self.weight_decay >= 0, "weight_decay", "a number >= 0", self.weight_decay
        )
        _check(is_number(self.warmup) and 0 <= self.warmup < 1, "warmup", "a number in [0, 1)", self.warmup)
        fits = self.anneal == AUTO or (is_number(self.anneal) and 0 <= self.anneal <= 1)
        _check(fits, "anneal", f"a share of the steps in [0, 1] or {AUTO!r}", self.anneal)
        fits = self.tool_share is None or (is_number(self.tool_share) and 0 <= self.tool_share <= 1)
        _check(fits, "tool_share", "a number in [0, 1] or None", self.tool_share)

    def _check_shares(self) -> None:
        given = self.shares
        if not isinstance(given, Mapping) or set(given) - set(KINDS):
            raise ValueError(f"`shares`: expected a mapping of some of {KINDS} to numbers, got {given!r}. Correct it.")
        for kind, value in given.items():
            _check(is_number(value) and value >= 0, f"shares[{kind!r}]", "a number >= 0", value)
        if not sum(given.values()) > 0:
            raise ValueError(f"`shares`: expected a share > 0 of one of {KINDS}, got {dict(given)}. Raise one.")
        object.__setattr__(self, "shares", {kind: float(given.get(kind, 0.0)) for kind in KINDS})

    def roles(self) -> RoleConfig | None:
        """Return the role configuration; None for the preset ``"plain"``.

        Raises:
            ValueError: `preset` and `role_config` give no valid role configuration.
        """
        changes = self.role_config
        if not isinstance(changes, Mapping):
            raise ValueError(f"`role_config`: expected a mapping of fields of RoleConfig, got {changes!r}. Correct it.")
        if self.preset == PLAIN:
            if self.dedicated != "first":
                raise ValueError(
                    f"`dedicated`: expected 'first' with preset={PLAIN!r}, which has no heads to choose, got "
                    f"{self.dedicated!r}. Choose another preset."
                )
            if changes:
                raise ValueError(
                    f"`role_config`: expected none with preset={PLAIN!r}, got {sorted(changes)}. Choose another "
                    "preset, or leave it out."
                )
            return None
        if self.preset not in RoleConfig.presets():
            names = sorted((PLAIN, *RoleConfig.presets()))
            raise ValueError(f"`preset`: expected one of {names}, got {self.preset!r}. Choose one.")
        known = {f.name for f in fields(RoleConfig)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"`role_config`: expected some of {sorted(known)}, got {unknown[0]!r}. Remove it.")
        config = RoleConfig.preset(self.preset, **changes)
        if self.dedicated == "chosen" and (not config.dedicated_heads or isinstance(config.dedicated_heads, tuple)):
            raise ValueError(
                "`dedicated`: expected 'first' without a number or share of dedicated heads in the role configuration, "
                f"got 'chosen' with dedicated_heads={config.dedicated_heads!r}. Set dedicated_heads in `role_config`."
            )
        if not {"system", "user"} <= set(config.roles) or config.generated != "assistant":
            raise ValueError(
                "`role_config`: expected the roles 'system' and 'user' and the generated role 'assistant', got "
                f"{config.roles} and {config.generated!r}. Keep these roles: rows are prepared with them."
            )
        return config

    # ----------------------------------------------------------------------------------------------------------- YAML

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of plain values; :meth:`from_dict` reads it back to an equal configuration."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format_version": FORMAT_VERSION, **{name: _plain(value) for name, value in values.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> RetrainConfig:
        """Return a configuration from the output of :meth:`to_dict`, with `changes` to it.

        Raises:
            ValueError: A key is unknown or missing, the format is newer than this version, or a value is out of range.
        """
        values = dict(values)
        version = values.pop("format_version", FORMAT_VERSION)
        if not is_integer(version, 1) or version > FORMAT_VERSION:
            raise ValueError(
                f"`format_version`: expected 1 to {FORMAT_VERSION}, got {version!r}. Upgrade rolesafe for newer "
                "recipes."
            )
        values = {**values, **changes}
        known = [f.name for f in fields(cls)]
        if unknown := sorted(map(str, set(values) - set(known))):
            raise ValueError(f"`{unknown[0]}`: expected a key of a recipe, one of {known}, got another. Remove it.")
        for name in ("model", "data"):
            if name not in values:
                raise ValueError(f"`{name}`: expected a path or hub id, got none. Give one.")
        return cls(**values)

    def to_yaml(self) -> str:
        """Return the recipe as YAML."""
        return dump_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str, **changes: Any) -> RetrainConfig:
        """Return a configuration from the output of :meth:`to_yaml`, with `changes` to it.

        Raises:
            ValueError: The text is no YAML mapping, has a key twice, or as :meth:`from_dict`.
        """
        return cls.from_dict(load_yaml(text), **changes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a file atomically.

        Raises:
            OSError: The file cannot be written.
        """
        write_whole(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | os.PathLike[str], **changes: Any) -> RetrainConfig:
        """Read a recipe from a file, with `changes` to it.

        Raises:
            ValueError: As :meth:`from_yaml`; the error names the file.
            OSError: The file cannot be read.
        """
        try:
            return cls.from_yaml(read_whole(path), **changes)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def _above(value: Any) -> bool:
    return is_number(value) and value > 0


def _check(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"`{name}`: expected {expected}, got {value!r}. Correct it.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
