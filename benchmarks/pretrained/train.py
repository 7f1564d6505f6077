"""Train and evaluate arms, one after the other; a repeated call resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pretrained.arms import ARMS, Arm, common
from benchmarks.pretrained.evaluate import evaluate
from benchmarks.pretrained.record import Record
from benchmarks.pretrained.settings import Settings
from rolesafe.arguments import is_number
from rolesafe.retrain import RetrainConfig, retrain
from rolesafe.terminal import as_text


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Arms to train and evaluate.

    Args:
        out: Folder of the results: checkpoints in ``ARM/seed-N``, records in ``records``.
        data: Folder of the test sets.
        arms: Names in :data:`ARMS`.
        seeds: Training seeds.
        suites: Names of the suites; none: train only.
        settings: Settings of the evaluation.
        recipe: Values of the common recipe, as arguments of :func:`benchmarks.pretrained.arms.common`.
        factor: Factor of each arm's own learning rates of the role parameters.

    Raises:
        ValueError: An arm is unknown or named twice, or the factor is not > 0.
    """

    out: Path
    data: Path
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (0,)
    suites: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    recipe: dict[str, Any]
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.factor) or self.factor <= 0:
            raise ValueError(f"`role_rate_factor`: expected a number > 0, got {self.factor!r}. Correct it.")
        for name in self.arms:
            if name not in ARMS:
                raise ValueError(f"`arm`: expected some of {tuple(ARMS)}, got {name!r}. Choose among these.")
        for name, values in (("arm", self.arms), ("seed", self.seeds)):
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"`{name}`: expected distinct values, at least one, got {values}. Correct them.")

    def jobs(self) -> list[tuple[Arm, int]]:
        """Return arms and seeds in order, all arms of one seed first; the untouched model has one seed."""
        pairs = [(ARMS[name], seed) for seed in self.seeds for name in self.arms]
        return [(arm, seed) for arm, seed in pairs if arm.changes is not None or seed == self.seeds[0]]

    def recipe_of(self, arm: Arm, seed: int) -> RetrainConfig | None:
        """Return the recipe of an arm; None for the untouched model."""
        found = arm.recipe(common(self.data, seed=seed, **self.recipe))
        if found is None or found.roles() is None:
            return found
        rates: Any = found.role_learning_rate
        scaled = {k: self.factor * v for k, v in rates.items()} if isinstance(rates, Mapping) else self.factor * rates
        return replace(found, role_learning_rate=scaled)


def train(plan: Plan, *, device: str | None = None, batch_tokens: int = 8192, console: Console | None = None) -> bool:
    """Train and evaluate the arms of a plan; skip what is done.

    Args:
        plan: Arms, seeds and settings.
        device: Device of the evaluation; default: a GPU where there is one.
        batch_tokens: Maximum tokens of an evaluated batch.
        console: Console of the progress; default: standard error.

    Returns:
        True where all are done; False after Ctrl-C during training.

    Raises:
        ValueError, OSError: As :func:`rolesafe.retrain.retrain` and :func:`benchmarks.pretrained.evaluate.evaluate`.
            All recipes are checked before the first arm trains.
    """
    console = console or Console(stderr=True)
    jobs = [(arm, seed, plan.recipe_of(arm, seed)) for arm, seed in plan.jobs()]
    base = common(plan.data, **plan.recipe).model
    for number, (arm, seed, recipe) in enumerate(jobs, 1):
        console.print(as_text(f"[{number}/{len(jobs)}] {arm.name}, seed {seed}: {arm.about}", "bold"))
        model = base
        if recipe is not None:
            folder = plan.out / arm.name / f"seed-{seed}"
            if not retrain(recipe, folder, console=console).complete:
                return False
            model = str(folder)
        if plan.suites:
            _evaluate(plan, arm, seed, model, base, device, batch_tokens, console)
    return True


def _evaluate(
    plan: Plan, arm: Arm, seed: int, model: str, base: str, device: str | None, batch_tokens: int, console: Console
) -> Record:
    return evaluate(
        model,
        record_path(plan.out, arm.name, seed),
        plan.suites,
        plan.settings,
        folder=plan.data,
        arm=arm.title,
        training_seed=seed,
        base=base,
        device=device,
        batch_tokens=batch_tokens,
        console=console,
    )


def record_path(out: Path, arm: str, seed: int) -> Path:
    """Return the file of an arm's record."""
    return out / "records" / f"{arm}-{seed}.json"
