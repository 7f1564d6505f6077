"""Access to the server: key, host and content type, and the body of a request within its limits."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from rolesafe.serve.errors import ApiError
from rolesafe.serve.settings import ServeSettings, is_loopback


def check_access(request: Any, settings: ServeSettings) -> None:
    """Raise where a request has not the key of the server, or comes from the page of another site.

    Raises:
        ApiError: The key is missing or wrong, or a server without a key is addressed under a foreign name.
    """
    if settings.api_key is None:
        # A page of another site may let its own name point to this machine.
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not is_loopback(name):
            raise ApiError(
                403, f"`Host`: expected localhost for a server without a key, got {host!r:.120}.", code="host"
            )
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {settings.api_key}".encode()):
        raise ApiError(401, "`Authorization`: expected 'Bearer' and the key of this server.", code="invalid_api_key")


async def read_body(request: Any, settings: ServeSettings) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: It is no JSON, too long, comes too slowly, or the client went away.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site may send other types without being asked
        raise ApiError(415, f"`Content-Type`: expected application/json, got {kind!r:.80}.", code="content_type")
    most = settings.max_body_bytes
    length = request.headers.get("content-length", "0")
    too_long = ApiError(413, f"The body: expected at most {most} bytes, got more.", code="body_too_large")
    if length.isdigit() and int(length) > most:
        raise too_long

    async def collect() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_long
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(collect(), settings.body_timeout_s)
    except asyncio.TimeoutError:
        raise ApiError(
            408, f"The body: expected all of it in {settings.body_timeout_s:g} s, got a part.", code="body_timeout"
        ) from None
    except ClientDisconnect:
        raise ApiError(499, "The client went away.", code="cancelled") from None
