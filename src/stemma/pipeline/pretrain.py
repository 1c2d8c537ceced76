"""Stage `pretrain`: train a network on the corpus, or go on from any model that can be loaded.

Now and then it scores a part of the held-out text and writes samples; what runs the steps, and
what makes them resumable, is `stemma.pipeline.training`.
"""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError
from stemma.core.progress import LOG
from stemma.data.curate import read_texts
from stemma.data.packing import Plan, plan_packing, read_plan, write_plan
from stemma.data.store import TokenStore, open_store, write_store
from stemma.data.tokenizer import Tokenizer
from stemma.eval.bits_per_byte import bits_per_byte
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling
from stemma.nn.initial import initialise_by_fan_in
from stemma.pipeline import keys, regime
from stemma.pipeline import training as shared
from stemma.pipeline.training import Training
from stemma.pipeline.work import Work, require_context
from stemma.train.pretrain import next_token_loss, next_token_parts

VERSION = 1
PROMPT_TOKENS = 8  # of the held-out text, where the recipe names no prompts


class Watch(StrictModel):
    """Scoring along training on a part of the held-out text."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: none")
    bytes: int = Field(default=64 << 10, ge=1, description="bytes of held-out text to score")


class PretrainStage(StrictModel):
    """Train on next tokens. One of `tokens` and `steps`, one of `model` and `init`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "corpus": ("curate",),
        "tokenizer": ("tokenizer",),
        "init": ("pretrain", "sft"),
    }
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN
    DATA: ClassVar[frozenset[str]] = keys.LENGTHS | {"corpus"}
    DATA_INPUTS: ClassVar[tuple[str, ...]] = ("corpus", "tokenizer")

    kind: Literal["pretrain"] = Field(description="the kind of stage")
    corpus: str = Field(description="the curate stage to train on")
    tokenizer: str | None = Field(default=None, description="a tokenizer stage; with `model`")
    model: dict[str, Any] | None = Field(
        default=None, description="family or preset, and numbers, of a network"
    )
    initial: Literal["gpt-2", "fan-in"] = Field(
        default="gpt-2", description="rule of the first weights; with `model`"
    )
    init: str | None = Field(default=None, description="a model to go on from, with its tokenizer")
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
    samples: keys.SampleSetting
    checkpoint_every: keys.CheckpointEvery
    keep_checkpoints: keys.KeepCheckpoints
    saving: keys.SavingSetting
    parallel: keys.Processes
    workers: keys.Workers
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "PretrainStage":
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give one of tokens and steps, not both or neither")
        if (self.model is None) == (self.init is None):
            raise ValueError("give one of model and init, not both or neither")
        if (self.model is None) != (self.tokenizer is None):
            raise ValueError("tokenizer goes with model; init brings its own")
        if self.init is not None and "initial" in self.model_fields_set:
            raise ValueError("initial goes with model; init brings its own weights")
        keys.check_batches(self)
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


def prepare_data(stage: PretrainStage, work: Work, tokenizer: Tokenizer) -> tuple[TokenStore, Plan]:
    """Encode the training documents and write the packing plan, once."""
    folder = work.folder / "data"
    plan_path = folder / shared.PLAN
    if plan_path.exists():
        try:
            return open_store(folder), read_plan(plan_path)
        except DataError as error:  # made again; the fingerprints tell whether it is the same
            LOG.warning("the token store is made again: %s: %s", error.place, error.what)
    store = write_store(folder, read_texts(work.corpus(stage.corpus)[0]), tokenizer)
    plan = plan_packing(store.offsets, stage.context)
    write_plan(plan_path, plan)
    return store, plan


def prepare_model(stage: PretrainStage, work: Work) -> tuple[Any, Tokenizer]:
    """Build the network by its numbers, or load the one to go on from."""
    if stage.init is not None:
        model, tokenizer = work.model(stage.init)
    else:
        assert stage.model is not None and stage.tokenizer is not None
        tokenizer = api.load_tokenizer(work.inputs[stage.tokenizer].path / "final")
        family, numbers = api.network(stage.model)
        numbers |= {"vocab_size": tokenizer.vocab_size, "context": stage.context}
        model = api.build(family, seed=work.seed, **numbers)
        if stage.initial == "fan-in":
            std = model.config.initial_std
            initialise_by_fan_in(model, seed=work.seed, embedding_std=std)
    require_context(stage.context, model, place=work.name)
    return model.to(machine.pick(stage.device)), tokenizer


def heldout_part(stage: PretrainStage, work: Work) -> list[str]:
    """Pieces from the middle of held-out documents, `watch.bytes` characters in all.

    From the middle, because documents begin with titles and lists that the rest is not like.
    """
    texts = list(islice(read_texts(work.corpus(stage.corpus)[1]), 64))
    share = max(1, stage.watch.bytes // max(1, len(texts)))
    starts = [max(0, (len(text) - share) // 2) for text in texts]
    return [t[start : start + share] for t, start in zip(texts, starts, strict=True) if t]


def watcher(stage: PretrainStage, training: Training) -> Callable[[], None]:
    """A function that scores the watched text and notes it; does nothing where none is held out."""
    texts = heldout_part(stage, training.work)

    def watch() -> None:
        if not texts:
            return
        score = bits_per_byte(
            training.model,
            training.tokenizer,
            texts,
            context=stage.context,
            stride=max(1, stage.context // 2),
        )
        training.watched(score.bits_per_byte, heldout_bits_per_byte=score.bits_per_byte)

    return watch


def prompts_of(stage: PretrainStage, work: Work, tokenizer: Tokenizer) -> list[str]:
    """What samples continue: the recipe's prompts, else the first tokens of held-out documents.

    Raises UsageError for a prompt that leaves no room in the context, before any training.
    """
    room = stage.context // 2
    if not stage.samples.prompts:
        heldout = work.corpus(stage.corpus)[1]
        begun = (tokenizer.encode(text[:200]) for text in islice(read_texts(heldout), 2))
        texts = [tokenizer.decode(ids[: min(PROMPT_TOKENS, room)]) for ids in begun]
        return [text.rstrip("\ufffd") for text in texts]  # half a character at the cut
    for prompt in stage.samples.prompts:
        length = len(tokenizer.encode(prompt)) + 1  # and the one that begins a document
        if length > room:
            what = f"a prompt of {length} tokens leaves too little of the context {stage.context}"
            raise UsageError(what, place=f"{work.name}: samples.prompts", fix="shorten it")
    return list(stage.samples.prompts)


def sampler(stage: PretrainStage, training: Training) -> Callable[[], None]:
    """A function that writes one sample for each prompt."""
    chosen, work = stage.samples, training.work
    prompts = prompts_of(stage, work, training.tokenizer) if chosen.every else []

    def sample() -> None:
        settings = Sampling(
            temperature=chosen.temperature,
            max_new_tokens=chosen.max_new_tokens,
            seed=work.seed,
        )
        made = generate(training.model, training.tokenizer, prompts, settings) if prompts else []
        texts = [one.text for one in made]
        shared.add_samples(training, prompts, texts, chosen.temperature)

    return sample


def ledger(training: Training) -> dict[str, Any]:
    """Where every stored token went, over all epochs."""
    plan, store = training.plan, training.store
    return {
        "store_tokens": len(store.tokens),
        "documents": store.num_documents,
        "trained": training.tokens,
        "masked": store.num_documents,
        "padded": training.places - training.tokens,
        "cropped": 0,
        "places": training.places,
        "epochs": training.places / (plan.num_samples * plan.context),
    }


def run(stage: PretrainStage, work: Work) -> dict[str, Any]:
    """Train, and leave `final/` as a Hugging Face folder."""
    model, tokenizer = prepare_model(stage, work)
    store, plan = work.world.first(lambda: prepare_data(stage, work, tokenizer))
    training = shared.begin(stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps)
    if training.step < training.num_steps:
        occasions = [
            (stage.watch.every, watcher(stage, training)),
            (stage.samples.every, sampler(stage, training)),
        ]
        loss = regime.objective(next_token_loss, next_token_parts, stage.z_loss)
        shared.train(training, loss, *occasions)
    shared.write_model(training)
    return shared.summary(training) | {"ledger": ledger(training)}
