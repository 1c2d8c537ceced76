"""What does `my-docs` bring on a megabyte of documents and 200 examples, and what does it cost?

The documents are the docstrings of Python's standard library, one Markdown file a module, up to a
megabyte; the examples ask what a function does and answer with its docstring's first paragraph.
Both are made from the interpreter that runs this, so they are on every machine. Then the shipped
recipe runs, and what its own records say is printed: minutes, memory, bits per byte of held-out
modules and the loss of held-out answers, before and after. `--quick` takes a tenth of everything.

    python experiments/my_docs.py [--quick] [--out FOLDER] [key.path=value ...]
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from stemma.pipeline import recipe, runner

BYTES, EXAMPLES = 1_000_000, 200
LEAST = 40  # characters of a docstring worth reading
PASSED_OVER = {"antigravity", "this", "idlelib", "lib2to3", "test", "tkinter", "turtledemo"}


def modules() -> Iterator[ModuleType]:
    """The modules of the standard library that can be imported here, by name."""
    for name in sorted(sys.stdlib_module_names - PASSED_OVER):
        if name.startswith("_"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = importlib.import_module(name)
            except ImportError:
                continue
            yield found
            for inner in pkgutil.iter_modules(getattr(found, "__path__", [])):
                if not inner.name.startswith("_") and inner.name not in ("idle_test", "tests"):
                    try:
                        yield importlib.import_module(f"{name}.{inner.name}")
                    except ImportError:
                        continue


def members(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Public classes, methods and functions of a module with their docstrings."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if getattr(value, "__module__", None) == module.__name__:
            yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""
            for inner, method in sorted(vars(value).items()) if inspect.isclass(value) else ():
                if not inner.startswith("_") and inspect.isroutine(method):
                    yield f"{module.__name__}.{name}.{inner}", inspect.getdoc(method) or ""


def page(module: ModuleType) -> str:
    """A module's documentation as Markdown."""
    parts = [f"# {module.__name__}", inspect.getdoc(module) or ""]
    parts += [f"## {name}\n\n{text}" for name, text in members(module) if len(text) >= LEAST]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_documents(folder: Path, limit: int) -> int:
    """One file a module until `limit` bytes are written; returns the bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for module in modules():
        text = page(module)
        if len(text) > 400 and written + len(text.encode()) <= limit:
            (folder / f"{module.__name__}.md").write_text(text, "utf-8")
            written += len(text.encode())
    return written


def write_examples(path: Path, count: int) -> int:
    """Questions about functions, spread over all modules; returns how many."""
    found = [
        {
            "messages": [
                {"role": "user", "content": f"What does {name} do in Python?"},
                {"role": "assistant", "content": " ".join(text.split("\n\n")[0].split())},
            ]
        }
        for module in modules()
        for name, text in members(module)
        if len(text) >= LEAST and name.count(".") == module.__name__.count(".") + 1
    ]
    chosen = found[:: max(1, len(found) // count)][:count]
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    return len(chosen)


def main() -> None:
    """Make the inputs, run the recipe, print what its records say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--out", type=Path, default=Path("runs/my-docs-experiment"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    folder = options.out.absolute().with_name(f"{options.out.name}-inputs")
    size = write_documents(folder / "docs", BYTES // share)
    examples = write_examples(folder / "examples.jsonl", EXAMPLES // share)
    quick = ["base.tokens=20k", "base.samples.every=0"] if options.quick else []
    overrides = [f"out={options.out}", *quick, *options.overrides]
    path = recipe.find("my-docs")
    loaded = recipe.load(path, overrides)
    job = runner.Run(
        recipe=loaded,
        root=folder,
        out=Path(loaded.out or options.out),
        recipe_text=path.read_text("utf-8"),
        command=["python", "experiments/my_docs.py", *sys.argv[1:]],
        overrides=tuple(overrides),
    )
    report = runner.execute(job, say=lambda line: print(line, file=sys.stderr))
    records = {name: runner.read_record(job.out / name) or {} for name in loaded.stages}
    outcome = runner.outcome(job, report) | {
        "document_bytes": size,
        "examples": examples,
        "minutes": round(sum(r["seconds"] for r in records.values()) / 60, 1),
        "peak_memory_bytes": {name: r["peak_memory_bytes"] for name, r in records.items()},
        "training_tokens_per_second": {
            name: round(records[name]["summary"]["tokens_per_second"]) for name in ("base", "chat")
        },
    }
    print(json.dumps(outcome, indent=1))


if __name__ == "__main__":
    main()
