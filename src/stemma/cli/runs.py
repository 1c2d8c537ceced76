"""Commands about runs: `run`, `init`, `report`, and `explain` for the keys of a recipe."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stemma.cli.app import Json, app, put
from stemma.core import device, distributed, progress, signals
from stemma.core.errors import StoppedError, UsageError, nearest, printable


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
    reset_data: Annotated[
        bool,
        typer.Option("--reset-data", help="Other data for half-done training: its weights stay."),
    ] = False,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: skip what is complete, resume what is half done."""
    from stemma.pipeline import outcome, runner
    from stemma.pipeline import recipe as recipes

    flags = {"--fresh": fresh, "--overwrite": overwrite, "--reset-data": reset_data}
    if len(chosen := [flag for flag, given in flags.items() if given]) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", fix="choose one")
    with distributed.joined() as world:
        if not world.leads:
            progress.be_quiet()
        path = recipes.find(recipe)
        shipped = recipe in recipes.shipped() and not Path(recipe).exists()
        loaded = recipes.load(path, overrides or [])
        if until is not None and until not in loaded.stages:
            raise UsageError(
                "no such stage", place=f"--until {until}", fix=nearest(until, loaded.stages)
            )
        world.agree({"recipe": loaded.model_dump_json(), **device.versions()})
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
            reset_data=reset_data,
            world=world,
        )
        if not world.leads:
            return None if dry_run else runner.follow(job)
        if dry_run:
            rows = runner.preview(job)
            return put(rows) if as_json else print("\n".join(runner.preview_lines(rows)))
        try:
            report = runner.execute(job, say=lambda line: progress.LOG.info("%s", line))
        except (StoppedError, signals.StopNow):
            if fresh:
                progress.LOG.warning("to go on, give the same command without --fresh")
            raise
        made = outcome.outcome(job, report)
        put(made) if as_json else print("\n".join(outcome.outcome_lines(made)))
    return None


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
        default = ", may be left out" if entry.follows else default
        print(f"{entry.key}\n    {entry.meaning}\n    {entry.type}{default}")
