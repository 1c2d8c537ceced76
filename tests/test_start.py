"""How the package starts: light, whole, and on few and sound dependencies."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

import stemma

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(stemma.__path__, "stemma.")
    if module.name != "stemma.__main__"  # importing it is calling the command
)
HEAVY = ("torch", "numpy", "pyarrow", "tokenizers", "transformers", "matplotlib", "pydantic")
# the first version without the known fault, in what we use of the package
SOUND = {
    "torch": (
        2,
        10,
    ),  # CVE-2025-32434, CVE-2026-24747: code run by loading, in spite of weights_only
    "pyarrow": (14, 0, 1),  # CVE-2023-47248: reading IPC and Parquet ran code
    "PyYAML": (5, 4),  # CVE-2020-14343: the full loader ran code
}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python; no module of this one is loaded there."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_import_loads_nothing_heavy():
    code = f"import sys, stemma; print(*[n for n in {HEAVY} if n in sys.modules])"
    done = run("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_the_first_use_brings_the_rest():
    code = "import sys, stemma; stemma.build; print('torch' in sys.modules)"
    assert run("-c", code).stdout.strip() == "True"


def test_help_loads_no_torch():
    code = (
        "import sys, stemma.cli\n"
        "sys.argv = ['stemma', '--help']\n"
        "try:\n    stemma.cli.main()\n"
        "except SystemExit as left:\n    print('left', left.code, 'torch' in sys.modules)"
    )
    done = run("-c", code)
    assert done.stdout.splitlines()[-1] == "left 0 False", done.stderr


def test_public_names_are_these():
    assert stemma.__all__ == ["__version__", "build", "generate", "load", "save"]
    assert dir(stemma) == sorted(stemma.__all__)
    for name in stemma.__all__:
        assert getattr(stemma, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        stemma.lode  # noqa: B018


def test_version_is_said_once_and_everywhere_alike():
    done = run("-m", "stemma", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, stemma.__version__), done.stderr
    assert metadata.version("stemma-lm") == stemma.__version__ == PROJECT["version"]


@pytest.mark.parametrize("name", MODULES)
def test_module_can_be_imported(name):
    assert importlib.import_module(name).__doc__


def parsed(requirement: str) -> tuple[str, tuple[int, ...]]:
    """Name and lowest allowed version: "torch>=2.11,<2.14" -> ("torch", (2, 11))."""
    found = re.fullmatch(r"([A-Za-z0-9_-]+)(?:.*?>=\s*([\d.]+))?.*", requirement)
    assert found, requirement
    lowest = found[2].strip(".") if found[2] else ""
    return found[1], tuple(int(part) for part in lowest.split(".") if part)


def test_required_dependencies_are_few_and_have_a_lowest_version():
    floors = dict(map(parsed, PROJECT["dependencies"]))
    assert len(floors) == len(PROJECT["dependencies"])
    assert len(floors.keys() - {"rich"}) <= 10  # typer brings rich: it is named for its floor
    assert all(floors.values()), floors


@pytest.mark.parametrize("name", SOUND)
def test_lowest_version_is_above_the_known_faults(name):
    assert dict(map(parsed, PROJECT["dependencies"]))[name] >= SOUND[name]


def test_source_imports_no_package_that_is_not_declared():
    """A package that only happens to be installed is missing on the next machine."""
    declared = {parsed(r)[0].lower() for r in PROJECT["dependencies"]}
    declared |= {parsed(r)[0].lower() for r in PROJECT["optional-dependencies"]["report"]}
    modules = {"pyyaml": "yaml"}
    allowed = {modules.get(name, name) for name in declared} | {"stemma", "pydantic_core"}
    allowed |= set(sys.stdlib_module_names)
    serving = {parsed(r)[0].lower() for r in PROJECT["optional-dependencies"]["serve"]}
    root = Path(stemma.__path__[0])
    for path in root.rglob("*.py"):
        own = serving if path.relative_to(root).parts[0] == "serve" else set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for found in (name.partition(".")[0] for name in names):
                assert found in allowed | own, f"{path.name} imports {found}"
