"""One job of the study: train one arm, measure it, save its record."""

from __future__ import annotations

from pathlib import Path

from benchmarks.override_resistance.kept import Kept, fingerprint
from benchmarks.override_resistance.measure import measure
from benchmarks.override_resistance.settings import Study
from benchmarks.override_resistance.store import Store
from benchmarks.override_resistance.train import obtain
from rolesafe.evaluation import Results, Run, environment
from rolesafe.workers import Job, Tell, Update

_TRAINING = 0.4  # approximate share of a job's time


def run_job(study: Study, records: Path, models: Path, job: Job, tell: Tell) -> None:
    """Run `job` = (size, arm, seed); intermediate and final records go to `records`."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    size, arm, seed = job
    store, settings, where = Store(records), study.to_dict(), environment()

    def training(fraction: float) -> None:
        tell(Update(job, "training", _TRAINING * fraction))

    def keep(run: Run) -> None:
        store.save(Results(runs=(run,), environment=where, settings=settings, complete=run.complete))

    def measuring(stage: str, fraction: float, run: Run | None) -> None:
        if run is not None:
            keep(run)
        tell(Update(job, stage, _TRAINING + (1 - _TRAINING) * fraction))

    model, tokenizer, seconds = obtain(study, size, arm, seed, models, training)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        model = model.cuda()
    kept = Kept(records.parent / "attacks" / f"{size}--{arm}--{seed}.jsonl", fingerprint(model))
    run = measure(model, tokenizer, study, (size, arm, seed), seconds, kept, measuring)
    keep(run)
    kept.drop()
    tell(Update(job, "done", 1.0, run))
