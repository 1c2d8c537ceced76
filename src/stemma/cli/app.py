"""The application that commands register with, and what they share: options, printing, loading."""

import json
import os
from typing import Annotated, Any

import typer

from stemma.core.errors import UsageError, printable

app = typer.Typer(
    name="stemma",
    help="From a folder of text to a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help="A run, stage, model folder, GGUF file or asset.")]
System = Annotated[str | None, typer.Option(help="A system message, where the template has one.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Tokens to write at most.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest.")]
TopP = Annotated[float | None, typer.Option(help="Share of probability kept.")]
TopK = Annotated[int | None, typer.Option(help="Candidates kept; 0: all.")]
MinP = Annotated[float | None, typer.Option(help="Least share of the best.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="1: none.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text to stop before; repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]


def show_version(asked: bool) -> None:
    """Print the version and leave: before a command is asked for, hence from its own callback."""
    if asked:
        from importlib import metadata

        print(metadata.version("stemma-lm"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Print the version."),
    ] = False,
) -> None:
    """From a folder of text to a language model."""
    if debug:
        os.environ["STEMMA_DEBUG"] = "1"


def put(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(facts: dict[str, Any]) -> None:
    """Names and values in two columns."""
    wide = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        print(f"{name.replace('_', ' '):<{wide}}  {printable(shown)}")


def chosen(**given: Any) -> dict[str, Any]:
    """The settings that were given; the others are the model's own."""
    return {name: value for name, value in given.items() if value is not None}


def loaded(model: str, device: str) -> tuple[Any, Any]:
    """A model that goes on from a text, and its tokenizer, without which nothing can be said."""
    from stemma import api

    network, tokenizer = with_tokenizer(model, device)
    api.require_writer(network)
    return network, tokenizer


def with_tokenizer(model: str, device: str) -> tuple[Any, Any]:
    """A model of any kind and its tokenizer."""
    from stemma import api
    from stemma.core.device import pick

    network, tokenizer = api.load(model, device=pick(device))
    if tokenizer is None:
        raise UsageError("the model has no tokenizer", place=model, fix="add tokenizer.json")
    return network, tokenizer


def template_of(
    model: str, network: Any, tokenizer: Any, *, raw: bool, system: str | None
) -> tuple[Any, frozenset[int]]:
    """The renderer of a model, None where texts are continued, and the tokens that end an answer.

    Raises UsageError for a system message that no template would take.
    """
    from stemma import api

    end_ids = api.end_ids(network, tokenizer)
    if tokenizer.template is not None and not raw:
        renderer = api.chat_renderer(tokenizer, place=model)
        return renderer, end_ids | api.turn_ends(renderer)
    if system is not None:
        what = "has no chat template, so it takes no system message"
        raise UsageError(what, place=model, fix="leave --system out")
    return None, end_ids


def utf8_text(text: str, place: str) -> str:
    """A text if it is one: undecodable bytes of an argument arrive as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"not UTF-8 text (character {error.start + 1})"
        raise UsageError(what, place=place, fix="give UTF-8") from error
    return text
