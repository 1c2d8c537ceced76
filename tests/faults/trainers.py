"""Every kind of stage that trains, with a tiny recipe: the contract is tested on each of these.

A new trainer registers here what it is tested with; `test_contract.py` fails until it does.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.pipeline.conftest import WORDS

# dropout on; several documents in a sample; micro-batches; epochs that end between checkpoints
PRETRAIN = """\
name: tiny
out: out
stages:
  corpus: {kind: curate, inputs: [docs], holdout: {fraction: 0.2}}
  words: {kind: tokenizer, corpus: corpus, vocab_size: 270}
  base:
    kind: pretrain
    corpus: corpus
    tokenizer: words
    model: {family: llama, width: 16, depth: 1, num_heads: 2, dropout: 0.1}
    context: 32
    steps: 24
    batch_tokens: 256
    micro_batch_tokens: 128
    learning_rate: 1e-2
    schedule: {kind: cosine, warmup: 2}
    checkpoint_every: 5
    watch: {every: 6, bytes: 400}
    samples: {every: 10, max_new_tokens: 3}
"""

SFT = (
    PRETRAIN.replace("steps: 24", "steps: 3").replace("context: 32", "context: 64")
    + """\
  chat:
    kind: sft
    init: base
    inputs: [talk.jsonl]
    holdout: 0.2
    context: 64
    epochs: 3
    batch_tokens: 256
    micro_batch_tokens: 128
    learning_rate: 1e-2
    checkpoint_every: 5
    watch: {every: 6}
    samples: {every: 10, max_new_tokens: 3, prompts: [the cat]}
"""
)


@dataclass(frozen=True)
class Trainer:
    """What a kind of stage is tested with: a recipe whose last stage is of that kind."""

    kind: str
    recipe: str
    stage: str
    write_inputs: Callable[[Path], None]

    def lay_out(self, folder: Path) -> None:
        """Recipe and inputs in an empty folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(self.recipe)
        self.write_inputs(folder)


def write_documents(folder: Path) -> None:
    """Short documents of few words, so that a sample holds several."""
    draw = random.Random(0)
    (folder / "docs").mkdir()
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randrange(4, 12)))} for _ in range(90)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "docs" / "log.jsonl").write_text(lines)


def write_conversations(folder: Path) -> None:
    """Documents, and conversations of few words; every third has two turns."""
    write_documents(folder)
    draw = random.Random(1)
    rows = []
    for number in range(60):
        said = [" ".join(draw.choices(WORDS, k=2)) for _ in range(2 + 2 * (number % 3 == 0))]
        said[0] = f"{WORDS[number % len(WORDS)]} {number}"
        roles = ("user", "assistant")
        rows.append(
            {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]}
        )
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TRAINERS = {
    "pretrain": Trainer("pretrain", PRETRAIN, "base", write_documents),
    "sft": Trainer("sft", SFT, "chat", write_conversations),
}
