"""`rolesafe chat`: turns, commands, two models, plain and patched."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer
from typer.testing import CliRunner

import rolesafe
from rolesafe.attacks import replies
from rolesafe.chat.session import Session, Speaker, _Stream
from rolesafe.chat.terminal import run_chat
from rolesafe.cli import app
from rolesafe.court import Articles, ForbiddenPhrases
from rolesafe.retrain import load_retrained
from tests.retrain.conftest import checkpoint  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def aware(checkpoint, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("aware")
    model, tokenizer = load_retrained(str(checkpoint))
    rolesafe.patch(model, rolesafe.RoleConfig.preset("channel")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def speaker(path, **changes) -> Speaker:
    model, tokenizer = load_retrained(str(path))
    return Speaker(**{"name": "m", "model": model, "tokenizer": tokenizer, "max_new_tokens": 6, **changes})


@pytest.mark.parametrize("kind", ["checkpoint", "aware"])
def test_reply_streams_and_is_the_greedy_one(request, kind):
    one = speaker(request.getfixturevalue(kind))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something about rain."}]
    seen: list[str] = []
    text = one.reply(messages, seen.append)
    assert text == replies(one.model, one.tokenizer, [messages], max_new_tokens=6)[0]
    assert seen[-1] == text


def test_stream_writes_whole_characters(checkpoint):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    end = tokenizer.eos_token_id
    seen: list[str] = []
    stream = _Stream(tokenizer, {end}, seen.append)
    stream.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in [*tokenizer("I like \u00e9 and rain.", add_special_tokens=False).input_ids, end]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.text == seen[-1] == "I like \u00e9 and rain."
    assert len(seen) > 3
    assert not any("\ufffd" in text for text in seen)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


def test_sampling_draws(checkpoint):  # noqa: F811
    one = speaker(checkpoint, temperature=5.0, max_new_tokens=12)
    torch.manual_seed(0)
    texts = {one.reply([{"role": "user", "content": "Hi"}], lambda text: None) for _ in range(3)}
    assert len(texts) > 1


class Echo(Speaker):
    """Speaker that replies with its input."""

    def reply(self, messages, write):
        text = f"{self.name}:" + ",".join(f"{m['role'][0]}={m['content']}" for m in messages)
        if "long" in text:
            raise ValueError("`messages`: too \x1b[31mlong")
        write(text)
        return text


def chat(lines, names=("A",), terminal=False, system=""):
    session = Session(tuple(Echo(name=name, model=None, tokenizer=None) for name in names), system)
    out = io.StringIO()
    console = Console(file=out, width=150, force_terminal=terminal, color_system="standard" if terminal else None)
    run_chat(session, lines, console, echo=True)
    return out.getvalue(), session


def test_chat_commands_make_turns():
    text, session = chat(["hi", "/system Be kind.", "/tool 42", "", "/nope", "/help", "/tool", "/quit", "never"])
    assert session.messages(0) == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "A:u=hi"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "A:s=Be kind.,u=hi,a=A:u=hi,t=42"},
    ]
    assert "unknown command /nope" in text
    assert "/reset" in text
    assert "expected the tool's result" in text
    assert "never" not in text


def test_chat_reset_keeps_the_system_prompt():
    _, session = chat(["hi", "/reset"], system="S")
    assert session.messages(0) == [{"role": "system", "content": "S"}]


def test_each_speaker_has_its_own_history():
    text, session = chat(["hi", "again"], names=("A", "B"))
    assert session.messages(0)[1]["content"] == "A:u=hi"
    assert session.messages(1)[1]["content"] == "B:u=hi"
    assert "[A] A:u=hi" in text
    assert "[B] B:u=hi" in text


def test_turn_with_error_is_removed():
    text, session = chat(["hi", "a long one", "ok"])
    assert "error: `messages`: too \\x1b[31mlong" in text
    assert [m["role"] for m in session.messages(0)] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("names", [("A",), ("A", "B")])
def test_chat_on_a_terminal_escapes_control_characters(names):
    text, _ = chat(["evil\x1b]0;x\x07"], names=names, terminal=True)
    assert "\x1b[33m" in text
    assert "\x1b]0" not in text
    assert "\\x1b]0;x\\x07" in text


def test_conversation_beyond_the_context_raises(checkpoint):  # noqa: F811
    one = speaker(checkpoint)
    with pytest.raises(ValueError, match="expected a conversation shorter than the context of 2048 tokens"):
        one.reply([{"role": "user", "content": "house " * 2100}], lambda text: None)


def test_chat_command_reads_lines_from_a_pipe(aware, checkpoint):  # noqa: F811
    arguments = ["chat", str(aware), "--compare", str(checkpoint), "--system", "Be brief.", "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, arguments, input="Hello\n/tool sun\n")
    assert result.exit_code == 0, result.output
    joined = "".join(result.output.split())
    assert joined.count(f"[{aware}]") == joined.count(f"[{checkpoint}]") == 2
    assert "   system Be brief." in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("/no/such/model",), "`model`"),
        (("CHECKPOINT", "--dtype", "int3"), "`--dtype`"),
        (("CHECKPOINT", "--device", "mars"), "`--device`"),
        (("CHECKPOINT", "--temperature", "-1"), "`--temperature`"),
        (("CHECKPOINT", "--compare", "/no/such/model"), "`model`"),
    ],
)
def test_chat_bad_argument_prints_one_line(checkpoint, arguments, named):  # noqa: F811
    given = [str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["chat", *given])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert named in line


@pytest.mark.parametrize("kind", ["checkpoint", "aware"])
def test_court_holds_in_chat(request, kind):
    """The first letters of the free reply are forbidden; the streamed text keeps the article."""
    path = request.getfixturevalue(kind)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something about rain."}]
    options = {"temperature": 1.0, "max_new_tokens": 24}
    torch.manual_seed(0)
    free = speaker(path, **options).reply(messages, lambda text: None)
    letters = tuple(dict.fromkeys(c for c in free if c.isprintable() and c not in " \ufffd"))[:3]
    assert letters, repr(free)
    articles = Articles((ForbiddenPhrases(name="x", phrases=letters),), "")
    seen: list[str] = []
    torch.manual_seed(0)
    text = speaker(path, court=articles, **options).reply(messages, seen.append)
    assert not any(c.casefold() in part.casefold() for c in letters for part in [text, *seen])
    assert text != free


def test_command_with_bad_court_file_names_it(tmp_path):
    file = tmp_path / "court.json"
    file.write_text('{"articles": [{"kind": "law"}]}')
    result = CliRunner().invoke(app, ["chat", "nowhere", "--court", str(file)])
    assert result.exit_code != 0
    assert "--court" in f"{result.output}{result.exception}"
