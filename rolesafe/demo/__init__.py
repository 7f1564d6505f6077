"""Demo: train a plain and a role-aware model on the same data, attack both, and compare."""

from rolesafe.demo.run import DemoError, run_demo
from rolesafe.demo.settings import DemoSettings

__all__ = ["DemoError", "DemoSettings", "run_demo"]
