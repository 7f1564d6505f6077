"""Fixtures: a tiny role-aware model behind the server, and a client of it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import rolesafe
from rolesafe.serve import Engine, ServeSettings, create_app
from rolesafe.training.tiny import text_tokenizer, tiny_llama
from tests.retrain.conftest import ROWS

TEMPLATE = (
    "{% if tools %}<|system|> {{ tools | tojson }}</s>{% endif %}"
    "{% for d in documents or [] %}<|tool|> {{ d.text }}</s>{% endfor %}"
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something about rain."}]
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = text_tokenizer([" ".join(row.values()) for row in ROWS], 512)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def model(tokenizer):
    base = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
    base.config.max_position_embeddings = 512
    pieces = [i for i in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([i])]
    with torch.no_grad():  # the reply is text: no parts of characters
        base.get_input_embeddings().weight[pieces] = 0.0
    return rolesafe.patch(base, rolesafe.RoleConfig.preset("channel")).eval()


@pytest.fixture(scope="session")
def start(model, tokenizer):
    """Return a context manager: a client of a server with these settings."""
    from starlette.testclient import TestClient

    @contextmanager
    def make(articles=None, engine=Engine, served=None, raises=True, **changes):
        settings = ServeSettings(**{"name": "tiny", "max_new_tokens": 64, "batch_wait_s": 0.0, **changes})
        running = engine(served or model, tokenizer, settings, articles)
        with TestClient(create_app(running), base_url="http://localhost", raise_server_exceptions=raises) as client:
            client.engine = running
            yield client
        assert not running.alive

    return make


@pytest.fixture(scope="module")
def client(start):
    with start() as client:
        yield client


@pytest.fixture(scope="session")
def ask():
    """Return a function that sends a chat completion."""

    def send(client, messages=MESSAGES, **options):
        body = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0, **options}
        return client.post("/v1/chat/completions", json=body)

    return send
