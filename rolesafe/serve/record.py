"""Record of a request: roles, numbers of tokens and times, never texts."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rolesafe.serve.replies import Answer


class Record:
    """Record of one request, written once.

    Args:
        file: File to append to, or None.

    Attributes:
        started: Time of the request (:func:`time.monotonic`).
        roles: Number of tokens of each role in the prompt.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.id = f"req-{secrets.token_hex(8)}"
        self.started = time.monotonic()
        self.roles: dict[str, int] = {}
        self._written = False

    def headers(self) -> dict[str, str]:
        """Return response headers with the id of the request and the tokens of each role."""
        roles = ", ".join(f"{name}={count}" for name, count in self.roles.items())
        return {"x-request-id": self.id, "x-rolesafe-roles": roles}

    def write(self, status: int, answer: Answer | None = None, code: str | None = None) -> None:
        """Append the line of the request to the file; later calls do nothing."""
        if self._written or self.file is None:
            return
        self._written = True
        about: dict[str, Any] = {
            "time": round(time.time(), 3),
            "id": self.id,
            "status": status,
            "code": code,
            "roles": self.roles,
            "seconds": round(time.monotonic() - self.started, 4),
        }
        if answer is not None:
            about |= answer.usage() | {"reasons": [choice.reason for choice in answer.choices]}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(about) + "\n")
