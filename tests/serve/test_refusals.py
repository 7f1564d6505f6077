"""Requests that are refused, each with a status, a code and a reason; the server keeps serving."""

from __future__ import annotations

import json
import threading
import time

import pytest

from rolesafe.court import Articles, ForbiddenPhrases
from rolesafe.serve import Engine, ServeSettings
from rolesafe.training.tiny import tiny_llama
from tests.serve.conftest import MESSAGES, TOOL


def refused(response, status, code, *fragments):
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text
    assert set(error) == {"message", "type", "param", "code"}
    for fragment in fragments:
        assert fragment in error["message"]


@pytest.mark.parametrize(
    "options, status, code, fragments",
    [
        ({"model": "gpt-4"}, 404, "model_not_found", ["`model`", "'tiny'", "'gpt-4'"]),
        ({"messages": []}, 400, "invalid_value", ["`messages`", "at least one"]),
        ({"messages": "hi"}, 400, "invalid_value", ["`messages`"]),
        ({"messages": [3]}, 400, "invalid_value", ["`messages[0]`"]),
        ({"messages": [{"role": "root", "content": "x"}]}, 400, "unknown_role", ["`messages[0].role`", "'root'"]),
        ({"messages": [{"role": "SYSTEM", "content": "x"}]}, 400, "unknown_role", ["'SYSTEM'"]),
        ({"messages": [{"content": "x"}]}, 400, "unknown_role", ["got None"]),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "invalid_value", ["expected a string"]),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "invalid_value",
            ["'type': 'text'"],
        ),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, 400, "invalid_value", ["'mood'"]),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, 400, "invalid_value", ["tool_calls"]),
        ({"messages": [{"role": "user", "content": "x"}] * 600}, 400, "invalid_value", ["512 messages"]),
        (
            {"messages": [{"role": "user", "content": "rain " * 600}]},
            400,
            "context_length_exceeded",
            ["at most 512 tokens"],
        ),
        ({"temperature": 9}, 400, "invalid_value", ["`temperature`", "0 to 2"]),
        ({"temperature": True}, 400, "invalid_value", ["`temperature`"]),
        ({"top_p": -1}, 400, "invalid_value", ["`top_p`"]),
        ({"max_tokens": 0}, 400, "invalid_value", ["`max_tokens`", "1 to 64"]),
        ({"max_tokens": 65}, 400, "invalid_value", ["`max_tokens`", "1 to 64"]),
        ({"n": 99}, 400, "invalid_value", ["`n`", "1 to 8"]),
        ({"seed": "x"}, 400, "invalid_value", ["`seed`"]),
        ({"stop": [""]}, 400, "invalid_value", ["`stop`"]),
        ({"stream": "yes"}, 400, "invalid_value", ["`stream`"]),
        ({"stream_options": {"x": 1}}, 400, "invalid_value", ["stream_options.x"]),
        ({"logprobs": True}, 400, "unsupported_parameter", ["`logprobs`"]),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", ["`response_format`"]),
        ({"role_ids": [0]}, 400, "unknown_parameter", ["`role_ids`"]),
        ({"tools": [{"type": "function"}]}, 400, "invalid_value", ["`tools[0]`"]),
        ({"tools": "x"}, 400, "invalid_value", ["`tools`"]),
        ({"tools": [TOOL], "tool_choice": "required"}, 400, "invalid_value", ["`tool_choice`"]),
        ({"chat_template_kwargs": {"messages": []}}, 400, "invalid_value", ["`template_kwargs`"]),
    ],
)
def test_parameter_invalid_is_refused(client, ask, options, status, code, fragments):
    refused(ask(client, **options), status, code, *fragments)


@pytest.mark.parametrize(
    "body, fragment",
    [
        (b"{", "does not parse"),
        (b"[1]", "a JSON object"),
        (b"\xff\xfe", "does not parse"),
        (b'{"a":' * 20000 + b"1" + b"}" * 20000, "too deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "100 nested levels"),
    ],
)
def test_body_malformed_is_refused(client, body, fragment):
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert fragment in response.json()["error"]["message"]


def test_other_routes_and_types_are_refused(client):
    refused(client.get("/v1/completions"), 404, "no_route", "/v1/completions", "/v1/chat/completions")
    refused(client.get("/v1/chat/completions"), 405, "no_route")
    refused(client.post("/v1/chat/completions", content=b"{}"), 415, "content_type", "application/json")
    refused(client.get("/v1/models/other"), 404, "model_not_found")
    refused(client.get("/v1/models", headers={"host": "evil.example"}), 403, "host")


def test_models_and_health(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/openapi.json").status_code == 404


def test_large_body_is_refused(start, ask):
    def parts():
        for _ in range(4):
            yield b" " * 600

    with start(max_body_bytes=1000) as client:
        refused(ask(client, [{"role": "user", "content": "x" * 2000}]), 413, "body_too_large")
        sent = client.post("/v1/chat/completions", content=parts(), headers={"content-type": "application/json"})
        refused(sent, 413, "body_too_large")
        assert ask(client, max_tokens=1).status_code == 200


def test_key_is_required(start, ask):
    with start(api_key="secret-key") as client:
        refused(ask(client), 401, "invalid_api_key")
        refused(client.get("/v1/models", headers={"authorization": "Bearer wrong-key"}), 401, "invalid_api_key")
        client.headers["authorization"] = "Bearer secret-key"
        assert ask(client, max_tokens=1).status_code == 200


def test_roles_of_clients_are_capped(start, ask):
    with start(roles={"system": "user", "developer": "refused"}) as client:
        response = ask(client, max_tokens=1)
        assert "system" not in response.headers["x-rolesafe-roles"]
        assert "user" in response.headers["x-rolesafe-roles"]
        refused(ask(client, [{"role": "developer", "content": "x"}]), 403, "role_not_allowed", "'developer'")


@pytest.mark.parametrize(
    "changes, fragments",
    [
        ({"host": "0.0.0.0"}, ["`api_key`", "'0.0.0.0'", "ROLESAFE_API_KEY"]),
        ({"host": "example.org"}, ["`api_key`"]),
        ({"api_key": "x"}, ["`api_key`", "8 characters"]),
        ({"port": 70000}, ["`port`"]),
        ({"timeout_s": 0}, ["`timeout_s`"]),
        ({"max_queue": 0}, ["`max_queue`"]),
        ({"roles": {"user": "system"}}, ["`roles['user']`", "at most the privilege", "'system'"]),
        ({"roles": {"boss": "user"}}, ["`roles`", "'boss'"]),
        ({"variable_roles": {"tools": "boss"}}, ["`variable_roles['tools']`", "'boss'"]),
        ({"variable_roles": {"x": "user"}}, ["`variable_roles`", "'x'"]),
    ],
)
def test_settings_invalid_raise(model, tokenizer, changes, fragments):
    with pytest.raises(ValueError) as error:
        Engine(model, tokenizer, ServeSettings(**{"name": "tiny", **changes}))
    assert all(fragment in str(error.value) for fragment in fragments), error.value


class Slow(Engine):
    """Engine whose batches take a time per token and never end by themselves."""

    def _generate(self, jobs):
        while not all(job.expired() for job in jobs):
            time.sleep(0.01)
            for job in jobs:
                if not job.done:
                    job.feed(70, frozenset())


def test_time_limit_ends_a_reply(start, ask):
    with start(engine=Slow, timeout_s=0.2, max_new_tokens=200) as client:
        refused(ask(client, max_tokens=200), 504, "timeout")
        stream = ask(client, max_tokens=200, stream=True)
        assert stream.status_code == 200
        last = stream.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


def wait_until(reached):
    until = time.monotonic() + 60
    while not reached() and time.monotonic() < until:
        time.sleep(0.01)
    assert reached()


def test_full_queue_is_refused(start, ask):
    free = threading.Event()

    class Held(Engine):
        def _generate(self, jobs):
            free.wait(60)
            super()._generate(jobs)

    with start(engine=Held, max_queue=1, max_batch_size=1) as client:
        engine = client.engine
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(2)]
        for thread, reached in zip(threads, (lambda: engine._running, lambda: engine._jobs), strict=True):
            thread.start()
            wait_until(reached)
        response = ask(client)
        free.set()
        refused(response, 429, "queue_full")
        assert response.headers["retry-after"] == "1"
        for thread in threads:
            thread.join()


def test_failure_of_the_model_is_an_error_and_the_server_goes_on(start, ask):
    class Failing(Engine):
        broken = True

        def _generate(self, jobs):
            if self.broken:
                raise RuntimeError("secret reason")
            super()._generate(jobs)

    with start(engine=Failing) as client:
        response = ask(client)
        refused(response, 500, "failed")
        assert "secret" not in response.text
        client.engine.broken = False
        assert ask(client).status_code == 200


def test_shutdown_ends_running_replies(start, ask):
    found = []
    with start(engine=Slow, max_new_tokens=200) as client:
        thread = threading.Thread(target=lambda: found.append(ask(client, max_tokens=200)))
        thread.start()
        wait_until(lambda: client.engine._running)
        client.engine.close(60)
        thread.join()
        refused(found[0], 503, "closed")
        refused(ask(client), 503, "closed")
        assert client.get("/health").status_code == 503


def test_plain_model_is_served_without_roles(start, ask, tokenizer):
    plain = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4).eval()
    with start(served=plain) as client:
        assert not client.engine.aware
        assert ask(client).status_code == 200


def test_court_holds_in_replies_and_streams(start, ask):
    with start() as client:
        free = ask(client, max_tokens=24).json()["choices"][0]["message"]["content"]
    letters = tuple(dict.fromkeys(c for c in free if c.isprintable() and c not in " \ufffd"))[:3]
    articles = Articles((ForbiddenPhrases(name="x", phrases=letters),), "")
    with start(articles=articles) as client:
        text = ask(client, max_tokens=24).json()["choices"][0]["message"]["content"]
        assert not any(c.casefold() in text.casefold() for c in letters)
        assert text != free
        streamed = ask(client, max_tokens=24, stream=True).text
        parts = [json.loads(e[6:]) for e in streamed.split("\n\n") if e.startswith("data: {")]
        assert "".join(p["choices"][0]["delta"].get("content", "") for p in parts) == text


def test_log_has_roles_and_no_text(start, ask, tmp_path):
    file = tmp_path / "log.jsonl"
    with start(log=file) as client:
        ask(client)
        ask(client, stream=True)
        ask(client, temperature=9)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 400]
    assert lines[0]["roles"] == lines[1]["roles"]
    assert lines[0]["roles"].keys() == {"system", "user", "assistant"}
    assert lines[1]["completion_tokens"] == 8
    assert MESSAGES[1]["content"] not in file.read_text()
