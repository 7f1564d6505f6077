"""Run the server until Ctrl-C or SIGTERM."""

from __future__ import annotations

from typing import Any

from rolesafe.extras import require
from rolesafe.serve.app import create_app
from rolesafe.serve.engine import Engine


def make_server(engine: Engine) -> Any:
    """Return the server (uvicorn) of an engine, with the address and limits of its settings.

    Raises:
        ImportError: The extra ``serve`` is not installed.
    """
    uvicorn = require("uvicorn", "serve")
    settings = engine.settings
    config = uvicorn.Config(
        create_app(engine),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        server_header=False,
        limit_concurrency=2 * settings.max_queue + settings.max_batch_size,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
    )
    return uvicorn.Server(config)


def serve(engine: Engine) -> None:
    """Serve an engine until Ctrl-C or SIGTERM. At a shutdown, running requests get a few seconds to end.

    Raises:
        ImportError: The extra ``serve`` is not installed.
    """
    try:
        make_server(engine).run()
    finally:
        engine.close(engine.settings.shutdown_s)
