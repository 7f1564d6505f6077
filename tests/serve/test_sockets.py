"""The server on a real port: OpenAI's client, slow clients, clients that go away."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import openai
import pytest

from rolesafe.serve import Engine, ServeSettings
from rolesafe.serve.run import make_server
from rolesafe.serve.slow import SlowClients
from tests.serve.conftest import MESSAGES, TOOL
from tests.serve.test_refusals import Slow


@contextmanager
def running(model, tokenizer, engine=Engine, **changes):
    settings = {"name": "tiny", "port": 0, "max_new_tokens": 64, "shutdown_s": 2.0, **changes}
    served = engine(model, tokenizer, ServeSettings(**settings))
    server = make_server(served)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield port, served
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        assert not served.alive


@contextmanager
def connected(port, key="none"):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120) as client:
        yield client


def test_openai_client_works(model, tokenizer, tmp_path):
    log = tmp_path / "log.jsonl"
    with (
        running(model, tokenizer, api_key="secret-key", log=log, roles={"developer": "refused"}) as (port, _),
        connected(port, "secret-key") as client,
    ):
        assert [one.id for one in client.models.list()] == ["tiny"]
        given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
        raw = client.chat.completions.with_raw_response.create(**given, tools=[TOOL])
        assert {pair.split("=")[0] for pair in raw.headers["x-rolesafe-roles"].split(", ")} == {
            "system", "user", "assistant", "tool",
        }  # fmt: skip
        whole = client.chat.completions.create(**given)
        stream = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        assert text == whole.choices[0].message.content
        assert stream[-1].usage == whole.usage
        with pytest.raises(openai.NotFoundError, match="`model`"):
            client.chat.completions.create(**{**given, "model": "other"})
        with pytest.raises(openai.PermissionDeniedError, match="does not take messages"):
            client.chat.completions.create(**{**given, "messages": [{"role": "developer", "content": "x"}]})
        with pytest.raises(openai.BadRequestError, match="got 'root'"):
            client.chat.completions.create(**{**given, "messages": [{"role": "root", "content": "x"}]})
        with connected(port, "wrong-key") as other, pytest.raises(openai.AuthenticationError):
            other.models.list()
        assert log.read_text().count("\n") == 6


def test_slow_body_is_refused_and_others_are_served(model, tokenizer):
    with running(model, tokenizer, body_timeout_s=1.0) as (port, _), connected(port) as client:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
            slow.settimeout(60)
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
        assert b" 408 " in answer
        assert b"body_timeout" in answer


@pytest.mark.parametrize("stream", [True, False])
def test_reply_to_a_client_that_went_away_is_cancelled(model, tokenizer, stream, tmp_path):
    log = tmp_path / "log.jsonl"
    with running(model, tokenizer, Slow, max_new_tokens=400, log=log) as (port, served), connected(port) as client:
        given = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400}
        if stream:
            found = client.chat.completions.create(**given, stream=True)
            next(iter(found))
            found.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).chat.completions.create(**given)
        until = time.monotonic() + 60
        while not (log.exists() and log.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        assert '"status": 499' in log.read_text()
        assert all(job.cancelled for job in served._running)


def test_client_that_does_not_read_is_given_up():
    async def app(scope, receive, send):
        await send({"type": "http.response.body"})

    async def stuck(message):
        await asyncio.sleep(10)

    with pytest.raises(OSError, match=r"read nothing for 0\.05 s"):
        asyncio.run(SlowClients(app, 0.05)({"type": "http"}, None, stuck))
