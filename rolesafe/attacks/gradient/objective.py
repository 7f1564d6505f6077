"""Names of the objectives of gradient attacks."""

from typing import Literal

Objective = Literal["ce", "mellowmax", "attention", "role-shift"]
