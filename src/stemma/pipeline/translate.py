"""Stage `translate`: train an encoder-decoder on sentence pairs, and score what it then writes.

One byte-level vocabulary is learned from both languages. Along training it notes the loss on
held-out pairs; at the end it translates the held-out sources by beam search and scores them with
sacrebleu, whose signature says how. What cannot end well is refused before the first step: a
held-out sentence that does not fit, a missing package. What runs the steps, and what makes them
resumable, is `stemma.pipeline.training`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError
from stemma.core.extras import require
from stemma.core.files import atomic_file, write_json, write_text
from stemma.core.progress import LOG, progress
from stemma.data.bpe import Splitting, train_tokenizer
from stemma.data.bundles import (
    Bundles,
    PairBatch,
    PairStore,
    every_bundle,
    plan_bundles,
    read_bundles,
    write_bundles,
)
from stemma.data.pairs import ANY_TEXT, Pair, PairCounts, read_lines, read_pairs
from stemma.data.sources import Kind
from stemma.data.store import Row, open_store, write_rows
from stemma.data.tokenizer import Tokenizer
from stemma.eval.answers import answer_loss
from stemma.eval.bleu import bleu
from stemma.infer.translate import BeamSearch, ends_of, translate
from stemma.pipeline import keys, regime
from stemma.pipeline import training as shared
from stemma.pipeline.training import Training
from stemma.pipeline.work import Groups, Work
from stemma.train.translate import translation_loss, translation_parts, windows

VERSION = 1
ACCOUNT = "pairs.json"  # what became of the training lines
SHOWN = 20  # translations that the result holds
SAMPLED = 4  # held-out sentences translated along training, where the recipe names none


class Watch(StrictModel):
    """Scoring along training on the held-out pairs."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: at the end only")


class Samples(StrictModel):
    """Sentences translated along training, by the stage's own search, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")
    prompts: tuple[str, ...] = Field(
        default=(), description="what to translate; default: the first held-out sentences"
    )


class TranslateStage(StrictModel):
    """Train on sentence pairs. One of `epochs`, `tokens` and `steps`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {}
    FILES: ClassVar[tuple[str, ...]] = ("source", "target", "heldout_source", "heldout_target")
    READS: ClassVar[Mapping[str, Kind]] = ANY_TEXT
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN
    DATA: ClassVar[frozenset[str]] = keys.LENGTHS | {"source", "target", "epochs"}
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
    context: keys.Context
    epochs: int | None = Field(default=None, ge=1, description="passes over the pairs")
    tokens: keys.Tokens
    steps: keys.Steps
    batch_tokens: keys.BatchTokens
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the probability spread over the vocabulary"
    )
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
    watch: Watch = Field(default=Watch(), description="held-out loss along training")
    samples: Samples = Field(default=Samples(), description="translations along training")
    search: BeamSearch = Field(default=BeamSearch(), description="how it translates")
    checkpoint_every: keys.CheckpointEvery
    keep_checkpoints: keys.KeepCheckpoints
    saving: keys.SavingSetting
    parallel: keys.Processes
    workers: keys.Workers
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "TranslateStage":
        if sum(value is not None for value in (self.epochs, self.tokens, self.steps)) != 1:
            raise ValueError("give one of epochs, tokens and steps")
        keys.check_batches(self)
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


@dataclass(frozen=True)
class Account:
    """What became of the training lines: `lines` = `train` + `empty` + `too_long`.

    `seen_sources` counts held-out sentences that training has too, `seen_pairs` those of them that
    have the same translation there.
    """

    lines: int
    train: int
    empty: int
    too_long: int
    seen_sources: int
    seen_pairs: int


def paths_of(groups: Groups) -> list[Path]:
    """The files of one key, in the order in which they pair up."""
    return [path for _, files in groups for path in files]


def pairs_of(work: Work, counts: PairCounts) -> Iterator[Pair]:
    """The pairs to train on."""
    sources, targets = work.files["source"], work.files["target"]
    return read_pairs(paths_of(sources), paths_of(targets), sources[0][0], counts)


def heldout_lines(stage: TranslateStage, work: Work, tokenizer: Tokenizer) -> list[Pair]:
    """Every held-out line, also those without text.

    Raises DataError for a sentence that the network could not read, and where no line is a pair.
    """
    sources, targets = work.files["heldout_source"], work.files["heldout_target"]
    lines = list(read_lines(paths_of(sources), paths_of(targets), sources[0][0]))
    require_pairs(lines, f"{work.name}: heldout_source")
    longer = [
        (pair.place, length)
        for pair in lines
        if (length := source_length(pair.source, tokenizer)) > stage.context
    ]
    if longer:
        place, length = longer[0]
        what = f"{length} tokens of a held-out sentence do not fit context ({stage.context})"
        what += f", nor do {len(longer) - 1} more" if len(longer) > 1 else ""
        raise DataError(what, place=place, fix="raise context, or shorten the sentence")
    return lines


def require_pairs(lines: Iterable[Pair], place: str) -> None:
    """Refuse files of which no line has text on both sides (DataError)."""
    if not any(pair.whole for pair in lines):
        what = "no line has text on both sides"
        raise DataError(what, place=place, fix="check the files")


def source_length(text: str, tokenizer: Tokenizer) -> int:
    """Tokens of a source as the network reads it, the end included."""
    return len(tokenizer.encode(text)) + 1


def prompts_of(
    stage: TranslateStage, work: Work, tokenizer: Tokenizer, lines: Sequence[Pair]
) -> list[str]:
    """What is translated along training. Raises UsageError for a text that does not fit."""
    for prompt in stage.samples.prompts:
        length = source_length(prompt, tokenizer)
        if length > stage.context:
            what = f"a prompt of {length} tokens does not fit context ({stage.context})"
            raise UsageError(what, place=f"{work.name}: samples.prompts", fix="shorten it")
    return list(stage.samples.prompts) or [p.source for p in lines if p.source][:SAMPLED]


def prepare_tokenizer(stage: TranslateStage, work: Work) -> Tokenizer:
    """Learn the vocabulary of both languages from the training pairs, once."""
    folder = work.folder / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return api.load_tokenizer(folder)
    pairs = list(pairs_of(work, PairCounts()))
    require_pairs(pairs, f"{work.name}: source")
    texts = chain.from_iterable((pair.source, pair.target) for pair in pairs)
    tokenizer = train_tokenizer(texts, vocab_size=stage.vocab_size, splitting=stage.splitting)
    for name, text in tokenizer.files().items():  # the config comes last: then all is there
        write_text(folder / name, text)
    return api.load_tokenizer(folder)


def prepare_data(
    stage: TranslateStage, work: Work, tokenizer: Tokenizer, lines: Sequence[Pair]
) -> tuple[PairStore, Bundles, Account]:
    """Encode the training pairs and write the plan, once; returns their account too."""
    folder = work.folder / "data"
    if (folder / shared.PLAN).exists():
        try:
            plan = read_bundles(folder / shared.PLAN)
            return open_pairs(folder), plan, read_account(folder / ACCOUNT)
        except DataError as error:  # made again; the fingerprints tell whether it is the same
            LOG.warning("the token store is made again: %s: %s", error.place, error.what)
    counts = PairCounts()
    pairs = list(pairs_of(work, counts))
    store = write_pairs(folder, pairs, tokenizer)
    plan = plan_of(store, stage.context, seed=work.seed)
    if not plan.num_samples:
        what = f"no pair of at most {stage.context} tokens among {len(pairs)}"
        raise DataError(what, place=work.name, fix="raise context, or check the files")
    kept = len(plan.pair)
    seen = already_seen(pairs, lines)
    account = Account(counts.lines, kept, counts.empty, counts.pairs - kept, *seen)
    write_json(folder / ACCOUNT, {"format_version": 1, **asdict(account)})
    write_bundles(folder / shared.PLAN, plan)  # last: then all is there
    return store, plan, account


def plan_of(store: PairStore, context: int, *, seed: int) -> Bundles:
    """The bundles of a store; what a target begins with is not to be predicted."""
    lengths = [np.diff(side.offsets) for side in (store.source, store.target)]
    return plan_bundles(lengths[0], lengths[1] - 1, context=context, seed=seed)


def already_seen(train: Iterable[Pair], heldout: Iterable[Pair]) -> tuple[int, int]:
    """How many held-out sentences training has too, and how many with the same translation."""
    pairs = {(pair.source, pair.target) for pair in train}
    sources = {source for source, _ in pairs}
    asked = [pair for pair in heldout if pair.whole]
    return (
        sum(pair.source in sources for pair in asked),
        sum((pair.source, pair.target) in pairs for pair in asked),
    )


def read_account(path: Path) -> Account:
    """What became of the training lines; raises DataError where the file is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return Account(**{field.name: int(found[field.name]) for field in fields(Account)})
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        fix = "remove it: the stage makes it again"
        raise DataError(f"not a usable account ({error})", place=path, fix=fix) from error


def tell(stage: TranslateStage, account: Account, heldout: Mapping[str, int]) -> None:
    """Say what is left out, and what makes the scores look better than they are."""
    left = {
        "left out of training, lines with an empty side": account.empty,
        f"left out of training, pairs longer than {stage.context} tokens": account.too_long,
        "not scored, held-out lines with an empty side": heldout["empty"],
        "left out of the loss along training, held-out translations longer than "
        f"{stage.context} tokens": heldout["outside_loss"],
    }
    for what, count in left.items():
        if count:
            LOG.warning("%s: %d", what, count)
    if account.seen_sources:
        what = "%d of %d held-out sentences are in training too, %d with the same translation: "
        what += "the scores on them flatter"
        LOG.warning(what, account.seen_sources, heldout["scored"], account.seen_pairs)


def open_pairs(folder: Path) -> PairStore:
    """The token stores of both sides; raises DataError where one is damaged or missing."""
    return PairStore(open_store(folder / "source"), open_store(folder / "target"))


def write_pairs(folder: Path, pairs: Sequence[Pair], tokenizer: Tokenizer) -> PairStore:
    """Both sides of the pairs as token stores."""
    start, end = ends_of(tokenizer)

    def rows(side: str) -> Iterator[Row]:
        for pair in pairs:
            text = getattr(pair, side)
            ids = tokenizer.encode(text)
            begun = ids if side == "source" else [start, *ids]
            yield Row([*begun, end], len(text.encode()))

    source, target = (
        write_rows(folder / side, rows(side), tokenizer) for side in ("source", "target")
    )
    return PairStore(source, target)


def heldout_batches(
    stage: TranslateStage, work: Work, tokenizer: Tokenizer, lines: Sequence[Pair]
) -> tuple[list[PairBatch], dict[str, int]]:
    """The held-out pairs as bundles, and what became of the lines: `lines` = `scored` + `empty`.

    A pair whose translation does not fit is scored, and has no part in the loss: `outside_loss`.
    """
    pairs = [pair for pair in lines if pair.whole]
    store = write_pairs(work.folder / "data" / "heldout", pairs, tokenizer)
    plan = plan_of(store, stage.context, seed=0)
    if not plan.num_samples:
        what = f"no held-out pair of at most {stage.context} tokens"
        raise DataError(what, place=work.name, fix="raise context, or check the files")
    return list(every_bundle(store, plan)), {
        "lines": len(lines),
        "scored": len(pairs),
        "empty": sum(not pair.whole for pair in lines),
        "outside_loss": len(pairs) - len(plan.pair),
    }


def watcher(training: Training, batches: list[PairBatch]) -> Callable[[], None]:
    """A function that notes the loss on held-out pairs, without smoothing."""

    def watch() -> None:
        loss = answer_loss(training.model, batches, translation_loss()).loss
        training.watched(loss, heldout_target_loss=loss)

    return watch


def sampler(
    stage: TranslateStage, training: Training, prompts: Sequence[str]
) -> Callable[[], None]:
    """A function that writes the translations of a few sentences."""

    def sample() -> None:
        made = translate(training.model, training.tokenizer, prompts, stage.search)
        for prompt, text in zip(prompts, made, strict=True):
            at = {"step": training.step, "tokens": training.tokens}
            training.samples.add(**at, prompt=prompt, text=text)

    return sample


def on_one_line(text: str) -> str:
    """A text without line ends: a file of translations has one line for each of the source's.

    >>> on_one_line("ein Hund\\nund ein Ball")
    'ein Hund und ein Ball'
    """
    return " ".join(text.splitlines())


def score(
    stage: TranslateStage, work: Work, model: Any, tokenizer: Tokenizer, lines: Sequence[Pair]
) -> dict[str, Any]:
    """Translate the held-out sources, write `translations.txt`, and score it.

    The file has a line for every held-out line, an empty one where there is no source. What has no
    translation to compare with is translated and not scored.
    """
    asked = [pair.source for pair in lines if pair.source]
    with progress(f"{work.name} translates", len(asked)) as update:
        made = iter(translate(model, tokenizer, asked, stage.search, update=update))
    texts = [on_one_line(next(made)) if pair.source else "" for pair in lines]
    if work.world.leads:
        with atomic_file(work.folder / "translations.txt") as file:
            file.write("".join(f"{text}\n" for text in texts).encode())
    scored = [(pair, text) for pair, text in zip(lines, texts, strict=True) if pair.whole]
    return {
        **bleu([text for _, text in scored], [pair.target for pair, _ in scored]),
        "sentences": len(scored),
        "search": stage.search.model_dump(),
        "shown": [
            {"source": pair.source, "wanted": pair.target, "made": text}
            for pair, text in scored[:SHOWN]
        ],
    }


def ledger(training: Training, account: Account, heldout: Mapping[str, int]) -> dict[str, Any]:
    """Where every line went, and every place for a target token over all epochs."""
    pairs = asdict(account)
    seen = {key: pairs.pop(key) for key in ("seen_sources", "seen_pairs")}
    return {
        "pairs": pairs,
        "heldout": {**heldout, **seen},
        "trained": training.tokens,
        "padded": training.places - training.filled,
        "places": training.places,
        "epochs": training.places / (training.plan.num_samples * training.plan.context),
    }


def run(stage: TranslateStage, work: Work) -> dict[str, Any]:
    """Train, leave `final/` as a model folder, and translate what was held out."""
    require("eval", "sacrebleu")  # now, not after the training
    tokenizer = work.world.first(lambda: prepare_tokenizer(stage, work))
    model = prepare_model(stage, work, tokenizer)
    lines = heldout_lines(stage, work, tokenizer)
    prompts = prompts_of(stage, work, tokenizer, lines)
    store, plan, account = work.world.first(lambda: prepare_data(stage, work, tokenizer, lines))
    batches, heldout = work.world.first(lambda: heldout_batches(stage, work, tokenizer, lines))
    tell(stage, account, heldout)
    training = shared.begin(
        stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps(plan)
    )
    if training.step < training.num_steps:
        occasions = [
            (stage.watch.every or training.num_steps, watcher(training, batches)),
            (stage.samples.every, sampler(stage, training, prompts)),
        ]
        smoothing = stage.label_smoothing
        parts = partial(translation_parts, smoothing=smoothing)
        loss = regime.objective(translation_loss(smoothing), parts, stage.z_loss)
        shared.train(training, loss, *occasions, windows=windows)
    found = score(stage, work, model, tokenizer, lines)
    api.translate_with(model, stage.search)
    shared.write_model(training)
    return shared.summary(training) | {
        "ledger": ledger(training, account, heldout),
        "translation": found,
    }


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
