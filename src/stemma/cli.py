"""The command line: finds the subcommand, imports only that, prints results to stdout.

Messages and progress go to stderr. Every failure is one line, `error: place: what; way out`, with
the exit code of its kind; `--debug` adds the traceback.
"""

import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.core import progress, signals
from stemma.core.errors import (
    ResourceError,
    StemmaError,
    StoppedError,
    UsageError,
    nearest,
    printable,
)
from stemma.core.files import resource_error

app = typer.Typer(
    name="stemma",
    help="From a folder of text to a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# click's base of usage mistakes, wherever this version of typer keeps it
Mistake = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
ENVIRONMENT = ("STEMMA_HOME", "STEMMA_DEBUG")
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


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, such as base.tokens=200k")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Run every stage again.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace stages whose settings or inputs changed.")
    ] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: skip what is complete, resume what is half done."""
    from stemma.pipeline import recipe as recipes
    from stemma.pipeline import runner

    if fresh and overwrite:
        raise UsageError("--fresh and --overwrite exclude each other", fix="choose one")
    path = recipes.find(recipe)
    shipped = recipe in recipes.shipped() and not Path(recipe).exists()
    loaded = recipes.load(path, overrides or [])
    if until is not None and until not in loaded.stages:
        raise UsageError(
            "no such stage", place=f"--until {until}", fix=nearest(until, loaded.stages)
        )
    job = runner.Run(
        recipe=loaded,
        root=Path() if shipped else path.parent,
        out=Path(loaded.out or f"runs/{loaded.name}").expanduser(),
        recipe_text=path.read_text("utf-8-sig"),
        command=["stemma", *sys.argv[1:]],
        overrides=tuple(overrides or ()),
        until=until,
        fresh=fresh,
        overwrite=overwrite,
    )
    if dry_run:
        rows = runner.preview(job)
        put(rows) if as_json else print("\n".join(runner.preview_lines(rows)))
        return
    try:
        report = runner.execute(job, say=lambda line: progress.LOG.info("%s", line))
    except (StoppedError, signals.StopNow):
        if fresh:
            progress.LOG.warning("to go on, give the same command without --fresh")
        raise
    outcome = runner.outcome(job, report)
    put(outcome) if as_json else print("\n".join(runner.outcome_lines(outcome)))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder of your documents.")],
    output: Annotated[Path | None, typer.Option(help="Where to write; default NAME.yaml")] = None,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for your own documents."""
    from stemma.pipeline.initial import write_recipe

    path = write_recipe(folder, output)
    typed = printable(shlex.quote(str(path)))
    said = f"wrote {printable(path)}\nnext: stemma run {typed}"
    put({"recipe": str(path)}) if as_json else print(said)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="A run, stage, model folder, GGUF file or asset.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from; - reads standard input.")],
    raw: Annotated[bool, typer.Option(help="Continue the text as it stands.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to write at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of probability kept.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Candidates kept; 0: all.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Least share of the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1: none.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text to stop before; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    as_json: Json = False,
) -> None:
    """Write with a model."""
    from stemma import api
    from stemma.core.device import pick
    from stemma.infer.generate import generate as write
    from stemma.infer.generate import stream

    text = prompt_text(prompt)
    network, tokenizer = api.load(model, device=pick(device))
    if tokenizer is None:
        raise UsageError("the model has no tokenizer", place=model, fix="add tokenizer.json")
    if tokenizer.template is not None and not raw:
        raise UsageError(
            "the model has a chat template, which this version cannot apply",
            place=model,
            fix="use --raw to continue plain text",
        )
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
    }
    sampling = api.sampling(network, **{k: v for k, v in given.items() if v is not None})
    end_ids = api.end_ids(network, tokenizer)
    if as_json:
        made = write(network, tokenizer, [text], sampling, end_ids=end_ids)[0]
        names = ("text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "seed")
        put({name: getattr(made, name) for name in names})
        return
    # a terminal obeys control characters; a file or another program gets the text as it is
    shown = for_terminal if sys.stdout.isatty() else str
    sys.stdout.write(shown(text))
    for piece in stream(network, tokenizer, [text], sampling, end_ids=end_ids):
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()
    print()


def for_terminal(text: str) -> str:
    """A part of a text for people to read: of control characters only lines and tabs act."""
    return printable(text, keep="\n\t")


def prompt_text(prompt: str) -> str:
    """The text to go on from; `-` reads standard input. Raises UsageError where it is no text."""
    place = "standard input" if prompt == "-" else "--prompt"
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
        text.encode()  # undecodable bytes of an argument arrive as lone surrogates
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        decoding = isinstance(error, UnicodeDecodeError)
        at = f"byte {error.start}" if decoding else f"character {error.start + 1}"
        raise UsageError(f"not UTF-8 text ({at})", place=place, fix="give UTF-8") from error
    return text


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A run, stage, model folder, GGUF file or asset.")],
    as_json: Json = False,
) -> None:
    """Say what a model is: parameters, bytes, context, template, licence."""
    from stemma import api

    facts = api.info(model)
    put(facts) if as_json else print_table(facts)


def print_table(facts: dict[str, Any]) -> None:
    """Names and values in two columns."""
    wide = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        print(f"{name.replace('_', ' '):<{wide}}  {printable(shown)}")


@app.command()
def pull(
    asset: Annotated[str, typer.Argument(help="A name from `stemma list assets`.")],
    as_json: Json = False,
) -> None:
    """Fetch an asset of the catalogue into the cache."""
    from stemma.core import assets

    found = assets.find(asset)
    with progress.progress(f"pull {found.name}", found.bytes or 1) as update:
        folder = assets.pull(found.name, on_progress=update)
    facts = {
        "asset": found.name,
        "folder": str(folder),
        "licence": found.licence,
        "files": len([f for f in folder.rglob("*") if f.is_file()]),
    }
    put(facts) if as_json else print_table(facts)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="assets, families or recipes")],
    as_json: Json = False,
) -> None:
    """List assets, families or recipes."""
    kinds = {"assets": listed_assets, "families": listed_families, "recipes": listed_recipes}
    if what not in kinds:
        raise UsageError(f"cannot list {what}", place="stemma list", fix=nearest(what, kinds))
    rows = kinds[what]()
    if as_json:
        put(rows)
        return
    wide = max(len(name) for name in rows)
    for name, summary in rows.items():
        print(f"{name:<{wide}}  {summary}")


def listed_assets() -> dict[str, str]:
    from stemma.core import assets

    return {
        name: f"{asset.summary} ({asset.bytes / 1e6:.1f} MB, {asset.licence})"
        for name, asset in sorted(assets.catalogue().items())
    }


def listed_families() -> dict[str, str]:
    from stemma import api

    presets = api.presets()
    return {
        family: "presets: " + ", ".join(n for n, f in presets.items() if f == family)
        for family in api.families()
    }


def listed_recipes() -> dict[str, str]:
    from stemma.pipeline import recipe

    return recipe.shipped()


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A recipe key, such as pretrain.learning_rate")],
    as_json: Json = False,
) -> None:
    """Say what a recipe key means, its type and its default."""
    from dataclasses import asdict

    from stemma.pipeline import reference

    found = reference.explain(key)
    if as_json:
        put([asdict(entry) for entry in found])
        return
    for entry in found:
        default = f", default {entry.default}" if entry.default else ", required"
        print(f"{entry.key}\n    {entry.meaning}\n    {entry.type}{default}")


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Json = False,
) -> None:
    """Write the report of a run again, from its files."""
    from stemma.pipeline.report import write_report

    if not (run_folder / "run.json").is_file():
        raise UsageError("not a run folder", place=run_folder, fix="name a folder below runs/")
    path = write_report(run_folder)
    put({"report": str(path)}) if as_json else print(path)


def check_repeated(arguments: list[str]) -> None:
    """An option given twice is a mistake, except those that collect; so is --no-X beside --X."""
    seen: set[str] = set()
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if name.startswith("--") and name != "--stop":
            if name in seen:
                raise UsageError(f"{name} is given twice", fix="give it once")
            other = f"--{name[5:]}" if name.startswith("--no-") else f"--no-{name[2:]}"
            if other in seen:
                raise UsageError(f"{other} and {name} exclude each other", fix="choose one")
            seen.add(name)


def check_environment() -> None:
    """A misspelt STEMMA_ variable would be ignored without a word."""
    for name in os.environ:
        if name.startswith("STEMMA_") and name not in ENVIRONMENT:
            hint = nearest(name, ENVIRONMENT)
            progress.LOG.warning("the environment variable %s is not known; %s", name, hint)


def out_of_memory(error: BaseException) -> bool:
    """Torch tells of a full memory by a RuntimeError, on the CPU and on a GPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def one_line(error: BaseException) -> tuple[str, int]:
    """The line and the exit code for anything that can go wrong."""
    if isinstance(error, StemmaError):
        return str(error), error.exit_code
    if isinstance(error, Mistake):
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return str(UsageError(message, fix="see `stemma --help`")), UsageError.exit_code
    if isinstance(error, MemoryError) or out_of_memory(error):
        fix = "use a smaller batch, context or model"
        return str(ResourceError("out of memory", fix=fix)), ResourceError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        long = UsageError("the name is too long", place=error.filename, fix="name a file or folder")
        return str(long), long.exit_code
    if isinstance(error, OSError):
        return str(resource_error(error, error.filename or "system")), ResourceError.exit_code
    bug = StemmaError(f"{type(error).__name__}: {error}", fix="this is a bug: run with --debug")
    return str(bug), bug.exit_code


def main() -> None:
    """Entry point of the `stemma` command."""
    # larger pages for tensors, where Linux has them: torch spends less time on page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    progress.set_up()
    try:
        signals.catch()
        check_environment()
        check_repeated(sys.argv[1:])
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader left; a second write at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except signals.StopNow as stop:
        signals.ignore_further()
        print("stopped: by a signal", file=sys.stderr)
        code = stop.exit_code
    except Exception as error:
        if os.environ.get("STEMMA_DEBUG"):
            raise
        line, code = one_line(error)
        head = "stopped" if isinstance(error, StoppedError) else "error"
        print(f"{head}: {printable(line)}", file=sys.stderr)
    sys.exit(code or 0)
