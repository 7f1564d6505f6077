"""Default learning rates of the role parameters."""

from __future__ import annotations

from rolesafe import RoleConfig
from rolesafe.training.rates import DEFAULTS, SOME_ROLES, default_rates
from tests.models import base_model, role_model


def test_defaults_name_the_learned_parts() -> None:
    assert default_rates(base_model("llama")) is None
    assert default_rates(role_model("llama", RoleConfig.preset("bias"))) == {"bias": DEFAULTS["bias"]}
    channel = default_rates(role_model("llama", RoleConfig.preset("channel")))
    assert channel == {part: DEFAULTS[part] for part in ("bias", "share", "embedding")}


def test_vectors_of_some_roles_have_a_rate_of_their_own() -> None:
    assert DEFAULTS["embedding"] != SOME_ROLES
    assert default_rates(role_model("llama", RoleConfig.preset("pretrained"))) == {"embedding": SOME_ROLES}
