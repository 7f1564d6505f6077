"""Settings of the server."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rolesafe.arguments import is_integer, is_number
from rolesafe.config import RoleConfig
from rolesafe.roles.role import role_id

REFUSED = "refused"
"""Value of :attr:`ServeSettings.roles` for a role that clients may not send."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the server.

    Attributes:
        name: Name of the model in the API.
        host: Address to listen on.
        port: Port; 0 for any free one.
        api_key: Key that clients send as ``Authorization: Bearer``; None for none, on a loopback address only.
        roles: What happens to messages of a role: the name of a role of at most its privilege to lower it to, or
            ``"refused"``. Roles that are not named are taken as sent.
        variable_roles: Role of the texts of ``tools`` and ``documents``; default: the least privileged one.
        max_new_tokens: Longest reply, in tokens; also the default of a request.
        max_choices: Most replies to one request (``n``).
        max_batch_size: Most replies generated together.
        max_batch_tokens: Most tokens in a batch, padding and replies included; one reply may have more.
        batch_wait_s: Time in seconds to wait for more requests before a batch starts.
        max_queue: Most replies that wait; more requests get status 429.
        max_body_bytes: Longest request.
        max_messages: Most messages of a request.
        body_timeout_s: Time in seconds to receive a request.
        send_timeout_s: Time in seconds to wait for a client that does not read.
        timeout_s: Time in seconds from a request to the end of its reply.
        shutdown_s: Time in seconds for running requests at a shutdown.
        log: File to which one line of JSON per request is appended: roles, tokens, times, never texts.

    Raises:
        ValueError: A value is out of range, or the server would be reachable by others without a key.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    variable_roles: Mapping[str, str] = field(default_factory=dict)
    max_new_tokens: int = 1024
    max_choices: int = 8
    max_batch_size: int = 16
    max_batch_tokens: int = 65536
    batch_wait_s: float = 0.01
    max_queue: int = 128
    max_body_bytes: int = 4 * 2**20
    max_messages: int = 512
    body_timeout_s: float = 30.0
    send_timeout_s: float = 30.0
    timeout_s: float = 300.0
    shutdown_s: float = 10.0
    log: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_choices", "max_batch_size", "max_batch_tokens", "max_queue",
                     "max_body_bytes", "max_messages"):  # fmt: skip
            _check(is_integer(getattr(self, name), 1), name, "a whole number >= 1", getattr(self, name))
        for name in ("body_timeout_s", "send_timeout_s", "timeout_s", "shutdown_s"):
            value = getattr(self, name)
            _check(is_number(value) and value > 0, name, "a number of seconds > 0", value)
        _check(is_number(self.batch_wait_s) and self.batch_wait_s >= 0, "batch_wait_s", ">= 0", self.batch_wait_s)
        _check(is_integer(self.port, 0) and self.port < 65536, "port", "a number of 0 to 65535", self.port)
        _check(bool(self.name) and self.name.isprintable(), "name", "a printable name", self.name)
        if self.api_key is not None and len(self.api_key) < 8:
            raise ValueError("`api_key`: expected at least 8 characters, got fewer. Choose a longer key.")
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(
                f"`api_key`: expected a key for the address {self.host!r}, which others can reach, got none. Set "
                "ROLESAFE_API_KEY, or listen on 127.0.0.1."
            )

    def check_roles(self, config: RoleConfig) -> None:
        """Raise where the role options do not fit the roles of the model.

        Raises:
            ValueError: A role is unknown, or would be raised to more privilege.
        """
        for name, target in self.roles.items():
            own = role_id(name, config.roles, argument="roles")
            if target == REFUSED:
                continue
            to = role_id(target, config.roles, argument=f"roles[{name!r}]")
            if to < own or (to in config.privileged_ids and own not in config.privileged_ids):
                raise ValueError(
                    f"`roles[{name!r}]`: expected a role of at most the privilege of {name!r}, got {target!r}. Lower "
                    f"it to one of {config.roles[own + 1 :]}, or refuse it."
                )
        for name, target in self.variable_roles.items():
            _check(name in ("tools", "documents"), "variable_roles", "'tools' or 'documents'", name)
            role_id(target, config.roles, argument=f"variable_roles[{name!r}]")


def is_loopback(host: str) -> bool:
    """Return True for an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check(good: bool, argument: str, expected: str, got: Any) -> None:
    if not good:
        raise ValueError(f"`{argument}`: expected {expected}, got {got!r}. Change it.")
