"""Writes the pages that follow from the code, so that they cannot say what the code does not do.

    python docs/generate.py                     write docs/reference/
    python docs/generate.py --check             name every page that is out of date, exit code 1
    python docs/generate.py --run runs/NAME     put a run's figures into README.md and its guide,
                                                a run of the recipe quickstart or my-docs

Keys come from the configuration classes, options from the command line itself, exit codes from
the error classes, presets and parameter counts from the families. The figures of a run come from
its `stage.json` files and from nowhere else. docs/parity.md is measured by `measure_parity.py`;
here it is only checked that every family and every case has its figures.
"""

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer.main

from stemma import api, cli
from stemma.core import yaml_file
from stemma.core.errors import StemmaError
from stemma.interop.native import MODEL_TYPE_OF_OURS
from stemma.interop.tables import tables
from stemma.pipeline import reference
from stemma.pipeline.recipe import KINDS, Recipe

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by docs/generate.py: change the code, then run `make docs`. -->"
FILLED = {  # which pages have the figures of a recipe's run
    "quickstart": (ROOT / "README.md", ROOT / "docs" / "guides" / "quickstart.md"),
    "my-docs": (ROOT / "README.md", ROOT / "docs" / "guides" / "your-own-documents.md"),
}
WORDS = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}
OTHER_CODES = {
    0: "Done.",
    1: "A mistake of Stemma itself; run again with `--debug` and report it.",
    130: "Ctrl-C. In training, the state was saved first.",
}


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def page(title: str, *parts: str) -> str:
    """A generated page."""
    return "\n\n".join([f"# {title}", NOTE, *parts]) + "\n"


def first_line(thing: object) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def code(text: object) -> str:
    """Inline code; nothing where there is nothing."""
    return f"`{text}`" if str(text) else ""


# Recipe keys


def recipe_page() -> str:
    """Every key of a recipe."""
    units = ", ".join(f"`{unit}`" for unit in yaml_file.UNITS if unit)
    parts = [
        "A recipe is one YAML file. `stemma explain KEY` prints the same words as this page.",
        f"Numbers may be written `1e-4`, `1_000`, or with a unit ({units}). A quoted value is "
        "text. Every key can be set on the command line as `key.path=value`; a stage's keys start "
        "with the stage's name: `stemma run notes.yaml base.tokens=200k`.",
    ]
    sections = [("The recipe", "", Recipe)]
    sections += [(f"Stage `kind: {kind}`", f"{kind}.", KINDS[kind]) for kind in sorted(KINDS)]
    for title, head, model in sections:
        parts += [f"## {title}", first_line(model), keys_table(head, model)]
    parts += [
        "## The key `model`",
        "`family` names the family; the other keys are its numbers. Two of them are refused in a "
        "recipe, because others say them: `vocab_size` (the tokenizer) and `context` (the stage).",
    ]
    for family in api.families():
        config = api.config_class(family)
        parts += [f"### `family: {family}`", keys_table(f"model.{family}.", config)]
    return page("Recipe keys", *parts)


def keys_table(head: str, model: Any) -> str:
    """The keys of one configuration class, named as they stand below `head`."""
    rows = [
        (code(entry.key.removeprefix(head)), entry.type, shown_default(entry), entry.meaning)
        for entry in reference.walk(head, model)
    ]
    return table(("key", "type", "default", "meaning"), rows)


def shown_default(entry: reference.Entry) -> str:
    """A key's default, that it must be given, or that it follows from other keys."""
    if entry.default:
        return code(entry.default)
    return "follows" if entry.follows else "required"


# The command line


def command_line_page() -> str:
    """Every command with its options, and the exit codes."""
    tree = typer.main.get_command(cli.app)
    callbacks = {info.name or info.callback.__name__: info.callback for info in registered()}
    parts = [
        "Results are printed to stdout, messages and progress to stderr: a bar on a terminal, "
        "JSON lines elsewhere. Options of `stemma` itself stand before the command: "
        "`stemma --debug run notes.yaml`.",
        options_table(tree, cli.options),
    ]
    for name in tree.commands:  # type: ignore[attr-defined]
        command = tree.commands[name]  # type: ignore[attr-defined]
        parts += [f"## stemma {name}", first_line(callbacks[name]), usage(name, command)]
        parts.append(options_table(command, callbacks[name]))
    parts += ["## Exit codes", exit_codes_table(), "## Environment", environment()]
    return page("Command line", *parts)


def registered() -> list[Any]:
    """The commands as they were registered."""
    return list(cli.app.registered_commands)


def is_option(parameter: Any) -> bool:
    return str(parameter.opts[0]).startswith("-")


def argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def usage(name: str, command: Any) -> str:
    """The command's first line of help, in our own spelling."""
    words = [f"stemma {name}"]
    for parameter in command.params:
        if not is_option(parameter):
            word = argument_name(parameter)
            word += " ..." if parameter.nargs != 1 else ""
            words.append(word if parameter.required else f"[{word}]")
        elif parameter.required:
            words.append(f"{parameter.opts[0]} {argument_name(parameter)}")
    return f"```text\n{' '.join(words)} [OPTIONS]\n```"


def options_table(command: Any, callback: Callable[..., Any]) -> str:
    """Arguments and options of one command. Every command also has --help."""
    hints = get_type_hints(callback)
    rows = []
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        names = parameter.opts + parameter.secondary_opts
        spelled = ", ".join(names) if is_option(parameter) else argument_name(parameter)
        default = "required" if parameter.required else given_default(parameter.default)
        rows.append((code(spelled), kind_of(hints[parameter.name]), default, parameter.help or ""))
    return table(("name", "value", "default", "meaning"), rows)


def given_default(value: object) -> str:
    return "" if value in (None, False, ()) else code(value)


def kind_of(annotation: Any) -> str:
    """A type in words; what may be given several times says so."""
    if annotation in WORDS:
        return WORDS[annotation]
    inner = [a for a in get_args(annotation) if a is not type(None)]
    if not inner:
        return "text"
    several = getattr(annotation, "__origin__", None) is list
    return kind_of(inner[0]) + (", repeatable" if several else "")


def exit_codes() -> dict[int, str]:
    """Every exit code with what it means, from the error classes."""
    found = {kind.exit_code: first_line(kind) for kind in StemmaError.__subclasses__()}
    return dict(sorted({**OTHER_CODES, **found}.items()))


def exit_codes_table() -> str:
    return table(("code", "meaning"), exit_codes().items())


def environment() -> str:
    """The variables that are read."""
    meanings = {
        "STEMMA_HOME": "folder where pulled assets are kept; default: the user's cache folder",
        "STEMMA_DEBUG": "set to anything: tracebacks, as with `--debug`",
    }
    rows = [(code(name), meanings[name]) for name in cli.ENVIRONMENT]
    return table(("variable", "meaning"), rows)


# Families


def families_page() -> str:
    """Every family with its presets and its foreign form."""
    parts = [
        "A family is one file of `stemma.models`. Its numbers are keys of a recipe's `model` and "
        "arguments of `stemma.build`; the keys are on the page [recipe keys](recipe.md)."
    ]
    for family in api.families():
        module = inspect.getmodule(api.config_class(family))
        said = (inspect.getdoc(module) or "").split("\n\n")
        parts += [f"## {family}", *said, presets_table(family, module), *foreign_forms(family)]
    return page("Families and presets", *parts)


def presets_table(family: str, module: Any) -> str:
    """Presets with their numbers and the parameters that follow from them."""
    rows = []
    for name, numbers in module.PRESETS.items():
        count = sum(p.numel() for p in api.sketch(family, **numbers).parameters())
        shown = ", ".join(f"{key} {value}" for key, value in numbers.items())
        rows.append((code(name), f"{count:,}", shown))
    return table(("preset", "parameters", "numbers"), rows)


def foreign_forms(family: str) -> list[str]:
    """How the family is called in folders of other libraries, and what is refused there."""
    written = tables().get(family)
    found = [table for table in tables().values() if table.CONFIG.family == family]
    parts = [foreign_form(table) for table in found]
    if len(found) > 1 and written is not None:
        parts.append(f"What is written is the form of `{written.ARCHITECTURE}`.")
    own = f"in our own form: `model_type` `{MODEL_TYPE_OF_OURS}`, family `{family}`."
    if written is None:
        parts.append(f"No other library has this family. A folder is written {own}")
    elif hasattr(written, "expresses") or hasattr(written, "NativeTable"):
        parts.append(f"A network that this form has no words for is written {own}")
    return parts


def foreign_form(table: Any) -> str:
    """One form of a family: its two words, code that is replaced, settings that are refused."""
    names = getattr(table, "ARCHITECTURES", (table.ARCHITECTURE,))
    plural = "architecture" if len(names) == 1 else "architectures"
    form = f"In a Hugging Face folder: `model_type` `{table.MODEL_TYPE}`, {plural} "
    form += ", ".join(code(name) for name in names) + "."
    if getattr(table, "REPLACED_CODE", ()):
        form += " Code that lies with such a folder is not run: the network here replaces it."
    fixed = ", ".join(
        f"`{key}` other than {' or '.join(f'`{json.dumps(v)}`' for v in allowed)}"
        for key, allowed in table.FIXED.items()
    )
    refused = "Refused when a folder is read, because they would change the equation"
    return f"{form} {refused}: {fixed}." if fixed else form


# Parity


def defined_cases() -> list[str]:
    """The names of all cases that are measured: first by family, then as they stand in a file."""
    models = ROOT / "tests" / "models"
    folders = ("oracles", "oracles_encdec")
    paths = [path for name in folders for path in sorted((models / name).glob("*.py"))]
    trees = [ast.parse(path.read_text("utf-8")) for path in [*paths, models / "parity_own.py"]]
    found = [case for tree in trees for node in tree.body for case in cases_of(node)]
    return sorted(found, key=lambda case: case.split()[0])


def cases_of(node: ast.stmt) -> list[str]:
    """The names in `CASES = {...}`."""
    named = isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == "CASES" for target in node.targets
    )
    if not named or not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
        return []
    return [str(ast.literal_eval(key)) for key in node.value.keys if key is not None]


def parity_faults(text: str) -> list[str]:
    """What the page of measured errors lacks, or has too much; nothing is measured here."""
    shown = {
        family: re.findall(r"^\| (.+?) \|", part, re.MULTILINE)[2:]
        for family, part in re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    }
    wanted: dict[str, list[str]] = {family: [] for family in api.families()}
    for case in defined_cases():
        wanted.setdefault(case.split()[0], []).append(case)
    faults = [f"no case of {family}" for family, cases in wanted.items() if not cases]
    for family in sorted(wanted.keys() | shown.keys()):
        missing = [case for case in wanted.get(family, []) if case not in shown.get(family, [])]
        faults += [f"no figures of {case}" for case in missing]
        known = wanted.get(family, [])
        faults += [
            f"figures of {case}, which is gone"
            for case in shown.get(family, [])
            if case not in known
        ]
    if "beyond the limit" in text:
        faults.append("an error beyond the limit")
    return faults


# A run's figures


def read_stages(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What made a run, and the records of its complete stages in order."""
    about = json.loads((run / "run.json").read_text("utf-8"))
    records = []
    for name in about["stages"]:
        path = run / name / "stage.json"
        record = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if record.get("status") != "complete":
            raise SystemExit(f"{path}: the stage is not complete; run the recipe to its end")
        records.append(record)
    return about, records


def results(about: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """A run's figures as Markdown."""
    machine, versions = about["machine"], about["versions"]
    kinds = {record["kind"]: record for record in records}
    if missing := {"pretrain", "evaluate"} - kinds.keys():
        raise SystemExit(f"the recipe has no stage of kind {' or '.join(sorted(missing))}")
    seconds = sum(record["seconds"] for record in records)
    memory = max(record["peak_memory_bytes"] for record in records)
    trained = [
        training_words(record) for record in records if record["kind"] in ("pretrain", "sft")
    ]
    minutes = ", ".join(f"{record['name']} {record['seconds'] / 60:.1f}" for record in records)
    evaluated = kinds["evaluate"]["summary"]
    return "\n\n".join(
        [
            f"`{about['command']}`, seed {about['seed']}, on {machine['processor']}, "
            f"{machine['cores']} cores, {machine['threads']} threads, torch {versions['torch']}: "
            f"{'; '.join(trained)}. {seconds / 60:.1f} minutes in all ({minutes}), "
            f"{memory / 1e9:.2f} GB of memory at most.",
            *(document_results(evaluated) if "scores" in evaluated else ()),
            *(chat_results(evaluated["chat"]) if "chat" in evaluated else ()),
        ]
    )


def training_words(record: dict[str, Any]) -> str:
    """What a stage trained, on how much, how fast."""
    summary = record["summary"]
    speed = summary["tokens"] / max(1e-9, summary["training_seconds"])
    unit = "answer tokens" if record["kind"] == "sft" else "tokens"
    return (
        f"`{record['name']}` {summary['parameters']:,} parameters, {summary['tokens']:,} {unit} "
        f"at {speed:,.0f} a second"
    )


def document_results(evaluated: dict[str, Any]) -> list[str]:
    """Bits per byte of models and baselines."""
    heldout = evaluated["heldout"]
    scores = sorted(evaluated["scores"], key=lambda row: row["bits_per_byte"])
    rows = [(row["name"], f"{row['bits_per_byte']:.3f}", interval(row)) for row in scores]
    return [
        f"Bits per byte of {heldout['bytes']:,} bytes of held-out text "
        f"({heldout['documents']} documents); lower is better.",
        table(("method", "bits per byte", "95 % interval"), rows),
    ]


def chat_results(chat: dict[str, Any]) -> list[str]:
    """The loss of held-out answers, and how many of the models' own answers end."""
    rows = [
        (row["name"], f"{row['answer_loss']:.3f}", f"{row['stopped']} of {row['answers']}")
        for row in chat["scores"]
    ]
    return [
        f"{chat['conversations']} held-out conversations: the loss of their answers in nats per "
        "token, and how many answers to their first turns end by themselves within "
        f"{chat['max_new_tokens']} tokens.",
        table(("model", "loss of answers", "answers that end"), rows),
    ]


def interval(row: dict[str, Any]) -> str:
    """A score's interval, where it has one."""
    found = row.get("interval")
    return f"{found[0]:.3f} to {found[1]:.3f}" if found else ""


def fill(text: str, name: str, content: str) -> str:
    """A document with `content` between a recipe's two markers; SystemExit where it lacks one."""
    begin, end = f"<!-- {name}: results -->", f"<!-- {name}: end -->"
    pattern = re.escape(begin) + r".*?" + re.escape(end)
    if len(re.findall(pattern, text, re.DOTALL)) != 1:
        raise SystemExit(f"the document needs {begin} and {end} once each")
    filled = f"{begin}\n\n{content}\n\n{end}"
    return re.sub(pattern, lambda _: filled, text, flags=re.DOTALL)


# The command


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/recipe.md": recipe_page,
    "docs/reference/command-line.md": command_line_page,
    "docs/reference/families.md": families_page,
}


def stale() -> list[str]:
    """Pages that are missing or differ from what the code says."""
    return [
        name
        for name, write in PAGES.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text("utf-8") != write()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write, check or fill; returns the exit code."""
    parser = argparse.ArgumentParser(description=first_line(sys.modules[__name__]))
    parser.add_argument("--check", action="store_true", help="only name what is out of date")
    parser.add_argument("--run", type=Path, help="enter the figures of this run folder")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        old = stale()
        for name in old:
            sys.stderr.write(f"{name} is out of date; run `make docs`\n")
        faults = parity_faults((ROOT / "docs" / "parity.md").read_text("utf-8"))
        for fault in faults:
            sys.stderr.write(f"docs/parity.md: {fault}; run `make parity`\n")
        return 1 if old or faults else 0
    if chosen.run is not None:
        about, records = read_stages(chosen.run)
        name = about["name"]
        if name not in FILLED:
            raise SystemExit(f"{chosen.run}: no page has the figures of {name}")
        for path in FILLED[name]:
            path.write_text(fill(path.read_text("utf-8"), name, results(about, records)), "utf-8")
        return 0
    for name, write in PAGES.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(write(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
