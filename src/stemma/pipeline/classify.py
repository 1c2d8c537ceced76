"""Stage `classify`: fine-tune an encoder to label texts or pairs of texts.

The encoder keeps its weights and gets a head for the labels of the examples; a pooler too, where it
has none. Several texts are packed into a row. Held-out texts are labelled along training and at the
end, beside the guess that always says the commonest label. What runs the steps is
`stemma.pipeline.training`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import atomic_file, write_json
from stemma.core.progress import LOG
from stemma.data import conversation_files, sources
from stemma.data.documents import BadLines, MaxDocumentBytes, RejectFile
from stemma.data.labelled import (
    Example,
    ExampleOptions,
    Passages,
    Split,
    prepare,
    read_examples,
    read_passages,
    read_prepared,
)
from stemma.data.marked import around, fitted, marks_of, with_marks
from stemma.data.packing import Plan, plan_whole, read_plan, write_plan
from stemma.data.sources import Kind
from stemma.data.store import Row, TokenStore, in_memory, open_store, write_rows
from stemma.data.tokenizer import Tokenizer
from stemma.eval.labels import Labelling, labelling
from stemma.infer.encoders import label
from stemma.pipeline import keys
from stemma.pipeline import training as shared
from stemma.pipeline.encoders import labelling as labelling_heads
from stemma.pipeline.encoders import with_heads
from stemma.pipeline.training import Training
from stemma.pipeline.work import Work, read_groups, require_context
from stemma.train.classify import LabelledBatch, label_loss, label_scores, labelled, windows_with

VERSION = 1
CUT = "cut.json"  # how many training texts were cut to the context
TOGETHER = 16  # held-out rows that are scored at once
SHOWN = 4  # held-out texts that are labelled along training, for the report


class Watch(StrictModel):
    """Labelling held-out texts along training."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: at the ends only")
    texts: int = Field(default=500, ge=1, description="held-out texts to label, at most")


class Shown(StrictModel):
    """Held-out texts whose labels are noted along training, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")


class ClassifyStage(StrictModel):
    """Fine-tune an encoder on labelled texts. One of `epochs`, `tokens` and `steps`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {"init": ("masked", "classify")}
    FILES: ClassVar[tuple[str, ...]] = ("inputs", "heldout")
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN
    DATA: ClassVar[frozenset[str]] = keys.LENGTHS | {
        "inputs",
        "passages",
        "bad_lines",
        "max_document_bytes",
        "holdout",
        "heldout",
        "examples",
        "epochs",
    }
    DATA_INPUTS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["classify"] = Field(description="the kind of stage")
    init: str = Field(description="the encoder to go on from: a stage, a path, or asset:NAME")
    weights: Literal["init", "new"] = Field(
        default="init", description="new: forget what the encoder learned, to see what that brings"
    )
    inputs: tuple[str, ...] = Field(
        min_length=1, description="labelled texts: folders, files, globs, or asset:NAME"
    )
    passages: Passages = Field(
        default=Passages(), description="where the names of files of text tell the labels"
    )
    bad_lines: BadLines = "error"
    max_document_bytes: MaxDocumentBytes = 64 << 20
    holdout: float = Field(
        default=0.1, ge=0, lt=1, description="share of the texts, or files, kept from training"
    )
    heldout: tuple[str, ...] = Field(
        default=(), description="labelled texts to score on, instead of a share of the inputs"
    )
    examples: int | None = Field(
        default=None, ge=2, description="examples to train on, of all labels alike; default: all"
    )
    context: keys.Context
    epochs: int | None = Field(default=None, ge=1, description="passes over the examples")
    tokens: keys.Tokens
    steps: keys.Steps
    batch_tokens: keys.BatchTokens
    micro_batch_tokens: keys.MicroBatchTokens
    learning_rate: keys.LearningRate
    schedule: keys.RateSchedule
    optimizer: keys.Optimizer
    clip: keys.Clip
    trainable: keys.Trainable
    precision: keys.Precise
    compile: keys.Compile
    recompute: keys.RecomputeSetting
    ema: keys.Averaging
    guard: keys.Guarding
    statistics: keys.StatisticsSetting
    profile: keys.Profiling
    watch: Watch = Field(default=Watch(), description="held-out scores along training")
    samples: Shown = Field(default=Shown(), description="held-out texts labelled along training")
    checkpoint_every: keys.CheckpointEvery
    keep_checkpoints: keys.KeepCheckpoints
    saving: keys.SavingSetting
    parallel: keys.Processes
    workers: keys.Workers
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "ClassifyStage":
        if sum(value is not None for value in (self.epochs, self.tokens, self.steps)) != 1:
            raise ValueError("give one of epochs, tokens and steps")
        if self.heldout and "holdout" in self.model_fields_set and self.holdout:
            raise ValueError("heldout and holdout exclude each other")
        if self.context < 4:
            raise ValueError(f"context ({self.context}) has no room for a text among its marks")
        keys.check_batches(self)
        return self

    @property
    def READS(self) -> Mapping[str, Kind]:  # noqa: N802  (a constant of the other stages)
        """The endings of files that are read: of examples, or of texts."""
        return sources.KINDS if self.passages.labels else conversation_files.KINDS

    def num_steps(self, plan: Plan) -> int:
        """Optimizer steps of the whole run over the samples of `plan`."""
        if self.epochs is not None:
            return math.ceil(self.epochs * plan.num_samples / shared.batch_rows(self))
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


def prepare_examples(stage: ClassifyStage, work: Work) -> dict[str, Any]:
    """Read, check and split the examples into `examples/`; returns their ledger."""
    folder = work.folder / "examples"
    options = ExampleOptions(bad_lines=stage.bad_lines, max_document_bytes=stage.max_document_bytes)
    with RejectFile(folder / "rejects.jsonl") as rejects:

        def read_files(files: Sequence[Path], root: Path) -> Iterator[Example]:
            if not stage.passages.labels:
                return read_examples(files, options, rejects, root)
            return read_passages(files, stage.passages, options, rejects, root)

        def read(key: str) -> Iterator[Example]:
            return read_groups(work.files[key], read_files)

        found = prepare(
            read("inputs"),
            Split(fraction=stage.holdout, seed=work.seed, examples=stage.examples),
            folder,
            heldout=read("heldout") if stage.heldout else None,
            rejects=rejects,
        )
    if rejects.count:
        LOG.warning("%d bad examples were left out; see %s", rejects.count, rejects.path)
    return found.to_json()


def prepare_model(stage: ClassifyStage, work: Work, labels: list[str]) -> tuple[Any, Tokenizer]:
    """The encoder with a head for these labels, and its tokenizer with marks.

    A head that the encoder has already is kept where it is of the same labels.
    """
    old, tokenizer = work.model(stage.init, does="read")
    tokenizer = with_marks(tokenizer)
    old = api.with_vocabulary(old, tokenizer.vocab_size)
    require_context(stage.context, old, place=work.name)
    same_labels = list(getattr(old, "labels", ())) == labels

    def keeps(name: str) -> bool:
        head = name.startswith("classifier.")
        return stage.weights == "init" and (same_labels or not head)

    model = with_heads(old, labelling_heads(len(labels)), seed=work.seed, keeps=keeps)
    api.name_labels(model, labels)
    return model.to(machine.pick(stage.device)), tokenizer


def text_rows(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    labels: Sequence[str],
    context: int,
    on_cut: Callable[[], None] = lambda: None,
) -> Iterator[Row]:
    """Examples as rows of a store: the number of the label, then the marked text.

    `on_cut` is called for each that was too long. Raises DataError for more labels than tokens.
    """
    if len(labels) > tokenizer.vocab_size:
        what = f"{len(labels)} labels are more than the {tokenizer.vocab_size} tokens"
        raise DataError(what, place="inputs", fix="check that label is no number of the example")
    marks, number = marks_of(tokenizer), {name: place for place, name in enumerate(labels)}
    for example in examples:
        first = tokenizer.encode(example.text)
        second = None if example.second is None else tokenizer.encode(example.second)
        whole = len(around(marks, first, second))
        if whole > context:
            on_cut()
            if second is None:
                first = first[: context - 2]
            else:
                first, second = fitted(first, second, context - 3)
        size = len((example.text + (example.second or "")).encode())
        yield Row([number[example.label], *around(marks, first, second)], size)


def prepare_data(
    stage: ClassifyStage, work: Work, tokenizer: Tokenizer, labels: list[str]
) -> tuple[TokenStore, Plan, int]:
    """Encode the training examples and write the packing plan, once; how many were cut."""
    folder = work.folder / "data"
    if (folder / shared.PLAN).exists():
        try:
            count = int(json.loads((folder / CUT).read_text("utf-8"))["cut"])
            return open_store(folder), read_plan(folder / shared.PLAN), count
        except DataError as error:
            LOG.warning("the token store is made again: %s: %s", error.place, error.what)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            LOG.warning("the token store is made again: %s: %s", folder / CUT, error)
    cut: list[None] = []
    train = read_prepared(work.folder / "examples" / "train.jsonl")
    rows = text_rows(train, tokenizer, labels, stage.context, lambda: cut.append(None))
    store = write_rows(folder, rows, tokenizer)
    plan = plan_whole(store.offsets, stage.context)
    write_json(folder / CUT, {"format_version": 1, "cut": len(cut)})
    write_plan(folder / shared.PLAN, plan)
    return store, plan, len(cut)


def heldout_batches(
    examples: Sequence[Example], tokenizer: Tokenizer, labels: list[str], context: int
) -> tuple[list[LabelledBatch], list[Example]]:
    """Held-out examples in packed rows, and the examples in the order of the rows."""
    store = in_memory(text_rows(examples, tokenizer, labels, context))
    if not store.num_documents:
        return [], []
    plan, marks = plan_whole(store.offsets, context), marks_of(tokenizer)
    starts = range(0, plan.num_samples, TOGETHER)
    return [
        labelled(store, plan, np.arange(s, min(s + TOGETHER, plan.num_samples)), marks)
        for s in starts
    ], [examples[document] for document in plan.document]


def spread(examples: list[Example], count: int) -> list[Example]:
    """At most so many examples, evenly spread: files are often sorted by label."""
    return examples[:: max(1, math.ceil(len(examples) / count))]


def watcher(
    training: Training, batches: list[LabelledBatch], counts: list[int]
) -> Callable[[], None]:
    """A function that labels held-out texts and notes the score; nothing where there are none."""

    def watch() -> None:
        if batches:
            found = labelling(training.model, batches, label_scores, counts)
            training.watched(
                found.loss,
                heldout_label_loss=found.loss,
                heldout_label_accuracy=found.accuracy,
            )

    return watch


def sampler(training: Training, examples: Sequence[Example]) -> Callable[[], None]:
    """A function that notes which labels a few held-out texts get."""

    def sample() -> None:
        asked = [e.text if e.second is None else (e.text, e.second) for e in examples]
        for example, given in zip(
            examples, label(training.model, training.tokenizer, asked), strict=True
        ):
            training.samples.add(
                step=training.step,
                tokens=training.tokens,
                prompt=example.text,
                text=next(iter(given)),
                label=example.label,
            )

    return sample


def row(found: Labelling, labels: list[str]) -> dict[str, Any]:
    """The score as the summary holds it: rows of the matrix are the right labels."""
    interval = [found.interval.low, found.interval.high]
    return {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "interval": interval,
        "right": found.right,
        "texts": found.texts,
        "majority": found.majority,
        "labels": labels,
        "matrix": found.matrix_LL.tolist(),
    }


def write_given(path: Path, examples: Sequence[Example], given: Sequence[str]) -> None:
    """Every held-out text with its right label and the one that it got."""
    with atomic_file(path) as file:
        for example, said in zip(examples, given, strict=True):
            line = json.dumps(example.to_json() | {"given": said}, ensure_ascii=False)
            file.write(line.encode() + b"\n")


def score(
    stage: ClassifyStage, training: Training, labels: list[str], counts: list[int]
) -> dict[str, Any] | None:
    """Label every held-out text and write `labelled.jsonl`; None where nothing is held out."""
    folder = training.work.folder
    examples = list(read_prepared(folder / "examples" / "heldout.jsonl"))
    batches, ordered = heldout_batches(examples, training.tokenizer, labels, stage.context)
    if not batches:
        return None
    found = labelling(training.model, batches, label_scores, counts)
    write_given(folder / "labelled.jsonl", ordered, [labels[number] for number in found.given_N])
    return row(found, labels)


def ledger(training: Training, cut: int) -> dict[str, Any]:
    """Texts and places of all steps: places = read + padded."""
    plan, store = training.plan, training.store
    return {
        "documents": store.num_documents,
        "cut": cut,
        "labelled": training.tokens,
        "read": training.filled,
        "padded": training.places - training.filled,
        "places": training.places,
        "epochs": training.places / (plan.num_samples * plan.context),
    }


def run(stage: ClassifyStage, work: Work) -> dict[str, Any]:
    """Train, and leave `final/` as a Hugging Face folder that names its labels."""
    found = work.world.told(lambda: prepare_examples(stage, work))
    labels = list(found["labels"])
    counts = [found["labels"][name]["train"] for name in labels]
    model, tokenizer = prepare_model(stage, work, labels)
    store, plan, cut = work.world.first(lambda: prepare_data(stage, work, tokenizer, labels))
    training = shared.begin(
        stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps(plan)
    )
    heldout = read_prepared(work.folder / "examples" / "heldout.jsonl")
    watched = spread(list(heldout), stage.watch.texts)
    batches, _ = heldout_batches(watched, tokenizer, labels, stage.context)
    watch = watcher(training, batches, counts)
    if training.step == 0:
        watch()
    if training.step < training.num_steps:
        occasions = [
            (stage.watch.every or training.num_steps, watch),
            (stage.samples.every, sampler(training, spread(watched, SHOWN))),
        ]
        windows = windows_with(marks_of(tokenizer))
        shared.train(training, label_loss, *occasions, windows=windows)
    scored = score(stage, training, labels, counts)
    shared.write_model(training)
    return shared.summary(training) | {
        "examples": found,
        "heldout": scored,
        "ledger": ledger(training, cut),
    }
