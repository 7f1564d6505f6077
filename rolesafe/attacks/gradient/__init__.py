"""Attacks that read the model: gradients (GCG), its own predictions (BEAST), its embeddings (PGD). All pass roles."""

from rolesafe.attacks.gradient.config import BeastConfig, GCGConfig, SlotConfig, SoftPromptConfig

__all__ = ["BeastConfig", "GCGConfig", "SlotConfig", "SoftPromptConfig"]
