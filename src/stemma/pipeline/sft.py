"""Stage `sft`: teach a model to answer, on conversations.

The examples are read, checked and split; a look at every rendered conversation comes before the
first step (`stemma.data.preflight`). Only the assistant's turns are learned, ends included. A
model without a chat template gets ChatML, and rows for its two tokens. What runs the steps is
`stemma.pipeline.training`.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError
from stemma.core.files import write_json
from stemma.core.progress import LOG
from stemma.data.conversation_files import KINDS
from stemma.data.conversation_formats import ConversationFormat
from stemma.data.conversations import (
    ConversationOptions,
    Example,
    Split,
    prepare,
    read_conversations,
    read_prepared,
)
from stemma.data.documents import BadLines, MaxDocumentBytes, RejectFile
from stemma.data.messages import Conversation, Message
from stemma.data.packing import Plan, plan_whole, read_plan, write_plan
from stemma.data.preflight import Preflight, checked
from stemma.data.renderer import Renderer
from stemma.data.sources import Kind
from stemma.data.store import TokenStore, open_store, write_rows
from stemma.data.tokenizer import Tokenizer
from stemma.eval.answers import answer_loss
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling
from stemma.pipeline import keys, regime
from stemma.pipeline import training as shared
from stemma.pipeline.chat_scores import askable, first_turns, heldout_batches
from stemma.pipeline.training import Training
from stemma.pipeline.work import Work, read_groups, require_context
from stemma.train.sft import assistant_loss, assistant_parts

VERSION = 1

MARK = "preflight.json"


class Watch(StrictModel):
    """The loss of held-out answers along training."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: at the ends only")
    conversations: int = Field(default=200, ge=1, description="conversations to score, at most")


class SftStage(StrictModel):
    """Fine-tune on conversations. One of `epochs`, `tokens` and `steps`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {"init": ("pretrain", "sft")}
    FILES: ClassVar[tuple[str, ...]] = ("inputs", "heldout")
    READS: ClassVar[Mapping[str, Kind]] = KINDS
    UNSEEN: ClassVar[frozenset[str]] = keys.UNSEEN
    DATA: ClassVar[frozenset[str]] = keys.LENGTHS | {
        "inputs",
        "format",
        "bad_lines",
        "max_document_bytes",
        "holdout",
        "heldout",
        "strict",
        "epochs",
    }
    DATA_INPUTS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["sft"] = Field(description="the kind of stage")
    init: str = Field(description="the model to go on from: a stage, a path, or asset:NAME")
    inputs: tuple[str, ...] = Field(
        min_length=1, description="conversations: folders, files, globs, or asset:NAME"
    )
    format: ConversationFormat = "auto"
    bad_lines: BadLines = "error"
    max_document_bytes: MaxDocumentBytes = 64 << 20
    holdout: float = Field(
        default=0.1, ge=0, lt=1, description="share of the first turns kept from training"
    )
    heldout: tuple[str, ...] = Field(
        default=(), description="conversations to score on, instead of a share of the inputs"
    )
    strict: bool = Field(
        default=False, description="stop where held-out conversations are in training too"
    )
    template: Literal["auto", "chatml"] = Field(
        default="auto", description="auto: the model's own, where it has one, else chatml"
    )
    context: keys.Context
    epochs: int | None = Field(default=None, ge=1, description="passes over the conversations")
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
    watch: Watch = Field(default=Watch(), description="held-out loss along training")
    samples: keys.SampleSetting
    checkpoint_every: keys.CheckpointEvery
    keep_checkpoints: keys.KeepCheckpoints
    saving: keys.SavingSetting
    parallel: keys.Processes
    workers: keys.Workers
    device: keys.Device
    minutes: keys.Minutes

    @model_validator(mode="after")
    def _agrees(self) -> "SftStage":
        if sum(value is not None for value in (self.epochs, self.tokens, self.steps)) != 1:
            raise ValueError("give one of epochs, tokens and steps")
        if self.heldout and "holdout" in self.model_fields_set and self.holdout:
            raise ValueError("heldout and holdout exclude each other")
        keys.check_batches(self)
        return self

    def num_steps(self, plan: Plan) -> int:
        """Optimizer steps of the whole run over the samples of `plan`."""
        if self.epochs is not None:
            return math.ceil(self.epochs * plan.num_samples / (self.batch_tokens // self.context))
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


def run(stage: SftStage, work: Work) -> dict[str, Any]:
    """Train, and leave `final/` as a Hugging Face folder with the chat template."""
    model, tokenizer, renderer = work.chat_model(stage.init, stage.template)
    require_context(stage.context, model, place=work.name)
    conversations = work.world.told(lambda: prepare_conversations(stage, work))
    store, plan, preflight = work.world.first(
        lambda: prepare_data(stage, work, tokenizer, renderer)
    )
    model.to(machine.pick(stage.device))
    training = shared.begin(
        stage, work, model, tokenizer, store, plan, num_steps=stage.num_steps(plan)
    )
    require_ends_that_learn(training, preflight["end_ids"])
    api.end_with(model, preflight["end_ids"])
    watch = watcher(stage, training, renderer)
    if training.step == 0:
        watch()
    if training.step < training.num_steps:
        occasions = [
            (stage.watch.every or training.num_steps, watch),
            (stage.samples.every, sampler(stage, training, renderer)),
        ]
        loss = regime.objective(assistant_loss, assistant_parts, stage.z_loss)
        shared.train(training, loss, *occasions)
    shared.write_model(training)
    return shared.summary(training) | {
        "conversations": conversations,
        "preflight": preflight,
        "heldout_loss": heldout_losses(training),
        "ledger": ledger(training),
    }


def prepare_conversations(stage: SftStage, work: Work) -> dict[str, Any]:
    """Read, check and split the examples into `conversations/`; returns their ledger."""
    folder = work.folder / "conversations"
    options = ConversationOptions(
        format=stage.format,
        bad_lines=stage.bad_lines,
        max_document_bytes=stage.max_document_bytes,
    )
    with RejectFile(folder / "rejects.jsonl") as rejects:

        def read(key: str) -> Iterator[Example]:
            return read_groups(
                work.files[key],
                lambda files, root: read_conversations(files, options, rejects, root),
            )

        found = prepare(
            read("inputs"),
            Split(fraction=stage.holdout, seed=work.seed),
            folder,
            heldout=read("heldout") if stage.heldout else None,
            strict=stage.strict,
            rejects=rejects,
        )
    if rejects.count:
        LOG.warning("%d bad conversations were left out; see %s", rejects.count, rejects.path)
    return found.to_json()


def prepare_data(
    stage: SftStage, work: Work, tokenizer: Tokenizer, renderer: Renderer
) -> tuple[TokenStore, Plan, dict[str, Any]]:
    """Render and encode the training conversations and write the packing plan, once."""
    folder = work.folder / "data"
    if (folder / shared.PLAN).exists():
        try:
            preflight = json.loads((folder / MARK).read_text("utf-8"))
            return open_store(folder), read_plan(folder / shared.PLAN), preflight
        except DataError as error:
            LOG.warning("the token store is made again: %s: %s", error.place, error.what)
        except (FileNotFoundError, ValueError) as error:
            LOG.warning("the token store is made again: %s: %s", folder / MARK, error)
    seen = Preflight()
    train = read_prepared(work.folder / "conversations" / "train.jsonl")
    skip = stage.bad_lines == "skip"
    try:
        store = write_rows(
            folder, checked(train, renderer, stage.context, seen, skip=skip), tokenizer
        )
    except DataError as error:
        if seen.samples:
            raise
        reasons = ", ".join(f"{reason} {n}" for reason, n in seen.dropped.items())
        what = f"no conversation is left to train on ({reasons})" if reasons else error.what
        fix = "raise context, or check the examples" if reasons else error.fix
        raise DataError(what, place=error.place if not reasons else work.name, fix=fix) from error
    for sentence in seen.words():
        LOG.info("%s: %s", work.name, sentence)
    plan = plan_whole(store.offsets, stage.context)
    preflight = {"format_version": 1, **seen.to_json()}
    write_json(folder / MARK, preflight)
    write_plan(folder / shared.PLAN, plan)
    return store, plan, preflight


def heldout_part(stage: SftStage, work: Work) -> list[Example]:
    """The held-out conversations that are watched; none where nothing is held out."""
    path = work.folder / "conversations" / "heldout.jsonl"
    return list(islice(read_prepared(path), stage.watch.conversations)) if path.exists() else []


def watcher(stage: SftStage, training: Training, renderer: Renderer) -> Callable[[], None]:
    """A function that notes the loss of held-out answers; does nothing where none is held out."""
    examples = heldout_part(stage, training.work)
    batches = list(heldout_batches(examples, renderer, stage.context, Preflight()))

    def watch() -> None:
        if batches:
            found = answer_loss(training.model, batches, assistant_loss)
            training.watched(found.loss, heldout_answer_loss=found.loss)

    return watch


def sampler(stage: SftStage, training: Training, renderer: Renderer) -> Callable[[], None]:
    """A function that answers the recipe's prompts, or else held-out first turns.

    Raises UsageError for a prompt that leaves no room in the context, before any training.
    """
    chosen, model, work = stage.samples, training.model, training.work
    turns = [Conversation((Message("user", text),)) for text in chosen.prompts]
    if not turns and chosen.every:
        turns = first_turns(heldout_part(stage, work), 64)
    asked = askable(turns, renderer, model.config.context)
    if chosen.every and len(asked) < len(chosen.prompts):
        what = f"a prompt leaves no room in the context of {model.config.context}"
        what += ", or the template refuses it"
        raise UsageError(what, place=f"{work.name}: samples.prompts", fix="shorten it")
    asked = asked if chosen.prompts else asked[:4]
    ends = api.end_ids(model, training.tokenizer)

    def sample() -> None:
        settings = Sampling(
            temperature=chosen.temperature,
            max_new_tokens=chosen.max_new_tokens,
            seed=work.seed,
        )
        prompts = [ids for _, ids in asked]
        made = (
            generate(model, training.tokenizer, prompts, settings, end_ids=ends) if prompts else []
        )
        shared.add_samples(
            training,
            [turn.messages[-1].content for turn, _ in asked],
            [one.text for one in made],
            chosen.temperature,
            ended=[one.finish_reason == "stop" for one in made],
        )

    return sample


def require_ends_that_learn(training: Training, end_ids: list[int]) -> None:
    """Refuse to train a model whose turns end with a token that it could never tell from another.

    That is where the rows of tokens that were added are all alike and `trainable` leaves them out.
    """
    model = training.model
    weight = model.embedding.weight if model.head is None else model.head.weight
    if weight.requires_grad:
        return
    for token in end_ids:
        if int((weight == weight[token]).all(-1).sum()) > 1:
            rows = "embedding" if model.head is None else "head"
            what = "the token that ends a turn was added, and the rows it is told by do not learn"
            raise UsageError(what, place=f"{training.work.name}: trainable", fix=f"add {rows}")


def heldout_losses(training: Training) -> dict[str, float | None]:
    """The loss of held-out answers before the first step and after the last."""
    found = [row.get("heldout_answer_loss") for row in training.metrics.rows()]
    losses = [loss for loss in found if loss is not None]
    return {"before": losses[0], "after": losses[-1]} if losses else {"before": None, "after": None}


def ledger(training: Training) -> dict[str, Any]:
    """Where every place of every step went: places = trained + masked + padded."""
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
