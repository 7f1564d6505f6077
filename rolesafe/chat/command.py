"""Command `rolesafe chat`."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer


def chat(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a chat model, patched or plain.")],
    compare: Annotated[str | None, typer.Option(help="Second model, shown side by side.")] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.0,
    court: Annotated[str | None, typer.Option(help="File of articles (JSON or YAML) that every reply keeps.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Chat with a model in the terminal, with system, user and tool turns in colour.

    /system TEXT, /tool TEXT, /reset and /quit are commands; everything else is a user turn. Input may be a pipe.
    """
    import sys

    from rich.console import Console
    from transformers.utils import logging

    from rolesafe.chat.session import Session
    from rolesafe.chat.terminal import run_chat, typed_lines
    from rolesafe.court.storing import load_articles_file

    if not 0 <= temperature < math.inf:
        raise ValueError(f"`--temperature`: expected a number >= 0, got {temperature}. Pass 0 for greedy.")
    articles = None if court is None else load_articles_file(court)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = [model] if compare is None else [model, compare]
    console = Console()
    with console.status("loading") if console.is_terminal else _nothing():
        speakers = tuple(_load(name, device, dtype, max_new_tokens, temperature, articles) for name in names)
    run_chat(Session(speakers, system), typed_lines(console), console, echo=not sys.stdin.isatty())


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _load(path: str, device: str | None, dtype: str, max_new_tokens: int, temperature: float, court: Any = None) -> Any:
    from rolesafe.chat.session import Speaker
    from rolesafe.retrain.loading import load_chat_model

    model, tokenizer = load_chat_model(path, device, dtype, prefix="--")
    return Speaker(
        name=path,
        model=model,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        court=court,
    )
