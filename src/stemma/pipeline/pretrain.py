"""Stage `pretrain`: train a network on the corpus, or go on from any model that can be loaded.

The stage owns the loop: it logs each step, now and then scores a part of the held-out text and
writes samples, saves checkpoints, and answers signals at step boundaries. What it resumes from is
the newest checkpoint that verifies; everything later is computed again, bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from stemma import api
from stemma.core import device as machine
from stemma.core.config import StrictModel, multiple
from stemma.core.errors import DataError, DivergedError, ModelError, UsageError
from stemma.core.files import sha256_file, write_text
from stemma.core.progress import LOG, progress
from stemma.core.signals import graceful
from stemma.data.batches import Order
from stemma.data.curate import read_texts
from stemma.data.packing import Plan, plan_packing, read_plan, write_plan
from stemma.data.store import TokenStore, open_store, write_store
from stemma.data.tokenizer import Tokenizer
from stemma.eval.bits_per_byte import bits_per_byte
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling
from stemma.nn.initial import initialise_by_fan_in
from stemma.pipeline.work import Work
from stemma.train import checkpoint
from stemma.train.loop import fit
from stemma.train.optimizer import AdamW, adamw
from stemma.train.pretrain import next_token_loss, windows
from stemma.train.schedule import Cosine, Schedule

VERSION = 1
PLAN = "plan.safetensors"
PROMPT_TOKENS = 8  # of the held-out text, where the recipe names no prompts


class Samples(StrictModel):
    """Texts written along training, for the report."""

    every: int = Field(default=0, ge=0, description="steps between samples; 0: none")
    prompts: tuple[str, ...] = Field(
        default=(), description="what to continue; default: how held-out documents begin"
    )
    max_new_tokens: int = Field(default=60, ge=1, description="tokens a sample")
    temperature: float = Field(default=0.8, ge=0, description="0 takes the likeliest token")


class Watch(StrictModel):
    """Scoring along training on a part of the held-out text."""

    every: int = Field(default=0, ge=0, description="steps between scores; 0: none")
    bytes: int = Field(default=64 << 10, ge=1, description="bytes of held-out text to score")


class PretrainStage(StrictModel):
    """Train on next tokens. One of `tokens` and `steps`, one of `model` and `init`."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "corpus": ("curate",),
        "tokenizer": ("tokenizer",),
        "init": ("pretrain",),
    }
    UNSEEN: ClassVar[frozenset[str]] = frozenset(
        {"minutes", "checkpoint_every", "keep_checkpoints", "device"}
    )

    kind: Literal["pretrain"] = Field(description="the kind of stage")
    corpus: str = Field(description="the curate stage to train on")
    tokenizer: str | None = Field(default=None, description="a tokenizer stage; with `model`")
    model: dict[str, Any] | None = Field(
        default=None, description="family and numbers of a network"
    )
    initial: Literal["gpt-2", "fan-in"] = Field(
        default="gpt-2", description="rule of the first weights; with `model`"
    )
    init: str | None = Field(default=None, description="a model to go on from, with its tokenizer")
    context: int = Field(ge=2, description="tokens of a sample")
    tokens: int | None = Field(default=None, ge=1, description="tokens to train on, rounded up")
    steps: int | None = Field(default=None, ge=1, description="optimizer steps")
    batch_tokens: int = Field(ge=1, description="tokens a step; a multiple of context")
    micro_batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens at once in memory; default: the whole batch"
    )
    learning_rate: float = Field(gt=0, description="peak learning rate")
    schedule: Schedule = Field(default=Cosine(kind="cosine"), description="how the rate moves")
    optimizer: AdamW = Field(default=AdamW(), description="numbers of AdamW")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    watch: Watch = Field(default=Watch(), description="held-out scores along training")
    samples: Samples = Field(default=Samples(), description="texts along training")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")

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
        multiple("batch_tokens", self.batch_tokens, "context", self.context)
        if self.micro_batch_tokens is not None:
            multiple("micro_batch_tokens", self.micro_batch_tokens, "context", self.context)
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or math.ceil((self.tokens or 0) / self.batch_tokens)


class RowFile:
    """A JSONL file with a header, cut back to a step at resume and appended to from there."""

    def __init__(self, path: Path, kind: str, *, keep_to_step: int) -> None:
        header = json.dumps({"format_version": 1, "kind": kind})
        kept = [line for line in whole_lines(path)[1:] if step_of(line) <= keep_to_step]
        write_text(path, "".join(f"{line}\n" for line in [header, *kept]))
        self.path = path

    def add(self, **row: Any) -> None:
        """Append one row; it is on its way to disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def whole_lines(path: Path) -> list[str]:
    """Complete lines of a file that may have been cut in the middle of one."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]


def step_of(line: str) -> float:
    """The step of a row; beyond all steps for a line that is no row, so that it is left out."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@dataclass
class Training:
    """What the steps share."""

    stage: PretrainStage
    work: Work
    model: Any
    tokenizer: Tokenizer
    store: TokenStore
    plan: Plan
    optimizer: torch.optim.Optimizer
    fingerprints: dict[str, str]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None

    @property
    def steps_folder(self) -> Path:
        return self.work.folder / "steps"

    def save(self) -> None:
        """Write the checkpoint of this step, then let old ones go."""
        state = {
            "format_version": 1,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "seed": self.work.seed,
            "machine": machine.machine(),
            "versions": machine.versions(),
        }
        checkpoint.save_checkpoint(
            self.steps_folder, self.model, self.optimizer, state, self.fingerprints
        )
        checkpoint.retain(self.steps_folder, keep=self.stage.keep_checkpoints)

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, if there is one."""
        checkpoint.clear_leftovers(self.steps_folder)
        found, damaged = checkpoint.newest_checkpoint(self.steps_folder)
        for error in damaged:
            LOG.warning("set aside a damaged checkpoint: %s", error)
        if found is None:
            return
        if found.manifest["fingerprints"] != self.fingerprints:
            what = "the checkpoint belongs to other data or another network"
            raise ModelError(what, place=found.folder, fix="start again with --fresh")
        checkpoint.restore(found, self.model, self.optimizer)
        self.step, self.tokens = found.step, found.state["tokens"]
        self.seconds, self.loss = found.state["seconds"], found.state["loss"]
        LOG.info("%s: resumed from step %d", self.work.name, self.step)


def prepare_data(stage: PretrainStage, work: Work, tokenizer: Tokenizer) -> tuple[TokenStore, Plan]:
    """Encode the training documents and write the packing plan, once."""
    folder = work.folder / "data"
    plan_path = folder / PLAN
    if plan_path.exists():
        try:
            return open_store(folder), read_plan(plan_path)
        except DataError as error:  # made again; the fingerprints tell whether it is the same
            LOG.warning("the token store is made again: %s", error)
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
        numbers = {key: value for key, value in stage.model.items() if key != "family"}
        numbers |= {"vocab_size": tokenizer.vocab_size, "context": stage.context}
        model = api.build(str(stage.model["family"]), seed=work.seed, **numbers)
        if stage.initial == "fan-in":
            std = model.config.initial_std
            initialise_by_fan_in(model, seed=work.seed, embedding_std=std)
    if stage.context > model.config.context:
        fix = f"use at most context={model.config.context}"
        what = f"context ({stage.context}) is longer than the model's ({model.config.context})"
        raise UsageError(what, place=work.name, fix=fix)
    return model.to(machine.pick(stage.device)), tokenizer


def heldout_part(stage: PretrainStage, work: Work) -> list[str]:
    """Pieces from the middle of held-out documents, `watch.bytes` characters in all.

    From the middle, because documents begin with titles and lists that the rest is not like.
    """
    texts = list(islice(read_texts(work.corpus(stage.corpus)[1]), 64))
    share = max(1, stage.watch.bytes // max(1, len(texts)))
    starts = [max(0, (len(text) - share) // 2) for text in texts]
    return [t[start : start + share] for t, start in zip(texts, starts, strict=True) if t]


def watcher(training: Training, metrics: RowFile) -> Callable[[], None]:
    """A function that scores the watched text and notes it; does nothing where none is held out."""
    stage, texts = training.stage, heldout_part(training.stage, training.work)

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
        metrics.add(
            step=training.step,
            tokens=training.tokens,
            heldout_bits_per_byte=score.bits_per_byte,
        )

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


def sampler(training: Training, samples: RowFile) -> Callable[[], None]:
    """A function that writes one sample for each prompt."""
    chosen, work = training.stage.samples, training.work
    prompts = prompts_of(training.stage, work, training.tokenizer) if chosen.every else []

    def sample() -> None:
        settings = Sampling(
            temperature=chosen.temperature,
            max_new_tokens=chosen.max_new_tokens,
            seed=work.seed,
        )
        made = generate(training.model, training.tokenizer, prompts, settings) if prompts else []
        for prompt, one in zip(prompts, made, strict=True):
            samples.add(
                step=training.step,
                tokens=training.tokens,
                prompt=prompt,
                text=one.text,
                seed=work.seed,
                temperature=chosen.temperature,
            )

    return sample


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens now."""
    return every > 0 and (step % every == 0 or step == last)


def train(training: Training, metrics: RowFile, samples: RowFile) -> None:
    """Run the remaining steps."""
    stage, work, last = training.stage, training.work, training.stage.num_steps
    order = Order(training.plan, work.seed, stage.batch_tokens // stage.context)
    rows = (stage.micro_batch_tokens or stage.batch_tokens) // stage.context
    watch, sample = watcher(training, metrics), sampler(training, samples)
    steps = fit(
        training.model,
        windows(training.store, order, first_step=training.step, steps=last, rows=rows),
        next_token_loss,
        training.optimizer,
        learning_rate=lambda step: stage.learning_rate * stage.schedule.share(step, last),
        clip=stage.clip,
        seed=work.seed,
        first_step=training.step,
    )
    with graceful() as request, progress(work.name, last) as update, told(training):
        started = time.monotonic()
        for numbers in steps:
            taken = time.monotonic() - started
            training.step, training.loss = int(numbers["step"]), numbers["loss"]
            training.tokens += int(numbers["tokens"])
            training.seconds += taken
            speed = numbers["tokens"] / max(1e-9, taken)
            row = numbers | {"tokens": training.tokens, "tokens_per_second": speed}
            metrics.add(**row, seconds=training.seconds)
            update(training.step, loss=numbers["loss"], tokens_per_second=speed)
            if due(training.step, stage.watch.every, last):
                watch()
            if due(training.step, stage.samples.every, last):
                sample()
            if due(training.step, stage.checkpoint_every, last) or request.number:
                training.save()
            if request.number:
                request.raise_stop(training.step)
            started = time.monotonic()


@contextmanager
def told(training: Training) -> Iterator[None]:
    """Add to a divergence which checkpoint is there to go back to."""
    try:
        yield
    except DivergedError as error:
        saved = checkpoint.checkpoints(training.steps_folder)
        kept = f"last checkpoint: {saved[-1]}" if saved else "no checkpoint was saved yet"
        raise DivergedError(
            f"{error.what} ({kept})", place=training.work.name, fix=error.fix
        ) from error


def ledger(training: Training) -> dict[str, Any]:
    """Where every stored token went, over all epochs."""
    plan, store, stage = training.plan, training.store, training.stage
    places = stage.num_steps * stage.batch_tokens
    epochs = places / (plan.num_samples * plan.context)
    return {
        "store_tokens": len(store.tokens),
        "documents": store.num_documents,
        "trained": training.tokens,
        "masked": store.num_documents,
        "padded": places - training.tokens,
        "cropped": 0,
        "places": places,
        "epochs": epochs,
    }


def run(stage: PretrainStage, work: Work) -> dict[str, Any]:
    """Train, and leave `final/` as a Hugging Face folder."""
    model, tokenizer = prepare_model(stage, work)
    store, plan = prepare_data(stage, work, tokenizer)
    training = Training(
        stage=stage,
        work=work,
        model=model,
        tokenizer=tokenizer,
        store=store,
        plan=plan,
        optimizer=adamw(model, stage.optimizer, learning_rate=stage.learning_rate),
        fingerprints={
            "config": api.fingerprint(model.config),
            "data": store.fingerprint,
            "plan": sha256_file(work.folder / "data" / PLAN),
            "tokenizer": tokenizer.fingerprint,
        },
    )
    training.resume()
    metrics = RowFile(work.folder / "metrics.jsonl", "metrics", keep_to_step=training.step)
    samples = RowFile(work.folder / "samples.jsonl", "samples", keep_to_step=training.step)
    if training.step < stage.num_steps:
        train(training, metrics, samples)
    model.to("cpu")
    api.save(model, tokenizer, work.folder / "final", format="hf", overwrite=True)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": training.tokens,
        "steps": training.step,
        "tokens_per_second": training.tokens / max(1e-9, training.seconds),
        "training_seconds": training.seconds,
        "final_loss": training.loss,
        "loss_reduction": "sum over counted tokens of the step, divided by their number",
        "ledger": ledger(training),
        "model": {"family": model.config.family, **model.config.model_dump(mode="json")},
    }
