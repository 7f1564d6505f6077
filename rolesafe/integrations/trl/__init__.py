"""TRL's trainers for patched models, as mixins: roles go wherever tokens go, or an error is raised.

Install with ``pip install "rolesafe[trl]"``.
"""

from rolesafe.extras import require

require("trl", "trl")

from rolesafe.integrations.trl.dpo import RoleDPOTrainer  # noqa: E402
from rolesafe.integrations.trl.grpo import RoleGRPOTrainer  # noqa: E402
from rolesafe.integrations.trl.sft import RoleSFTTrainer  # noqa: E402

__all__ = ["RoleDPOTrainer", "RoleGRPOTrainer", "RoleSFTTrainer"]
