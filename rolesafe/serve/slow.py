"""Middleware that gives up on clients that do not read."""

from __future__ import annotations

import asyncio
from typing import Any


class SlowClients:
    """End a response where the client does not take a part of it in time.

    Args:
        app: ASGI application.
        timeout_s: Time in seconds for each part.
    """

    def __init__(self, app: Any, timeout_s: float) -> None:
        self.app, self.timeout_s = app, timeout_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application with a `send` that raises an OSError after the time limit."""

        async def timed(message: Any) -> None:
            try:
                await asyncio.wait_for(send(message), self.timeout_s)
            except asyncio.TimeoutError:
                raise OSError(f"the client read nothing for {self.timeout_s:g} s") from None

        await self.app(scope, receive, timed)
