"""Running a recipe: skip what is complete, go on with what is half done, overwrite nothing else.

A stage's fingerprint covers its settings, the fingerprints of its inputs, the seed and a version
of its kind that is raised by hand when its results would change. `stage.json` is the stage's
record (`stemma.pipeline.records`); a folder without one was not made by a run and is never touched.
"""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stemma.core import device as machine
from stemma.core.distributed import ALONE, World
from stemma.core.errors import ResourceError, UsageError, printable
from stemma.core.files import (
    hold,
    make_folder,
    require_writable,
    resource_error,
    sha256_file,
    sha256_json,
    sync_folder,
    write_json,
    write_text,
)
from stemma.data.sources import Kind
from stemma.pipeline import (
    classify,
    curate,
    evaluate,
    export,
    lineage,
    masked,
    pretrain,
    sft,
    tokenizer,
    translate,
)
from stemma.pipeline.following import accepted, dismiss, invite
from stemma.pipeline.recipe import Recipe, Stage, references
from stemma.pipeline.records import (
    FORMAT_VERSION,
    changes,
    judge,
    other_inputs,
    read_record,
    settings,
    with_other_data,
)
from stemma.pipeline.report import write_report
from stemma.pipeline.work import (
    Input,
    Work,
    document_files,
    documents_fingerprint,
    model_fingerprint,
    model_path,
)

KINDS: dict[str, Any] = {
    "curate": curate,
    "tokenizer": tokenizer,
    "pretrain": pretrain,
    "sft": sft,
    "translate": translate,
    "lineage": lineage,
    "masked": masked,
    "classify": classify,
    "evaluate": evaluate,
    "export": export,
}
TRAINERS = (
    pretrain.PretrainStage,
    sft.SftStage,
    translate.TranslateStage,
    masked.MaskedStage,
    classify.ClassifyStage,
)
READERS = (  # of documents
    curate.CurateStage,
    sft.SftStage,
    translate.TranslateStage,
    classify.ClassifyStage,
)
REPORT_AFTER = 20.0  # seconds of a stage after which the report is brought up to date
PAPERS = ("recipe.yaml", "ledger.json", "report.html")  # of a run, beside its stages
SCRATCH = ("steps", "data", "trials")  # folders of a stage that tell their own content
UNTRAINED = (curate.CurateStage, evaluate.EvaluateStage, export.ExportStage)
BEGUN = ("half done", "other data")  # states of a stage that goes on where it was
LOCK = ".lock"  # the process that works in a run folder
# what a killed process leaves: half written, on its way out, or the probe of a folder
LEFTOVER = re.compile(r"\..+\.\d+\.(partial|old)|\.probe\.\d+")


@dataclass(frozen=True)
class Run:
    """A recipe on its way to a folder. Paths in the recipe are seen from `root`."""

    recipe: Recipe
    root: Path
    out: Path
    recipe_text: str
    command: list[str]
    overrides: tuple[str, ...] = ()
    until: str | None = None
    fresh: bool = False
    overwrite: bool = False
    reset_data: bool = False
    world: World = ALONE


@dataclass(frozen=True)
class Planned:
    """A stage with its fingerprint, and what the folder says about it."""

    name: str
    stage: Stage
    fingerprint: str
    inputs: dict[str, str]
    state: str  # new, complete, half done, changed; with --reset-data also other data, kept
    why: str = ""
    after_reset: str = ""  # what of a changed stage --reset-data would make


def require_folder(out: Path) -> None:
    """Refuse a run folder that is a file, or whose papers no run wrote (UsageError)."""
    fix = "choose another place with out=FOLDER"
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError("a file, not a folder", place=out, fix=fix)
    for name in () if (out / "run.json").exists() else PAPERS:
        if (out / name).exists():
            raise UsageError("the file exists and no run made it", place=out / name, fix=fix)


def require_ours(folder: Path) -> None:
    """Refuse to replace a stage's folder, or its older generation, that no run made."""
    for made in (folder, older(folder)) if folder.exists() else ():
        if made.exists() and not (made / "stage.json").is_file() and holds_anything(made):
            fix = "move it away, or choose out=FOLDER"
            raise UsageError("the folder exists and no run made it", place=made, fix=fix)


def holds_anything(folder: Path) -> bool:
    """Whether there is more in a folder than what a killed process left."""
    return any(not LEFTOVER.fullmatch(path.name) for path in folder.iterdir())


def older(folder: Path) -> Path:
    """Where the generation of a stage before this one is kept."""
    return folder.with_name(folder.name + ".previous")


def plan(run: Run) -> list[Planned]:
    """Fingerprint every stage up to `until` and look at what the folder holds."""
    require_folder(run.out)
    planned: dict[str, Planned] = {}
    for name, stage in run.recipe.stages.items():
        inputs = fingerprints_of_inputs(run, stage, planned)
        version = KINDS[stage.kind].VERSION
        fingerprint = sha256_json(
            [stage.kind, version, settings(stage, defaults=False), inputs, run.recipe.seed]
        )
        planned[name] = look(run, Planned(name, stage, fingerprint, inputs, "new"))
        if name == run.until:
            break
    return list(planned.values())


def fingerprints_of_inputs(run: Run, stage: Stage, planned: dict[str, Planned]) -> dict[str, str]:
    """What a stage reads, by name: earlier stages, models from outside, documents."""
    inputs = {}
    for _, target in references(stage):
        if target in planned:
            inputs[target] = planned[target].fingerprint
        else:
            inputs[target] = model_fingerprint(target, run.root, out=run.out)
    for key, named, kinds in files_of(stage):
        name = "files" if key == "inputs" else f"files of {key}"
        inputs[name] = documents_fingerprint(named, run.root, out=run.out, kinds=kinds)
    return inputs


def files_of(stage: Stage) -> list[tuple[str, tuple[str, ...], Mapping[str, Kind]]]:
    """The keys of a stage that name files, with what they name and which endings are read."""
    if not isinstance(stage, READERS):
        return []
    return [(key, named, stage.READS) for key in stage.FILES if (named := getattr(stage, key))]


def look(run: Run, item: Planned) -> Planned:
    """A stage with the state of its folder. Raises UsageError for a foreign folder."""
    folder, stage, after = run.out / item.name, item.stage, ""
    record = read_record(folder)
    state, why = judge(folder, record, item.fingerprint) if record else ("new", "")
    if run.fresh and state != "half done":
        state, why = "new", ""  # half done is what an interrupted --fresh goes on with
    if record and state == "changed":
        why = changes(record, stage, item.inputs, run.recipe.seed)
        version, others = KINDS[stage.kind].VERSION, other_inputs(record, item.inputs)
        after = with_other_data(folder, record, stage, version, others)
        state = (after if run.reset_data else "") or state
    if state in ("new", "changed"):
        require_ours(folder)
    return replace(item, state=state, why=why, after_reset=after)


def refuse_changed(run: Run, planned: list[Planned]) -> None:
    """Results of other settings are kept unless the user says otherwise.

    For the sake of other data nothing is replaced that was trained.
    """
    changed = [p for p in planned if p.state == "changed"]
    if run.reset_data:
        changed = [p for p in changed if not isinstance(p.stage, UNTRAINED)]
    if not changed or run.overwrite:
        return
    fix = "--overwrite replaces it and what follows, out=FOLDER keeps both"
    if run.reset_data:
        fix = "--reset-data changes data alone and of unfinished training; out=FOLDER keeps both"
    elif any(p.after_reset == "other data" for p in changed):
        fix = f"--reset-data goes on with the weights, {fix}"
    what = f"made with other settings ({changed[0].why})"
    raise UsageError(what, place=run.out / changed[0].name, fix=fix)


def set_aside(folder: Path) -> None:
    """Make room for a stage: its complete results become `NAME.previous`, half ones go.

    So the newest complete results are never lost to a run that did not end. Only folders with a
    record are moved or removed: nothing else was made by a run.
    """
    if not folder.exists():
        return
    require_ours(folder)
    if (read_record(folder) or {}).get("status") != "complete":
        remove(folder)
        return
    if older(folder).exists():
        remove(older(folder))
    folder.rename(older(folder))
    sync_folder(folder.parent)


def remove(folder: Path) -> None:
    """Remove a stage's folder, renamed first: half of it, without its record, would be foreign."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(gone)
    sync_folder(folder.parent)
    shutil.rmtree(gone)


def clear_leftovers(leftovers: Iterable[Path]) -> None:
    """Remove those of the paths that a killed process left half written or half removed."""
    for leftover in leftovers:
        if not LEFTOVER.fullmatch(leftover.name):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the run folder while the block runs. Raises UsageError where another run holds it.

    The kernel keeps the lock and frees it with its process; the file only tells whose it is.
    """
    if sys.platform == "win32":  # opens no folders
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        if not hold(handle):
            fix = "wait for it, or choose out=FOLDER"
            raise UsageError(f"locked by {holder(out)}", place=out, fix=fix)
        write_text(out / LOCK, f"{os.getpid()}\n")
        try:
            yield
        finally:
            with suppress(OSError):
                (out / LOCK).unlink()
    finally:
        os.close(handle)


def holder(out: Path) -> str:
    """Who works in a run folder, as far as it can be read."""
    try:
        return f"pid {int((out / LOCK).read_text('utf-8'))}"
    except (OSError, ValueError):  # it has only just begun
        return "another run"


def follow(run: Run) -> None:
    """Take part in the stages that train, as a process that does not lead."""
    while (work := accepted(run.world)) is not None:
        stage = run.recipe.stages[work.name]
        KINDS[stage.kind].run(stage, work)


def execute(run: Run, say: Callable[[str], None]) -> Path:
    """Run all stages; returns the report. `say` receives one line a stage."""
    report = execute_held(run, say)
    dismiss(run.world)
    return report


def execute_held(run: Run, say: Callable[[str], None]) -> Path:
    """The run itself, its folder held meanwhile."""
    refuse_changed(run, plan(run))
    require_writable(run.out)
    with only_run(run.out):
        planned = plan(run)  # another run may have ended meanwhile: what it made counts
        refuse_changed(run, planned)
        return execute_alone(run, planned, say)


def execute_alone(run: Run, planned: list[Planned], say: Callable[[str], None]) -> Path:
    """All stages in turn, with the folder to themselves."""
    for item in planned:
        if item.state != "complete" and isinstance(item.stage, (*TRAINERS, lineage.LineageStage)):
            machine.pick(item.stage.device)  # now, not after the stages before it
    clear_leftovers(run.out.iterdir())
    write_json(run.out / "run.json", about(run))  # first: it tells whose folder this is
    write_text(run.out / "recipe.yaml", recipe_as_run(run))
    folders = {p.name: run.out / p.name for p in planned}
    for position, item in enumerate(planned, start=1):
        head = f"[{position}/{len(planned)}] {item.name}"
        if item.state == "complete":
            say(f"{head}: complete, skipped")
            continue
        if item.state == "kept":
            keep(run, item)
            say(f"{head}: kept, the weights were trained with it")
            continue
        budget = item.stage.minutes
        say(f"{head} ({item.stage.kind})" + (f": about {budget:g} min" if budget else ""))
        seconds = run_stage(run, item, folders)
        write_ledger(run)
        if seconds > REPORT_AFTER and item is not planned[-1]:
            write_report(run.out)
    write_ledger(run)
    return write_report(run.out)


def recipe_as_run(run: Run) -> str:
    """The recipe's text, headed by the overrides it ran with."""
    head = "".join(f"# override: {assignment}\n" for assignment in run.overrides)
    return head + run.recipe_text


def about(run: Run) -> dict[str, Any]:
    """What made this run, for the report and for whoever repeats it."""
    return {
        "format_version": FORMAT_VERSION,
        "name": run.recipe.name,
        "seed": run.recipe.seed,
        "command": printable(shlex.join(run.command)),
        "stages": list(run.recipe.stages),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }


def run_stage(run: Run, item: Planned, folders: dict[str, Path]) -> float:
    """Run one stage between two records: one that says it began, one that says it is whole.

    Returns the seconds it took this time.
    """
    folder = folders[item.name]
    if item.state in ("changed", "new"):
        set_aside(folder)
    make_folder(folder)
    clear_leftovers(list(folder.rglob(".*")))
    earlier = read_record(folder) or {}
    other_data = run.reset_data and item.state in BEGUN
    if other_data and (folder / "data").exists():  # before the record promises other data
        shutil.rmtree(folder / "data")
    record = record_of(run, item, earlier)
    write_json(folder / "stage.json", record)
    machine.forget_peak_memory()
    started = time.monotonic()
    work = Work(
        item.name,
        folder,
        run.recipe.seed,
        resumed=item.state in BEGUN,
        reset_data=other_data,
        data_resets=earlier.get("data_resets", []),
        world=run.world,
    )

    def finish(**values: Any) -> None:
        if work.data_resets:
            record["data_resets"] = work.data_resets
        record["seconds"] += time.monotonic() - started
        record["peak_memory_bytes"] = max(record["peak_memory_bytes"], machine.peak_memory_bytes())
        write_json(folder / "stage.json", record | values)

    try:
        work.inputs |= inputs_of(run, item, folders)
        for key, named, kinds in files_of(item.stage):
            work.files[key] = document_files(named, run.root, out=run.out, kinds=kinds)
        if isinstance(item.stage, TRAINERS):
            invite(work)
        summary = KINDS[item.stage.kind].run(item.stage, work)
    except BaseException as error:
        with suppress(ResourceError):  # on a full disk the first error is the one to tell
            if item.state == "other data" and not work.begun:
                take_back(folder, earlier)
            else:
                finish()
        if isinstance(error, OSError):
            raise resource_error(error, error.filename or folder) from error
        raise
    finish(status="complete", outputs=outputs_of(folder), summary=summary)
    return time.monotonic() - started


def record_of(run: Run, item: Planned, earlier: dict[str, Any]) -> dict[str, Any]:
    """The record of a stage that begins, or goes on after an earlier one."""
    return {
        "format_version": FORMAT_VERSION,
        "name": item.name,
        "kind": item.stage.kind,
        "kind_version": KINDS[item.stage.kind].VERSION,
        "fingerprint": item.fingerprint,
        "status": "running",
        "config": settings(item.stage, defaults=True),
        "inputs": item.inputs,
        "seed": run.recipe.seed,
        "seconds": earlier.get("seconds", 0.0),
        "peak_memory_bytes": earlier.get("peak_memory_bytes", 0),
        "outputs": {},
        "summary": {},
        "commands": [*earlier.get("commands", []), printable(shlex.join(run.command))],
    }


def take_back(folder: Path, earlier: dict[str, Any]) -> None:
    """Leave a stage whose other data were refused as it was, but for data that are made again."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    write_json(folder / "stage.json", earlier)


def keep(run: Run, item: Planned) -> None:
    """Take over a stage's results for its inputs of today, noting what they were made from."""
    folder = run.out / item.name
    record = read_record(folder) or {}
    today = {"fingerprint": item.fingerprint, "inputs": item.inputs, "seed": run.recipe.seed}
    made_from = record.get("made_from", record.get("inputs", {}))
    write_json(folder / "stage.json", record | today | {"made_from": made_from})


def inputs_of(run: Run, item: Planned, folders: dict[str, Path]) -> dict[str, Input]:
    """Where each reference of a stage lies."""
    found = {}
    for _, target in references(item.stage):
        if target in folders:
            found[target] = Input(folders[target], item.inputs[target])
        else:
            path = model_path(target, run.root, out=run.out)
            found[target] = Input(path, item.inputs[target])
    return found


def outputs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of a stage's results; checkpoints and token stores have their own."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "stage.json")
    results = [
        f
        for f in files
        if f.relative_to(folder).parts[0] not in SCRATCH and not f.name.startswith(".")
    ]
    return {
        str(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": sha256_file(f)}
        for f in results
    }


def write_ledger(run: Run) -> None:
    """The run's account of documents and tokens, from the summaries of its complete stages."""
    entries = {}
    for name, stage in run.recipe.stages.items():
        record = read_record(run.out / name)
        if record and record["status"] == "complete":
            if stage.kind == "curate":
                entries[name] = record["summary"]
            elif stage.kind == "sft":
                keys = ("conversations", "preflight", "ledger")
                entries[name] = {key: record["summary"][key] for key in keys}
            elif stage.kind == "classify":
                entries[name] = {key: record["summary"][key] for key in ("examples", "ledger")}
            elif "ledger" in record["summary"]:
                entries[name] = record["summary"]["ledger"]
    write_json(run.out / "ledger.json", {"format_version": FORMAT_VERSION, "stages": entries})


def preview(run: Run) -> list[dict[str, Any]]:
    """What a run would do, stage by stage, without doing it."""
    return [
        {
            "stage": item.name,
            "kind": item.stage.kind,
            "state": item.state,
            "why": item.why,
            "minutes": item.stage.minutes,
        }
        for item in plan(run)
    ]


def preview_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The preview as a table."""
    verbs = {"new": "run", "complete": "skip", "half done": "resume", "other data": "resume"}
    lines = []
    for row in rows:
        budget = f"about {row['minutes']:g} min" if row["minutes"] else ""
        why = f"({row['why']})" if row["why"] else ""
        verb = verbs.get(row["state"], row["state"])
        line = f"{row['stage']:<12} {row['kind']:<10} {verb:<8} {budget} {why}"
        lines.append(line.rstrip())
    total = sum(row["minutes"] or 0 for row in rows if row["state"] != "complete")
    return [*lines, f"budget: {total:g} min in all"] if total else lines
