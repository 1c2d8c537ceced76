"""The house rules that a linter cannot say, and the import contracts with a violation of each.

Reads source only, but for the import checker, which runs over a copy of the package: once as it
is, and once per contract with one forbidden import planted.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "stemma"
FILES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
OURS = {n.name for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
ROOTS = {"StemmaError", "StrictModel"}  # classes of ours that others of ours may derive from
LIMITS = {"models": 120, "nn": 300}  # lines a file, by room; 600 elsewhere
VAGUE = {"utils", "helpers", "misc", "common", "base"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

# contract name -> (file that gets the import, the import), one planted violation each
PLANTED = {
    "Rooms import downwards only": ("core/errors.py", "import stemma.train.loop"),
    "Foreign formats stay at the edge: only api, pipeline and cli open or write models": (
        "train/loop.py",
        "import stemma.api",
    ),
    "A network is only blocks: models see nn and core": (
        "models/llama.py",
        "import stemma.data.order",
    ),
    "Data knows signals, not networks": ("data/order.py", "import stemma.nn.norm"),
    "Serving needs no training": ("serve/engine.py", "import stemma.train.loop"),
    "Model files stand alone (a composite is listed under ignore_imports, nothing else)": (
        "models/llama.py",
        "import stemma.models.gpt2",
    ),
    "Oracles are for tests and benchmarks": ("interop/folder.py", "import transformers"),
}


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, FUNCTION)]


def base_name(node):
    """`nn.Module` -> Module, `Generic[T]` -> Generic: the last name of a base class."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_file_keeps_house_rules(path):
    tree, lines = TREES[path], path.read_text().splitlines()
    assert path.stem not in VAGUE, "name the file for what it holds"
    limit = LIMITS.get(path.relative_to(SRC).parts[0], 600)
    assert len(lines) <= limit, f"{len(lines)} lines (limit {limit}): split it by idea"
    if path.name == "__init__.py" and path.parent != SRC:
        assert not functions(tree), "a room's __init__ only re-exports"
    for fn in functions(tree):
        size = fn.end_lineno - fn.lineno + 1
        assert size <= 80, f"{fn.name} has {size} lines"
        inputs = len(fn.args.args) + len(fn.args.kwonlyargs) - 1
        assert fn.name != "forward" or inputs <= 4, "forward takes more than four inputs"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            inherited = ({base_name(b) for b in node.bases} & OURS) - ROOTS
            assert not inherited, f"{node.name} inherits from {inherited}: hand in a value or wrap"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_file_says_what_it_is(path):
    assert ast.get_docstring(TREES[path]), "a module opens with what it is"


def check_contracts(folder):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(
        [*command, "--config", "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(SRC, folder / "stemma")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_import_contracts_are_kept(house):
    code, output = check_contracts(house)
    assert code == 0, output


def test_every_contract_has_a_planted_violation():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert {c["name"] for c in contracts["contracts"]} == PLANTED.keys()


@pytest.mark.parametrize("contract", PLANTED)
def test_planted_violation_is_caught(house, contract):
    name, line = PLANTED[contract]
    path = house / "stemma" / name
    text = path.read_text()
    path.write_text(text + f"\n{line}\n")
    try:
        code, output = check_contracts(house)
    finally:
        path.write_text(text)
    assert code != 0
    assert f"{contract} BROKEN" in " ".join(output.split()), output  # long names are wrapped


def test_a_new_room_is_refused(house):
    room = house / "stemma" / "utils"
    room.mkdir()
    (room / "__init__.py").write_text('"""A drawer."""\n')
    try:
        code, output = check_contracts(house)
    finally:
        shutil.rmtree(room)
    assert code != 0 and "utils" in output
