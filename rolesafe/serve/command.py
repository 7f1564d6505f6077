"""Command `rolesafe serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def serve(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a role-aware chat model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="ROLESAFE_API_KEY", help="Key of the clients. Prefer the variable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the API; default: from its path.")] = None,
    role: Annotated[
        list[str] | None, typer.Option(help="ROLE=OTHER lowers messages of a role, ROLE=refused refuses; repeatable.")
    ] = None,
    variable_role: Annotated[
        list[str] | None, typer.Option(help="tools=ROLE or documents=ROLE; default: least privileged; repeatable.")
    ] = None,
    court: Annotated[str | None, typer.Option(help="File of articles (JSON or YAML) that every reply keeps.")] = None,
    allow_plain: Annotated[bool, typer.Option("--allow-plain", help="Serve a model that is not role-aware.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 1024,
    max_batch_size: Annotated[int, typer.Option(help="Most replies generated together.", min=1)] = 16,
    max_queue: Annotated[int, typer.Option(help="Most replies that wait.", min=1)] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds from a request to the end of its reply.")] = 300.0,
    log: Annotated[Path | None, typer.Option(help="File for one line of JSON per request, without texts.")] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; default: a GPU where there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (as saved), float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Serve a model under OpenAI's API: chat completions, streaming, tools, models.

    Privilege comes from the API role of a message, never from its content. Ctrl-C ends the server.
    """
    from rich.console import Console
    from transformers.utils import logging

    from rolesafe.court.storing import load_articles_file
    from rolesafe.extras import require
    from rolesafe.retrain.loading import load_chat_model
    from rolesafe.serve.engine import Engine
    from rolesafe.serve.run import serve as run
    from rolesafe.serve.settings import ServeSettings
    from rolesafe.terminal import as_text

    for module in ("fastapi", "uvicorn"):  # before the model is loaded
        require(module, "serve")
    settings = ServeSettings(
        name=name or Path(model).name or model,
        host=host,
        port=port,
        api_key=api_key,
        roles=_pairs(role, "--role"),
        variable_roles=_pairs(variable_role, "--variable-role"),
        max_new_tokens=max_new_tokens,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        timeout_s=timeout,
        log=log,
    )
    if log is not None:
        with log.open("a"):  # an error now, not at the first request
            pass
    articles = None if court is None else load_articles_file(court)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(stderr=True)
    loaded, tokenizer = load_chat_model(model, device, dtype, prefix="--")
    _check_aware(loaded, model, allow_plain)
    engine = Engine(loaded, tokenizer, settings, articles)
    if not engine.aware:
        console.print("This model is not role-aware: roles are printed by its chat template only.", style="yellow")
    address = f"[{host}]" if ":" in host else host
    console.print(as_text(f"{settings.name}: http://{address}:{port}/v1"))
    run(engine)


def _check_aware(model: Any, path: str, allow_plain: bool) -> None:
    from rolesafe.patching import is_patched

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not allow_plain and not is_patched(inner) and not is_patched(model):
        raise ValueError(
            f"`model`: expected a role-aware model, got {path!r}, which has no role layer. Train one with `rolesafe "
            "retrain`, or pass --allow-plain."
        )


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, sign, target = value.partition("=")
        if not sign or not name or not target or name in pairs:
            raise ValueError(f"`{option}`: expected NAME=ROLE, each name once, got {value!r}. Correct it.")
        pairs[name] = target
    return pairs
