"""Stage `masked`: train an encoder to foretell hidden tokens of the corpus, as BERT was.

Documents are cut into windows with marks around them; a tokenizer without marks gets them. Now and
then it scores held-out windows, whose masks never change, and fills in masked texts. What runs the
steps, and what makes them resumable, is `stemma.pipeline.training`.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError
from stemma.core.progress import LOG
from stemma.data.batches import IGNORED, Batch
from stemma.data.curate import read_texts
from stemma.data.marked import Marks, marks_of, plan_windows, window_batch, window_rows, with_marks
from stemma.data.packing import Plan, read_plan, write_plan
from stemma.data.store import TokenStore, in_memory, open_store, write_rows
from stemma.data.tokenizer import Tokenizer
from stemma.eval.foretold import Foretelling, foretelling, unigram
from stemma.infer.encoders import fill
from stemma.pipeline import keys, regime
from stemma.pipeline import training as shared
from stemma.pipeline.encoders import MASKED, with_heads
from stemma.pipeline.training import Training
from stemma.pipeline.work import Work, require_context
from stemma.train.masked import (
    FIXED,
    Masker,
    Masking,
    foretold,
    masked,
    masked_loss,
    masked_parts,
    masker_for,
    windows_with,
)

VERSION = 1
TOGETHER = 8  # held-out windows that are scored at once
SHOWN_TOKENS = 24  # of a held-out window, where the recipe names no texts to fill in
TEXTS = 3


class Watch(StrictModel):
    """Scoring along training on held-out windows with masks that never change."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: at the ends only")
    windows: int = Field(default=200, ge=1, description="windows to score, at most")


class Fills(StrictModel):
    """Masked texts that are filled in along training, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")
    texts: tuple[str, ...] = Field(
        default=(), description="texts with [MASK] to fill in; default: held-out ones"
    )


class MaskedStage(StrictModel):
    """Train on hidden tokens. One of `tokens` and `steps`, one of `model` and `init`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "corpus": ("curate",),
        "tokenizer": ("tokenizer",),
        "init": ("masked",),
    }
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN
    DATA: ClassVar[frozenset[str]] = keys.LENGTHS | {"corpus"}
    DATA_INPUTS: ClassVar[tuple[str, ...]] = ("corpus", "tokenizer")

    kind: Literal["masked"] = Field(description="the kind of stage")
    corpus: str = Field(description="the curate stage to train on")
    tokenizer: str | None = Field(default=None, description="a tokenizer stage; with `model`")
    model: dict[str, Any] | None = Field(
        default=None, description="family and numbers of an encoder"
    )
    init: str | None = Field(
        default=None, description="an encoder to go on from, with its tokenizer"
    )
    masking: Masking = Field(default=Masking(), description="which tokens are foretold")
    context: keys.Context
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
    z_loss: keys.ZLoss
    ema: keys.Averaging
    guard: keys.Guarding
    statistics: keys.StatisticsSetting
    profile: keys.Profiling
    watch: Watch = Field(default=Watch(), description="held-out scores along training")
    samples: Fills = Field(default=Fills(), description="masked texts filled in along training")
    checkpoint_every: keys.CheckpointEvery
    keep_checkpoints: keys.KeepCheckpoints
    saving: keys.SavingSetting
    parallel: keys.Processes
    workers: keys.Workers
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "MaskedStage":
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give one of tokens and steps, not both or neither")
        if (self.model is None) == (self.init is None):
            raise ValueError("give one of model and init, not both or neither")
        if (self.model is None) != (self.tokenizer is None):
            raise ValueError("tokenizer goes with model; init brings its own")
        if self.context < 3:
            raise ValueError(f"context ({self.context}) has no room for a token between two marks")
        keys.check_batches(self)
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


def prepare_model(stage: MaskedStage, work: Work) -> tuple[Any, Tokenizer]:
    """Build the network by its numbers, or load the one to go on from; both get the marks."""
    if stage.init is not None:
        model, tokenizer = work.model(stage.init, does="read")
        if not model.config.masked_head:
            LOG.warning("%s has no head for masked tokens: it gets a new one", stage.init)
        tokenizer = with_marks(tokenizer)
        model = api.with_vocabulary(model, tokenizer.vocab_size)
        model = with_heads(model, MASKED, seed=work.seed)
    else:
        assert stage.model is not None and stage.tokenizer is not None
        tokenizer = with_marks(api.load_tokenizer(work.inputs[stage.tokenizer].path / "final"))
        family, numbers = api.network(stage.model)
        numbers |= {"vocab_size": tokenizer.vocab_size, "context": stage.context}
        model = api.build(family, seed=work.seed, **(numbers | MASKED))
    require_context(stage.context, model, place=work.name)
    return model.to(machine.pick(stage.device)), tokenizer


def prepare_data(stage: MaskedStage, work: Work, tokenizer: Tokenizer) -> tuple[TokenStore, Plan]:
    """Encode the training documents as windows and write the packing plan, once."""
    folder = work.folder / "data"
    if (folder / shared.PLAN).exists():
        try:
            return open_store(folder), read_plan(folder / shared.PLAN)
        except DataError as error:  # made again; the fingerprints tell whether it is the same
            LOG.warning("the token store is made again: %s: %s", error.place, error.what)
    texts = read_texts(work.corpus(stage.corpus)[0])
    store = write_rows(folder, window_rows(texts, tokenizer, stage.context), tokenizer)
    plan = plan_windows(store.offsets, stage.context)
    write_plan(folder / shared.PLAN, plan)
    return store, plan


def heldout_store(stage: MaskedStage, work: Work, tokenizer: Tokenizer) -> TokenStore:
    """Windows of held-out documents, evenly spread over them, `watch.windows` at most."""
    rows = list(window_rows(read_texts(work.corpus(stage.corpus)[1]), tokenizer, stage.context))
    step = max(1, math.ceil(len(rows) / stage.watch.windows))
    return in_memory(rows[::step])


def heldout_batches(store: TokenStore, context: int, masker: Masker, marks: Marks) -> list[Batch]:
    """Held-out windows with masks that are the same whenever they are scored."""
    if not store.num_documents:
        return []
    plan = plan_windows(store.offsets, context)
    batches = []
    for start in range(0, plan.num_samples, TOGETHER):
        samples = np.arange(start, min(start + TOGETHER, plan.num_samples))
        batch = window_batch(store, plan, samples, padding=marks.padding)
        batches.append(masked(batch, np.full(len(samples), FIXED), masker))
    return [batch for batch in batches if batch.counted]


def watcher(training: Training, batches: list[Batch]) -> Callable[[], None]:
    """A function that scores the held-out windows and notes it; nothing where there are none."""

    def watch() -> None:
        if batches:
            found = foretelling(training.model, batches, foretold)
            training.watched(
                found.loss,
                heldout_masked_loss=found.loss,
                heldout_masked_accuracy=found.accuracy,
            )

    return watch


def sampler(stage: MaskedStage, training: Training, heldout: TokenStore) -> Callable[[], None]:
    """A function that fills in the recipe's texts, else held-out ones.

    Raises UsageError for a text without [MASK] or too long, before any training.
    """
    model, tokenizer = training.model, training.tokenizer
    texts = list(stage.samples.texts)
    if stage.samples.every and not texts:
        texts = masked_texts(heldout, tokenizer)
    try:
        fill(model, tokenizer, texts if stage.samples.every else [])
    except UsageError as error:
        place = f"{training.work.name}: samples.texts: {error.place}"
        raise UsageError(error.what, place=place, fix=error.fix) from error

    def sample() -> None:
        for text, made in zip(texts, fill(model, tokenizer, texts), strict=True):
            training.samples.add(step=training.step, tokens=training.tokens, prompt=text, text=made)

    return sample


def masked_texts(heldout: TokenStore, tokenizer: Tokenizer) -> list[str]:
    """How some held-out windows begin, with every fifth token hidden."""
    word, texts = str(tokenizer.backend.id_to_token(marks_of(tokenizer).mask)), []
    for document in islice(range(heldout.num_documents), TEXTS):
        ids = [int(token) for token in heldout.document(document)[1:-1][:SHOWN_TOKENS]]
        parts = [ids[start : start + 5] for start in range(0, len(ids), 5)]
        whole = [part for part in parts if len(part) == 5]
        text = "".join(tokenizer.decode(part[:4]) + word for part in whole)
        texts += [text.replace("\ufffd", "")] if text else []
    return texts


def score(
    training: Training, batches: list[Batch], masker: Masker
) -> dict[str, dict[str, Any]] | None:
    """The held-out score of the model and of the unigram baseline; None where nothing is."""
    if not batches:
        return None
    targets = np.concatenate([b.targets_BT[b.targets_BT != IGNORED] for b in batches])
    counts = np.bincount(training.store.tokens, minlength=len(masker.ordinary_V))
    return {
        "model": row(foretelling(training.model, batches, foretold)),
        "unigram": row(unigram(counts, masker.ordinary_V, targets)),
    }


def row(found: Foretelling) -> dict[str, Any]:
    """A score as the summary holds it."""
    interval = [found.interval.low, found.interval.high]
    return {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "interval": interval,
        "tokens": found.tokens,
    }


def ledger(training: Training) -> dict[str, Any]:
    """Where every place of every step went: places = trained + masked + padded.

    `masked` are places that were read and not foretold, as elsewhere.
    """
    plan, store = training.plan, training.store
    return {
        "store_tokens": len(store.tokens),
        "documents": store.num_documents,
        "trained": training.tokens,
        "masked": training.filled - training.tokens,
        "padded": training.places - training.filled,
        "cropped": 0,
        "places": training.places,
        "epochs": training.places / (plan.num_samples * plan.context),
    }


def run(stage: MaskedStage, work: Work) -> dict[str, Any]:
    """Train, and leave `final/` as a Hugging Face folder."""
    model, tokenizer = prepare_model(stage, work)
    store, plan = work.world.first(lambda: prepare_data(stage, work, tokenizer))
    training = shared.begin(stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps)
    marks = marks_of(tokenizer)
    masker = masker_for(
        stage.masking,
        seed=work.seed,
        marks=marks,
        control_ids=tokenizer.control_ids,
        vocab_size=tokenizer.vocab_size,
    )
    heldout = heldout_store(stage, work, tokenizer)
    batches = heldout_batches(heldout, stage.context, masker, marks)
    watch = watcher(training, batches)
    if training.step == 0:
        watch()
    if training.step < training.num_steps:
        occasions = [
            (stage.watch.every or training.num_steps, watch),
            (stage.samples.every, sampler(stage, training, heldout)),
        ]
        windows = windows_with(masker, padding=marks.padding)
        loss = regime.objective(masked_loss, masked_parts, stage.z_loss)
        shared.train(training, loss, *occasions, windows=windows)
    found = score(training, batches, masker)
    shared.write_model(training)
    return shared.summary(training) | {"heldout": found, "ledger": ledger(training)}
