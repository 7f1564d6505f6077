"""Routes of the server: chat completions, models, health."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from rolesafe.extras import require
from rolesafe.roles.encoding import EncodedConversation
from rolesafe.serve.access import check_access, read_body
from rolesafe.serve.calls import KEPT
from rolesafe.serve.engine import LOG, Engine
from rolesafe.serve.errors import ApiError
from rolesafe.serve.job import Event, Job
from rolesafe.serve.record import Record
from rolesafe.serve.replies import Answer
from rolesafe.serve.requests import ChatRequest, read_json, read_request
from rolesafe.serve.slow import SlowClients
from rolesafe.serve.text import ReplyText, hidden_ids

POLL_S = 0.2
"""Time in seconds between two looks for a client that went away."""

ROUTES = "This server has POST /v1/chat/completions, GET /v1/models and GET /health."


def create_app(engine: Engine) -> Any:
    """Return the ASGI application (FastAPI) of an engine; it closes the engine at its shutdown.

    Raises:
        ImportError: The extra ``serve`` is not installed.
    """
    fastapi = require("fastapi", "serve")
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    settings = engine.settings
    about = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "rolesafe"}

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, settings.shutdown_s)

    def refuse(error: ApiError) -> Any:
        close = {"Connection": "close"}  # the rest of the body is not read
        headers = {401: {"WWW-Authenticate": "Bearer"}, 408: close, 413: close, 429: {"Retry-After": "1"}}
        return JSONResponse(error.body(), error.status, headers.get(error.status))

    async def on_api_error(request: Any, error: Any) -> Any:
        return refuse(error)

    async def on_http_error(request: Any, error: Any) -> Any:
        what = f"{request.method} {request.url.path}"
        return refuse(ApiError(error.status_code, f"{what}: {error.detail}. {ROUTES}", code="no_route"))

    async def on_fault(request: Any, error: Exception) -> Any:
        return refuse(ApiError(500, "The server failed on this request. Its log has the reason.", code="failed"))

    async def health(request: Any) -> Any:
        return JSONResponse({"status": "ok" if engine.alive else "closed"}, 200 if engine.alive else 503)

    async def models(request: Any) -> Any:
        check_access(request, settings)
        return JSONResponse({"object": "list", "data": [about]})

    async def model(request: Any) -> Any:
        check_access(request, settings)
        if (name := request.path_params["name"]) != settings.name:
            raise ApiError(404, f"`model`: expected {settings.name!r}, got {name!r:.120}.", code="model_not_found")
        return JSONResponse(about)

    async def chat(request: Any) -> Any:
        record = Record(settings.log)
        try:
            check_access(request, settings)
            asked = read_request(read_json(await read_body(request, settings)), settings, engine.config)
            prompt = await asyncio.to_thread(engine.encode, asked)
            record.roles = roles_of(prompt, engine.config.roles)
            answer = await _submit(engine, asked, prompt, record.started + settings.timeout_s)
            if asked.stream:
                events = _events(answer, asked.include_usage, record)
                return StreamingResponse(events, media_type="text/event-stream", headers=record.headers())
            await _until_done(answer, request)
            record.write(200, answer)
            return JSONResponse(answer.whole(), headers=record.headers())
        except ApiError as error:
            record.write(error.status, code=error.code)
            raise
        except Exception:
            record.write(500, code="failed")
            LOG.exception("a request failed")
            raise

    return fastapi.FastAPI(
        title="rolesafe",
        docs_url=None,  # its pages load scripts from other hosts
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        middleware=[Middleware(SlowClients, timeout_s=settings.send_timeout_s)],
        exception_handlers={ApiError: on_api_error, HTTPException: on_http_error, Exception: on_fault},
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
    )


def roles_of(prompt: EncodedConversation, roles: tuple[str, ...]) -> dict[str, int]:
    """Return the number of tokens of each role in a prompt."""
    counts = Counter(prompt.role_ids)
    return {name: counts[i] for i, name in enumerate(roles) if counts[i]}


async def _submit(engine: Engine, asked: ChatRequest, prompt: EncodedConversation, deadline: float) -> Answer:
    """Queue the replies to a request."""
    loop, settings = asyncio.get_running_loop(), engine.settings
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    court = await asyncio.to_thread(engine.court, asked.messages)
    hidden = hidden_ids(engine.tokenizer, KEPT if asked.tools else ())

    def emit(k: int, event: Event) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, (k, event))

    jobs = [
        Job(
            prompt=prompt,
            text=ReplyText(engine.tokenizer, hidden, asked.stop),
            emit=lambda event, k=k: emit(k, event),  # type: ignore[misc]
            max_tokens=min(asked.max_tokens or settings.max_new_tokens, engine.room(prompt)),
            deadline=deadline,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=None if asked.seed is None else asked.seed + k,
            court=court,
        )
        for k in range(asked.n)
    ]
    engine.submit(jobs)
    return Answer(settings.name, jobs, events, asked.tools, asked.parallel_calls, len(prompt))


async def _until_done(answer: Answer, request: Any) -> None:
    """Wait for all replies, or for the client to go away."""

    async def collect() -> None:
        async with aclosing(answer.parts()) as parts:
            async for _ in parts:
                pass

    task = asyncio.ensure_future(collect())
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_S)
            if not task.done() and await request.is_disconnected():
                raise ApiError(499, "The client went away.", code="cancelled")
        await task
    finally:
        task.cancel()


async def _events(answer: Answer, include_usage: bool, record: Record) -> AsyncGenerator[str, None]:
    """Iterate over the server-sent events of an answer, and record its end."""
    try:
        async with aclosing(answer.stream(include_usage)) as stream:
            async for event in stream:
                yield event
    finally:
        if answer.failed is not None:
            record.write(answer.failed.status, answer, answer.failed.code)
        elif answer.done:
            record.write(200, answer)
        else:
            record.write(499, answer, "cancelled")
