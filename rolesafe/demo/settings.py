"""Settings of the demo."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any

from rolesafe.config import RoleConfig

PLAIN, ROLE_AWARE = "plain", "role-aware"
MODELS = (PLAIN, ROLE_AWARE)

ATTACKS = ("none", "ignore-previous", "mimicry", "fake-system", "dilution", "position")
"""Attacks of the demo: fixed texts without search."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the demo.

    Args:
        model: Directory or hub id to retrain; None: a tiny llama from scratch.
        seeds: Training seeds; one pair of models each.
        steps: Optimizer steps of each model.
        batch_size: Conversations per step.
        learning_rate: Peak learning rate, after a short warmup and with linear decay.
        role_learning_rate: Peak learning rate of the role parameters.
        examples: Test examples, half of them protected (only those are attacked), half benign.
        config: Configuration of the role-aware model.
        hidden, layers, heads: Shape of the tiny llama.
        max_length: Longest training conversation in tokens; None: no limit.
        position_gap: Largest random jump of positions in training, in tokens, for both models; see `RoleCollator`. At
            most the model's context length minus 256. 0 with `model`: a pretrained model knows its positions.

    Raises:
        ValueError: A setting is out of range.
    """

    model: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 800
    batch_size: int = 32
    learning_rate: float = 3e-3
    role_learning_rate: float = 3e-3
    examples: int = 180
    config: RoleConfig = field(default_factory=lambda: RoleConfig.preset("channel"))
    hidden: int = 64
    layers: int = 3
    heads: int = 4
    max_length: int | None = None
    position_gap: int = 640

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}`: expected a number >= 1, got {getattr(self, name)}")
        if self.position_gap < 0:
            raise ValueError(f"`position_gap`: expected a length >= 0, got {self.position_gap}")
        if self.model is not None and self.position_gap:
            raise ValueError(
                f"`position_gap`: expected 0 with a model to retrain, got {self.position_gap}. "
                "DemoSettings.short(model) has settings for one."
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds`: expected distinct seeds, at least one, got {self.seeds}")
        if self.examples < 6 or self.examples % 2:
            raise ValueError(f"`examples`: expected an even number >= 6, got {self.examples}")
        for name in ("learning_rate", "role_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}`: expected a positive number, got {getattr(self, name)}")

    @classmethod
    def short(cls, model: str, **changes: Any) -> DemoSettings:
        """Return settings for the checkpoint `model`: a short retraining of both models of one pair.

        Args:
            model: Directory or hub id.
            **changes: Other settings.
        """
        values = {
            "seeds": (0,), "steps": 120, "batch_size": 8, "learning_rate": 1e-4, "role_learning_rate": 1e-3,
            "position_gap": 0,
        }  # fmt: skip
        return cls(model=model, **{**values, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the command that repeats the run."""
        return {**asdict(self), "seeds": list(self.seeds), "config": self.config.to_dict(), "command": self.command}

    @property
    def command(self) -> str:
        """Command line of these settings, without those it has no option for."""
        default = DemoSettings() if self.model is None else DemoSettings.short(self.model)
        words = ["rolesafe", "demo"]
        words += [] if self.model is None else ["--model", self.model]
        for name in ("steps", "batch_size", "learning_rate", "role_learning_rate", "examples", "position_gap"):
            value = getattr(self, name)
            if value != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(value)]
        if self.seeds != default.seeds:
            words += ["--seeds", str(len(self.seeds))]
        preset = next((name for name in RoleConfig.presets() if RoleConfig.preset(name) == self.config), None)
        if preset is not None and self.config != default.config:
            words += ["--preset", preset]
        return shlex.join(words)
