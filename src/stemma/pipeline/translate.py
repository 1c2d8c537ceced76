"""Stage `translate`: train an encoder-decoder on sentence pairs, and score what it then writes.

One byte-level vocabulary is learned from both languages. Along training it notes the loss on
held-out pairs; at the end it translates the held-out sources by beam search and scores them with
sacrebleu, whose signature says how. What runs the steps, and what makes them resumable, is
`stemma.pipeline.training`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import atomic_file, write_json, write_text
from stemma.core.progress import LOG, progress
from stemma.data.bpe import Splitting, train_tokenizer
from stemma.data.bundles import (
    Bundles,
    PairStore,
    build_bundle,
    plan_bundles,
    read_bundles,
    write_bundles,
)
from stemma.data.pairs import ANY_TEXT, Pair, PairCounts, read_pairs
from stemma.data.sources import Kind
from stemma.data.store import Row, open_store, write_rows
from stemma.data.tokenizer import Tokenizer
from stemma.eval.answers import answer_loss
from stemma.eval.bleu import bleu
from stemma.infer.translate import BeamSearch, ends_of, translate
from stemma.pipeline import training as shared
from stemma.pipeline.training import Training
from stemma.pipeline.work import Groups, Work
from stemma.train.translate import translation_loss, windows

VERSION = 1
SHOWN = 20  # translations that the result holds


class Watch(StrictModel):
    """Scoring along training on the held-out pairs."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: at the end only")


class TranslateStage(StrictModel):
    """Train on sentence pairs. One of `epochs`, `tokens` and `steps`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {}
    FILES: ClassVar[tuple[str, ...]] = ("source", "target", "heldout_source", "heldout_target")
    READS: ClassVar[Mapping[str, Kind]] = ANY_TEXT
    UNSEEN: ClassVar[frozenset[str]] = shared.UNSEEN
    DATA: ClassVar[frozenset[str]] = shared.LENGTHS | {"source", "target", "epochs"}
    DATA_INPUTS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["translate"] = Field(description="the kind of stage")
    source: tuple[str, ...] = Field(min_length=1, description="files of sentences, one a line")
    target: tuple[str, ...] = Field(min_length=1, description="their translations, line by line")
    heldout_source: tuple[str, ...] = Field(min_length=1, description="sentences to score on")
    heldout_target: tuple[str, ...] = Field(min_length=1, description="their translations")
    vocab_size: int = Field(ge=257, description="entries of the vocabulary of both languages")
    splitting: Splitting = Field(
        default="gpt-2", description="rule that cuts words, by its name in llama.cpp"
    )
    model: dict[str, Any] = Field(
        description="family or preset, and numbers, of an encoder-decoder"
    )
    context: shared.Context
    epochs: int | None = Field(default=None, ge=1, description="passes over the pairs")
    tokens: shared.Tokens
    steps: shared.Steps
    batch_tokens: shared.BatchTokens
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the probability spread over the vocabulary"
    )
    learning_rate: shared.LearningRate
    schedule: shared.RateSchedule
    optimizer: shared.Optimizer
    clip: shared.Clip
    trainable: shared.Trainable
    watch: Watch = Field(default=Watch(), description="held-out loss along training")
    samples: shared.SampleSetting
    search: BeamSearch = Field(default=BeamSearch(), description="how it translates")
    checkpoint_every: shared.CheckpointEvery
    keep_checkpoints: shared.KeepCheckpoints
    workers: shared.Workers
    device: shared.Device
    minutes: shared.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "TranslateStage":
        if sum(value is not None for value in (self.epochs, self.tokens, self.steps)) != 1:
            raise ValueError("give one of epochs, tokens and steps")
        shared.check_batches(self)
        return self

    @property
    def micro_batch_tokens(self) -> int:
        """Each bundle goes through the network alone."""
        return self.context

    def num_steps(self, plan: Bundles) -> int:
        """Optimizer steps of the whole run over the bundles of `plan`."""
        if self.epochs is not None:
            return math.ceil(self.epochs * plan.num_samples / shared.batch_rows(self))
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


def paths_of(groups: Groups) -> list[Path]:
    """The files of one key, in the order in which they pair up."""
    return [path for _, files in groups for path in files]


def pairs_of(work: Work, source: str, target: str, counts: PairCounts) -> Iterator[Pair]:
    """The pairs of two keys of the stage."""
    sources, targets = work.files[source], work.files[target]
    return read_pairs(paths_of(sources), paths_of(targets), sources[0][0], counts)


def prepare_tokenizer(stage: TranslateStage, work: Work) -> Tokenizer:
    """Learn the vocabulary of both languages from the training pairs, once."""
    folder = work.folder / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return api.load_tokenizer(folder)
    pairs = pairs_of(work, "source", "target", PairCounts())
    texts = chain.from_iterable((pair.source, pair.target) for pair in pairs)
    tokenizer = train_tokenizer(texts, vocab_size=stage.vocab_size, splitting=stage.splitting)
    for name, text in tokenizer.files().items():  # the config comes last: then all is there
        write_text(folder / name, text)
    return api.load_tokenizer(folder)


def prepare_data(
    stage: TranslateStage, work: Work, tokenizer: Tokenizer
) -> tuple[PairStore, Bundles, dict[str, int]]:
    """Encode the training pairs and write the plan, once; returns their ledger too."""
    folder = work.folder / "data"
    counts = PairCounts()
    plan_path = folder / shared.PLAN
    if not plan_path.exists():
        pairs = list(pairs_of(work, "source", "target", counts))
        write_pairs(folder, pairs, tokenizer)
    store = PairStore(open_store(folder / "source"), open_store(folder / "target"))
    if not plan_path.exists():
        lengths = [np.diff(side.offsets) for side in (store.source, store.target)]
        plan = plan_bundles(lengths[0], lengths[1] - 1, context=stage.context, seed=work.seed)
        if not plan.num_samples:
            what = f"no pair of at most {stage.context} tokens among {store.source.num_documents}"
            raise DataError(what, place=work.name, fix="raise context, or check the files")
        write_bundles(plan_path, plan)
        write_json(folder / "pairs.json", vars(counts))
    plan = read_bundles(plan_path)
    left_out = store.source.num_documents - len(plan.pair)
    if left_out:
        LOG.warning("%d pairs longer than %d tokens are left out", left_out, stage.context)
    return store, plan, {"pairs": store.source.num_documents, "too_long": left_out}


def write_pairs(folder: Path, pairs: list[Pair], tokenizer: Tokenizer) -> None:
    """Both sides of the pairs as token stores."""
    start, end = ends_of(tokenizer)

    def rows(side: str) -> Iterator[Row]:
        for pair in pairs:
            text = getattr(pair, side)
            ids = tokenizer.encode(text)
            begun = ids if side == "source" else [start, *ids]
            yield Row([*begun, end], len(text.encode()))

    for side in ("source", "target"):
        write_rows(folder / side, rows(side), tokenizer)


def heldout_batches(stage: TranslateStage, work: Work, tokenizer: Tokenizer) -> list[Any]:
    """The held-out pairs as bundles."""
    pairs = list(pairs_of(work, "heldout_source", "heldout_target", PairCounts()))
    folder = work.folder / "data" / "heldout"
    write_pairs(folder, pairs, tokenizer)
    store = PairStore(open_store(folder / "source"), open_store(folder / "target"))
    lengths = [np.diff(side.offsets) for side in (store.source, store.target)]
    plan = plan_bundles(lengths[0], lengths[1] - 1, context=stage.context, seed=0)
    if not plan.num_samples:
        what = f"no held-out pair of at most {stage.context} tokens"
        raise DataError(what, place=work.name, fix="raise context, or check the files")
    return [build_bundle(store, plan, sample) for sample in range(plan.num_samples)]


def watcher(training: Training, batches: list[Any]) -> Callable[[], None]:
    """A function that notes the loss on held-out pairs, without smoothing."""

    def watch() -> None:
        loss = answer_loss(training.model, batches, translation_loss()).loss
        training.metrics.add(step=training.step, tokens=training.tokens, heldout_target_loss=loss)

    return watch


def sampler(stage: TranslateStage, training: Training, texts: list[str]) -> Callable[[], None]:
    """A function that writes the translations of a few sentences."""
    prompts = list(stage.samples.prompts) or texts[:4]

    def sample() -> None:
        made = translate(training.model, training.tokenizer, prompts, stage.search)
        shared.add_samples(training, prompts, made, 0.0)

    return sample


def score(stage: TranslateStage, work: Work, model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Translate the held-out sources, write `translations.txt`, and score it."""
    pairs = list(pairs_of(work, "heldout_source", "heldout_target", PairCounts()))
    with progress(f"{work.name} translates", len(pairs)) as update:
        made = translate(model, tokenizer, [p.source for p in pairs], stage.search, update=update)
    with atomic_file(work.folder / "translations.txt") as file:
        file.write("".join(f"{text}\n" for text in made).encode())
    shown = zip(pairs[:SHOWN], made[:SHOWN], strict=True)
    return {
        **bleu(made, [pair.target for pair in pairs]),
        "sentences": len(pairs),
        "search": stage.search.model_dump(),
        "shown": [
            {"source": pair.source, "wanted": pair.target, "made": text} for pair, text in shown
        ],
    }


def run(stage: TranslateStage, work: Work) -> dict[str, Any]:
    """Train, leave `final/` as a model folder, and translate what was held out."""
    tokenizer = prepare_tokenizer(stage, work)
    model = prepare_model(stage, work, tokenizer)
    store, plan, ledger = prepare_data(stage, work, tokenizer)
    training = shared.begin(
        stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps(plan)
    )
    if training.step < training.num_steps:
        texts = [p.source for p in pairs_of(work, "heldout_source", "heldout_target", PairCounts())]
        watch = watcher(training, heldout_batches(stage, work, tokenizer))
        occasions = [
            (stage.watch.every or training.num_steps, watch),
            (stage.samples.every, sampler(stage, training, texts)),
        ]
        loss = translation_loss(stage.label_smoothing)
        shared.train(training, loss, *occasions, windows=windows)
    found = score(stage, work, model, tokenizer)
    model.to("cpu")
    api.save(model, tokenizer, work.folder / "final", format="hf", overwrite=True)
    return shared.summary(training) | {"ledger": ledger, "translation": found}


def prepare_model(stage: TranslateStage, work: Work, tokenizer: Tokenizer) -> Any:
    """Build the network by its numbers."""
    family, numbers = api.network(stage.model)
    numbers |= given_numbers(family, tokenizer.vocab_size, stage)
    model: Any = api.build(family, seed=work.seed, **numbers)
    return model.to(machine.pick(stage.device))


def given_numbers(family: str, vocab_size: int, stage: TranslateStage) -> dict[str, int]:
    """The numbers that the data and the stage say: of the vocabulary, on both sides, and length."""
    given = {"vocab_size": vocab_size, "source_vocab_size": vocab_size, "context": stage.context}
    known = api.config_class(family).model_fields
    return {key: value for key, value in given.items() if key in known}
