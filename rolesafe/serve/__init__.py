"""OpenAI-compatible server for role-aware models: `rolesafe serve`.

A message's privilege comes from its API role, never from its content.
"""

from rolesafe.serve.app import create_app
from rolesafe.serve.engine import Engine
from rolesafe.serve.run import serve
from rolesafe.serve.settings import ServeSettings

__all__ = ["Engine", "ServeSettings", "create_app", "serve"]
