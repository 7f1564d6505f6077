"""Start the server with a tiny role-aware model, run a program against it and read the server's log.

The model is random: its replies mean nothing. The record shows that the requests of the program are understood, and in
which roles their tokens arrive.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import rolesafe
from rolesafe.training.tiny import text_tokenizer, tiny_llama

ROOT = Path(__file__).parents[2]
NAME = "tiny"

PACKAGES = {
    "openai_library": "openai",
    "garak_probe": "garak",
    "inspect_task": "inspect_ai",
    "agentdojo_task": "agentdojo",
    "pyrit_chat": "pyrit",
    "lm_eval_task": "lm_eval",
}
"""Package of each program in `programs/`."""

TEMPLATE = (
    "{% if tools %}<|system|> {{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

TAIL = 12
"""Last lines of the output of a program that are kept."""


def save_tiny(folder: Path) -> None:
    """Save a tiny random role-aware model whose context holds the prompts of an agent."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    tokenizer = text_tokenizer(texts, 4096)
    tokenizer.chat_template = TEMPLATE
    model = tiny_llama(len(tokenizer), seed=0, hidden=32, layers=2, heads=4)
    model.config.max_position_embeddings = 16384
    rolesafe.patch(model, rolesafe.RoleConfig.preset("channel")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def serving(model: Path, log: Path, port: int) -> Iterator[str]:
    """Run the server as a process and yield its URL.

    Raises:
        RuntimeError: It does not start.
    """
    arguments = ["serve", str(model), "--name", NAME, "--port", str(port), "--log", str(log), "--max-new-tokens", "64"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, "-m", "rolesafe.cli", *arguments], cwd=ROOT, env=environment)
    try:
        for _ in range(600):
            try:
                with urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except (URLError, OSError):
                time.sleep(0.2)
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with status {server.returncode}")
        else:
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def run_program(program: str, python: str, url: str, log: Path, timeout: int) -> dict[str, Any]:
    """Run a program with an interpreter that has its package, and return its record."""
    before = len(log.read_text().splitlines())
    version = _version(python, PACKAGES[program])
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        given = {"CLIENTS_URL": url, "CLIENTS_MODEL": NAME, "CLIENTS_FOLDER": folder, "HOME": folder}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | given
        file = Path(__file__).parent / "programs" / f"{program}.py"
        try:
            done = subprocess.run(
                [python, str(file)], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
            )
            status, output = done.returncode, done.stderr + done.stdout
        except subprocess.TimeoutExpired as error:
            status, output = -1, str(error)
        for path, name in ((folder, "FOLDER"), (str(ROOT), "ROOT"), (str(Path(python).parents[1]), "ENVIRONMENT")):
            output = output.replace(path, name)
    return {
        "package": PACKAGES[program],
        "version": version,
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        **summary([json.loads(line) for line in log.read_text().splitlines()[before:]]),
        "output": [line[:200] for line in output.strip().splitlines() if line.strip() and "%|" not in line][-TAIL:],
    }


def summary(lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of requests by status, and the tokens of each role in the prompts of all."""
    roles: Counter[str] = Counter()
    for line in lines:
        roles.update(line["roles"])
    order = [name for name in rolesafe.RoleConfig().roles if roles[name]]
    return {
        "requests": len(lines),
        "statuses": dict(sorted(Counter(str(line["status"]) for line in lines).items())),
        "codes": sorted({line["code"] for line in lines if line["code"]}),
        "roles": {name: roles[name] for name in order},
    }


def _version(python: str, package: str) -> str | None:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None
