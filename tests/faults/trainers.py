"""Every kind of stage that trains, with a tiny recipe: the contract is tested on each of these.

A new trainer registers here what it is tested with; `test_contract.py` fails until it does.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data.bundles import read_bundles
from stemma.data.packing import read_plan
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

# bundles of several lengths, several in a step; the vocabulary is learned by the stage itself
TRANSLATE = """\
name: tiny
out: out
stages:
  german:
    kind: translate
    source: [talk.en]
    target: [talk.de]
    heldout_source: [held.en]
    heldout_target: [held.de]
    vocab_size: 270
    model: {family: transformer, width: 16, depth: 1, num_heads: 2, dropout: 0.1}
    context: 64
    steps: 24
    batch_tokens: 256
    learning_rate: 1e-2
    schedule: {kind: inverse-root, warmup: 4}
    label_smoothing: 0.1
    checkpoint_every: 5
    watch: {every: 6}
    samples: {every: 10}
    search: {beams: 2, max_new_tokens: 4}
"""

MASKED = (
    PRETRAIN.replace("kind: pretrain", "kind: masked")
    .replace("family: llama", "family: bert")
    .replace("bytes: 400", "windows: 9")
    .replace(", max_new_tokens: 3", "")
)

# pairs and single texts; several in a row, and padding behind them
CLASSIFY = (
    MASKED.replace("steps: 24", "steps: 3")
    + """\
  labels:
    kind: classify
    init: base
    inputs: [named.jsonl]
    holdout: 0.2
    context: 32
    epochs: 6
    batch_tokens: 128
    micro_batch_tokens: 64
    learning_rate: 1e-2
    checkpoint_every: 5
    watch: {every: 6}
    samples: {every: 10}
"""
)


@dataclass(frozen=True)
class Trainer:
    """What a kind of stage is tested with: a recipe whose last stage is of that kind."""

    kind: str
    recipe: str
    stage: str
    write_inputs: Callable[[Path], None]
    read_plan: Callable[[Path], Any] = read_plan
    pieces: Callable[[Any], Any] = lambda plan: plan.length  # what the samples are put together of

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


def write_pairs(folder: Path) -> None:
    """Sentences of few words, and the same backwards."""
    draw = random.Random(2)
    for name, count in (("talk", 70), ("held", 5)):
        rows = [draw.choices(WORDS, k=draw.randrange(1, 7)) for _ in range(count)]
        for ending, texts in (("en", rows), ("de", [row[::-1] for row in rows])):
            lines = "".join(" ".join(words) + "\n" for words in texts)
            (folder / f"{name}.{ending}").write_text(lines)


def write_labelled(folder: Path) -> None:
    """Documents, and short texts, some of them pairs, named by their first word."""
    write_documents(folder)
    draw, rows = random.Random(3), []
    for number in range(70):
        row = {"label": WORDS[number % 3], "text": f"{WORDS[number % 3]} {number}"}
        pair = {"second": " ".join(draw.choices(WORDS, k=3))} if number % 4 == 0 else {}
        rows.append(row | pair)
    (folder / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TRAINERS = {
    "pretrain": Trainer("pretrain", PRETRAIN, "base", write_documents),
    "sft": Trainer("sft", SFT, "chat", write_conversations),
    "translate": Trainer(
        "translate", TRANSLATE, "german", write_pairs, read_bundles, lambda plan: plan.pair
    ),
    "masked": Trainer("masked", MASKED, "base", write_documents),
    "classify": Trainer("classify", CLASSIFY, "labels", write_labelled),
}
