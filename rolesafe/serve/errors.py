"""Errors in the form of OpenAI's API."""

from __future__ import annotations

import re
from typing import Any

_ARGUMENT = re.compile(r"`([a-z_]+)")

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An error for the client.

    Args:
        status: HTTP status.
        message: Message for the client.
        code: Short name of the error, or None.
        param: Name of the parameter at fault, or None.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @classmethod
    def of(cls, error: ValueError) -> ApiError:
        """Return an invalid argument as an error of status 400; its message begins with the name of the argument."""
        found = _ARGUMENT.match(str(error))
        return cls(400, str(error), code="invalid_value", param=found[1] if found else None)

    def body(self) -> dict[str, Any]:
        """Return the JSON of the error."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str, expected: str, got: Any) -> ApiError:
    """Return the error of a request whose parameter has a wrong value."""
    return ApiError(400, f"`{param}`: expected {expected}, got {got!r:.120}.", code="invalid_value", param=param)
