"""Training with roles on the Hugging Face Trainer: collation, learning rates, annealing, losses of alignment depth."""

from rolesafe.training.anneal import AnnealRoles
from rolesafe.training.collator import RoleCollator
from rolesafe.training.fit import FitSettings, Losses, fit
from rolesafe.training.keep_locked import KeepLocked
from rolesafe.training.log import LogRoles
from rolesafe.training.need import choose_dedicated, choose_heads, head_need
from rolesafe.training.policy_gradient import PolicyGradientLoss, PromptRows
from rolesafe.training.reply_losses import PreferenceLoss, RecoveryLoss, ReplyLoss, TokenConstrainedLoss
from rolesafe.training.safety_rows import (
    PreferenceRows,
    PrefixAugmentation,
    RecoveryPrefixes,
    SafetyRows,
    SafetyTriplet,
    SpanInsertion,
)
from rolesafe.training.trainer import RoleTrainer, with_loss

__all__ = [
    "AnnealRoles",
    "FitSettings",
    "KeepLocked",
    "LogRoles",
    "Losses",
    "PolicyGradientLoss",
    "PreferenceLoss",
    "PreferenceRows",
    "PrefixAugmentation",
    "PromptRows",
    "RecoveryLoss",
    "RecoveryPrefixes",
    "ReplyLoss",
    "RoleCollator",
    "RoleTrainer",
    "SafetyRows",
    "SafetyTriplet",
    "SpanInsertion",
    "TokenConstrainedLoss",
    "choose_dedicated",
    "choose_heads",
    "fit",
    "head_need",
    "with_loss",
]
