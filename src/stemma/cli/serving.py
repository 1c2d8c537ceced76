"""The command `serve`: models over HTTP, and a page to talk with them."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.app import Device, app, loaded, template_of
from stemma.core import extras, progress, signals
from stemma.core.errors import UsageError

if TYPE_CHECKING:
    from stemma.serve.engine import Served


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Runs, stages, model folders, GGUF files, assets."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; default: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one a line; a client must send one.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without a key.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Serve models: an OpenAI-compatible API, and a chat page in the browser."""
    extras.require("serve")
    from stemma.serve import guard, server

    names = model_names(models)
    keys = [] if api_key_file is None else guard.read_keys(api_key_file)
    server.require_private(host, keys, insecure=insecure)
    with server.bind(host, port) as sock:  # before models are loaded, which takes longer
        offered = [offer(name, *loaded(model, device)) for name, model in names.items()]
        address = server.address_of(sock)

        def ready() -> None:
            for one in offered:
                how = "chat and text" if one.renderer is not None else "text; no chat template"
                progress.LOG.info("serving %s (%s, context %d)", one.name, how, one.context)
            progress.LOG.info("chat page: %s   API: %s/v1   Ctrl-C stops", address, address)
            with suppress(BrokenPipeError):  # nobody reads it: the clients know the address
                print(address, flush=True)

        running, _ = server.build_server(offered, sock, keys=keys, ready=ready)
        try:
            running.run(sockets=[sock])
        except signals.StopNow:
            signals.ignore_further()
            progress.LOG.info("stopped")
        if running.force_exit:
            leave_now()


def leave_now() -> None:
    """End the process with the model at work: waiting for its pass is what was not wanted."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(0)


def model_names(models: list[str]) -> dict[str, str]:
    """What each model is called, to the argument that names it. Raises UsageError for two alike.

    A stage of a run is RUN-STAGE, everything else goes by its last part: "runs/quickstart/chat" ->
    "quickstart-chat", "models/tiny.gguf" -> "tiny".
    """
    names: dict[str, str] = {}
    for model in models:
        path = Path(model).expanduser()
        whole = path.resolve() if path.exists() else path
        name = whole.stem if whole.is_file() else whole.name
        if (whole.parent / "run.json").is_file():
            name = f"{whole.parent.name}-{name}"
        if name in names:
            what = f"{names[name]} and {model} would both be called {name}"
            raise UsageError(what, place="MODEL", fix="give one of them, or rename a folder")
        names[name] = model
    return names


def offer(name: str, network: Any, tokenizer: Any) -> "Served":
    """A loaded model with what serving it needs."""
    from stemma import api
    from stemma.serve.engine import Served

    renderer, chat_ends = template_of(name, network, tokenizer, raw=False, system=None)
    return Served(
        name=name,
        network=network,
        tokenizer=tokenizer,
        sampling=api.sampling(network),
        text_ends=api.end_ids(network, tokenizer),
        created=int(time.time()),
        renderer=renderer,
        chat_ends=chat_ends,
    )
