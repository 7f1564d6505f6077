"""Retraining with roles: collation and a thin setup on the Hugging Face Trainer. No training loop of our own."""

from rolesafe.training.anneal import AnnealRoles
from rolesafe.training.collator import RoleCollator
from rolesafe.training.fit import FitSettings, Losses, fit
from rolesafe.training.trainer import RoleTrainer

__all__ = ["AnnealRoles", "FitSettings", "Losses", "RoleCollator", "RoleTrainer", "fit"]
