"""A tiny recipe over documents made here; run once, copied where a finished run is needed."""

import json
import random
import shutil
from pathlib import Path

import pytest

from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner

WORDS = "the a cat dog sat ran on under mat tree and then saw big small red blue moon".split()

RECIPE = """\
# tiny: for tests
name: tiny
stages:
  corpus: {kind: curate, inputs: [docs], holdout: {fraction: 0.2}}
  words: {kind: tokenizer, corpus: corpus, vocab_size: 280}
  base:
    kind: pretrain
    corpus: corpus
    tokenizer: words
    model: {family: llama, width: 16, depth: 1, num_heads: 2, dropout: 0.1}
    context: 16
    steps: 12
    batch_tokens: 64
    micro_batch_tokens: 32
    learning_rate: 1e-2
    schedule: {kind: cosine, warmup: 2}
    checkpoint_every: 4
    watch: {every: 6, bytes: 2000}
    samples: {every: 6, max_new_tokens: 5}
  scores: {kind: evaluate, model: base, corpus: corpus, context: 16, stride: 8}
  export: {kind: export, model: base}
"""


def write_documents(folder: Path) -> None:
    """A dozen Markdown files and a JSONL file, made of few words so that a tiny net learns."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(12):
        text = "\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(8))
        (folder / f"note-{number}.md").write_text(f"# Note {number}\n{text}\n")
    rows = [json.dumps({"text": " ".join(draw.choices(WORDS, k=9))}) for _ in range(30)]
    (folder / "log.jsonl").write_text("\n".join(rows) + "\n")


def job(folder: Path, *overrides: str, **settings: object) -> runner.Run:
    """The tiny recipe in `folder` as a run into `folder/out`."""
    path = folder / "tiny.yaml"
    loaded = recipes.load(path, list(overrides))
    return runner.Run(
        recipe=loaded,
        root=folder,
        out=Path(loaded.out) if loaded.out else folder / "out",
        recipe_text=path.read_text(),
        command=["stemma", "run", "tiny.yaml", *overrides],
        overrides=overrides,
        **settings,
    )


def run(folder: Path, *overrides: str, **settings: object) -> list[str]:
    """Run the tiny recipe and return the lines that it said."""
    said: list[str] = []
    runner.execute(job(folder, *overrides, **settings), say=said.append)
    return said


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write_documents(folder / "docs")
    (folder / "tiny.yaml").write_text(RECIPE)
    run(folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """Documents and the recipe, nothing run."""
    write_documents(tmp_path / "docs")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that a test may harm."""
    folder = tmp_path / "copied"
    shutil.copytree(finished, folder)
    return folder
