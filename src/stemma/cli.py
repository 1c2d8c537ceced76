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
    model: Annotated[
        str | None,
        typer.Option(help="A model to go on from, such as smollm2-135m; default: from nothing"),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Conversations to learn answering from: a file or folder")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for your own documents."""
    from stemma.pipeline.initial import write_recipe

    path = write_recipe(folder, output, model=model, examples=examples)
    typed = printable(shlex.quote(str(path)))
    said = f"wrote {printable(path)}\nnext: stemma run {typed}"
    put({"recipe": str(path)}) if as_json else print(said)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="What to answer or to go on from; - reads standard input.")
    ] = None,
    system: System = None,
    raw: Annotated[bool, typer.Option(help="Continue the text as it stands.")] = False,
    prompts: Annotated[
        Path | None, typer.Option("--input", help="A file of prompts, one JSON object a line.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where answers to --input go.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what --output holds.")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write with a model: answer a prompt, continue a text, or answer a file of prompts."""
    check_purpose(prompt, prompts, output, overwrite)
    if raw and system is not None:
        raise UsageError("--raw and --system exclude each other", fix="choose one")
    given = chosen(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop) if stop else None,
        seed=seed,
    )
    told = None if system is None else utf8_text(system, "--system")
    if prompts is not None and output is not None:
        facts = answer_file(model, device, prompts, output, told, raw, overwrite, given)
        put(facts) if as_json else print(f"{facts['answers']} answers in {printable(output)}")
    elif prompt is not None:
        answer_prompt(model, device, prompt_text(prompt), told, raw, given, as_json)


def check_purpose(
    prompt: str | None, prompts: Path | None, output: Path | None, overwrite: bool
) -> None:
    """One prompt, or a file of them with a file for the answers. Raises UsageError."""
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --input exclude each other", fix="choose one")
    if prompt is None and prompts is None:
        raise UsageError("nothing to write about", fix="give --prompt TEXT, or --input FILE")
    if prompts is not None and output is None:
        raise UsageError("--input has no --output", fix="name a file for the answers")
    if prompts is None and (output is not None or overwrite):
        name = "--overwrite" if output is None else "--output"
        raise UsageError(f"{name} belongs to --input", fix="leave it out, or give --input FILE")


def chosen(**given: Any) -> dict[str, Any]:
    """The settings that were given; the others are the model's own."""
    return {name: value for name, value in given.items() if value is not None}


def loaded(model: str, device: str) -> tuple[Any, Any]:
    """A model and its tokenizer, without which nothing can be said."""
    from stemma import api
    from stemma.core.device import pick

    network, tokenizer = api.load(model, device=pick(device))
    if tokenizer is None:
        raise UsageError("the model has no tokenizer", place=model, fix="add tokenizer.json")
    return network, tokenizer


def answer_prompt(
    model: str,
    device: str,
    text: str,
    system: str | None,
    raw: bool,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    """Answer one prompt by the chat template; go on from it where there is none, or with --raw."""
    from stemma import api
    from stemma.infer.generate import generate as write
    from stemma.infer.generate import stream

    network, tokenizer = loaded(model, device)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=raw, system=system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "user", "content": text}]
    prompt = text if renderer is None else api.prompt_of(renderer, messages)
    if as_json:
        made = write(network, tokenizer, [prompt], sampling, end_ids=end_ids)[0]
        names = ("text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "seed")
        put({name: getattr(made, name) for name in names})
        return
    # a terminal obeys control characters; a file or another program gets the text as it is
    shown = for_terminal if sys.stdout.isatty() else str
    sys.stdout.write(shown(text) if renderer is None else "")
    for piece in stream(network, tokenizer, [prompt], sampling, end_ids=end_ids):
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()
    print()


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


def answer_file(
    model: str,
    device: str,
    prompts: Path,
    output: Path,
    system: str | None,
    raw: bool,
    overwrite: bool,
    given: dict[str, Any],
) -> dict[str, Any]:
    """Answer a file of prompts into another; all lines are checked before the first answer."""
    from stemma import api
    from stemma.infer import batch

    batch.check_output(prompts, output)
    asked = batch.read_prompts(prompts)
    network, tokenizer = loaded(model, device)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=raw, system=system)
    reader = batch.Reader(tokenizer, renderer, system, network.config.context)
    jobs = batch.encode_prompts(prompts, asked, reader)
    writer = batch.Writer(network, tokenizer, sampling, end_ids)
    with progress.progress("generate", len(jobs)) as update, signals.graceful() as request:
        kept = batch.write_answers(
            writer, jobs, output, overwrite=overwrite, request=request, update=update
        )
    if kept:
        whole = "nothing was left to do" if kept == len(jobs) else "went on from there"
        progress.LOG.info("%s: %d answers were there already; %s", output, kept, whole)
    return {"output": str(output), "answers": len(jobs), "kept": kept}


def for_terminal(text: str) -> str:
    """A part of a text for people to read: of control characters only lines and tabs act."""
    return printable(text, keep="\n\t")


def prompt_text(prompt: str) -> str:
    """The prompt; `-` reads standard input. Raises UsageError where it is no text."""
    if prompt != "-":
        return utf8_text(prompt, "--prompt")
    try:
        return utf8_text(sys.stdin.read(), "standard input")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise UsageError(what, place="standard input", fix="give UTF-8") from error


def utf8_text(text: str, place: str) -> str:
    """A text if it is one: undecodable bytes of an argument arrive as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"not UTF-8 text (character {error.start + 1})"
        raise UsageError(what, place=place, fix="give UTF-8") from error
    return text


@app.command()
def chat(
    model: Model,
    system: System = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 1024,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = None,
    device: Device = "auto",
) -> int:
    """Talk with a model; /help says what can be typed."""
    from stemma import api, terminal
    from stemma.infer.chat import Chat

    given = chosen(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop) if stop else None,
        seed=seed,
    )
    told = None if system is None else utf8_text(system, "--system")
    network, tokenizer = loaded(model, device)
    if tokenizer.template is None:
        fix = "use `stemma generate --raw` to continue a text"
        raise UsageError("has no chat template", place=model, fix=fix)
    sampling = api.sampling(network, **given)
    renderer, end_ids = template_of(model, network, tokenizer, raw=False, system=told)
    talk = Chat(network, tokenizer, renderer.prompt, sampling, end_ids=end_ids)
    if told is not None:
        talk.instruct(told)
    return terminal.talk(talk, f"{model}: context {network.config.context:,} tokens; /help, /quit")


@app.command()
def info(
    model: Model,
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
