"""Training with roles on the Hugging Face Trainer: collation, learning rates, annealing."""

from rolesafe.training.anneal import AnnealRoles
from rolesafe.training.collator import RoleCollator
from rolesafe.training.fit import FitSettings, Losses, fit
from rolesafe.training.log import LogRoles
from rolesafe.training.need import choose_dedicated, choose_heads, head_need
from rolesafe.training.trainer import RoleTrainer

__all__ = [
    "AnnealRoles",
    "FitSettings",
    "LogRoles",
    "Losses",
    "RoleCollator",
    "RoleTrainer",
    "choose_dedicated",
    "choose_heads",
    "fit",
    "head_need",
]
