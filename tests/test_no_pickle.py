"""No pickle on any path: the source is walked, and Python itself is listened to at run time.

Opening a pickle runs whatever code it names, so a package that promises to load strangers' models
must have none. The walk also refuses the other ways by which data becomes code.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "stemma"
FILES = sorted(SRC.rglob("*.py"))
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib"),
    *("marshal", "shelve", "jsonpickle", "pickletools", "torch.package"),
}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all"),
    *("yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"),
}
FLAGS = {"allow_pickle", "shell"}  # a keyword argument that may only be False
UNSAFE_IF_TRUE = {"trust_remote_code"}


def dotted(node: ast.AST) -> str:
    """`torch.load` for the expression that spells it; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def aliases(tree: ast.AST) -> dict[str, str]:
    """Names of a file and what they stand for: `import numpy as np` -> {"np": "numpy"}."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.asname and a.name or a.name.split(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports, with `from x import y` also as x.y."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def is_forbidden_call(node: ast.Call, known: dict[str, str]) -> bool:
    """A call of the list under any alias, or one with an argument that opens a door."""
    head, _, rest = dotted(node.func).partition(".")
    full = ".".join(filter(None, (known.get(head, head), rest)))
    named = [k for k in node.keywords if k.arg in FLAGS | UNSAFE_IF_TRUE]
    opened = [
        k for k in named if not (isinstance(k.value, ast.Constant) and k.value.value is False)
    ]
    words = [a.value for a in node.args if isinstance(a, ast.Constant)]
    by_name = full in ("importlib.import_module", "getattr") and bool(
        MODULES & set(map(str, words))
    )
    return full in CALLS or bool(opened) or by_name


def faults(source: str) -> list[str]:
    """Every forbidden import and call of a piece of source, as `line: what`."""
    tree = ast.parse(source)
    known, found = aliases(tree), []
    for node in ast.walk(tree):
        for name in imported(node):
            if name in MODULES | CALLS or name.split(".")[0] in MODULES:
                found.append(f"{node.lineno}: import {name}")
        if isinstance(node, ast.Call) and is_forbidden_call(node, known):
            found.append(f"{node.lineno}: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_source_opens_no_pickle_and_runs_no_data(path):
    assert faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.save({}, 'x')",
        "from torch import load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
        "eval('1')",
        "exec(text)",
        "import yaml\nyaml.load(text)",
        "from yaml import unsafe_load",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import tempfile\ntempfile.mktemp()",
        "import marshal",
        "def late():\n    import shelve",
        "import importlib\nimportlib.import_module('dill')",
        "import cloudpickle.compat",
        "model = load(x, trust_remote_code=True)",
    ],
)
def test_the_walk_finds_what_it_is_made_for(source):
    assert faults(source)


def test_the_walk_lets_harmless_code_pass():
    source = "import re\nre.compile('x')\nmodel.eval()\nsubprocess.run(['ls'], shell=False)\n"
    assert faults(source) == []


LISTENER = """
import sys

events = []
sys.addaudithook(lambda name, _: events.append(name) if name.startswith("pickle") else None)
"""
WORK = """
import stemma
from stemma.data.bpe import train_tokenizer

tokenizer = train_tokenizer(["the cat sat on the mat and the dog ran"], vocab_size=260)
for family in ("gpt2", "llama"):
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": 32}
    model = stemma.build(family, vocab_size=tokenizer.vocab_size, **numbers)
    stemma.save(model, tokenizer, family)
    model, tokenizer = stemma.load(family)
    stemma.generate(model, tokenizer, "the cat", max_new_tokens=3, seed=0)
"""
TRAINING = """
import torch
from pathlib import Path
from stemma.train import checkpoint
from stemma.train.optimizer import AdamW, adamw

optimizer = adamw(model, AdamW(), learning_rate=1e-3)
model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
optimizer.step()
checkpoint.save_checkpoint(Path("steps"), model, optimizer, {"step": 1}, {})
found, damaged = checkpoint.newest_checkpoint(Path("steps"))
checkpoint.restore(found, model, optimizer)
assert not damaged
"""


def heard(code: str, folder: Path) -> list[str]:
    """Run code in a process that listens for pickles; returns the events it heard."""
    script = f"{LISTENER}\n{code}\nprint('heard', *events)\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    word, *events = done.stdout.splitlines()[-1].split()
    assert word == "heard"
    return events


def test_no_pickle_is_opened_while_a_model_lives(tmp_path):
    assert heard(WORK + TRAINING, tmp_path) == []


def test_the_listener_hears_a_pickle(tmp_path):
    events = heard("import pickle\npickle.loads(pickle.dumps(print))", tmp_path)
    assert "pickle.find_class" in events
