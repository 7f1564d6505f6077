"""The main job: a plain model and its role-aware twin, retrained on the same data, attacked, compared."""

from rolesafe.demo.run import DemoError, run_demo
from rolesafe.demo.settings import DemoSettings

__all__ = ["DemoError", "DemoSettings", "run_demo"]
