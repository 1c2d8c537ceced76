"""Scoring models on held-out conversations: the loss of the answers, and answers of their own.

Every model is asked in the way it would be served: by its own template, with the settings that it
recommends. One without a template is asked by ChatML, whose tokens it has never seen.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stemma import api
from stemma.core.errors import DataError
from stemma.core.progress import progress
from stemma.data.batches import Batch, build_batch
from stemma.data.conversations import Example, read_prepared
from stemma.data.messages import Message
from stemma.data.packing import plan_whole
from stemma.data.preflight import Preflight, checked
from stemma.data.renderer import Renderer
from stemma.data.store import in_memory
from stemma.eval.answers import answer_loss, share_interval, stopped
from stemma.infer.generate import Generation, generate
from stemma.pipeline.work import Work
from stemma.train.sft import assistant_loss

BATCH = 16  # answers written at once
SHOWN = 8  # answers of each model that the scores keep, for the report


class AnswerSettings(Protocol):
    """How answers are asked for."""

    @property
    def prompts(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float | None: ...


class Settings(Protocol):
    """What is read of the stage's configuration."""

    @property
    def model(self) -> str: ...
    @property
    def before(self) -> tuple[str, ...]: ...
    @property
    def context(self) -> int: ...
    @property
    def answers(self) -> AnswerSettings: ...


def chat_scores(work: Work, heldout: Path, stage: Settings) -> dict[str, Any]:
    """One row for each model: `answer_loss`, `stopped` of `answers`, and some answers."""
    examples = list(read_prepared(heldout))
    if not examples:
        raise DataError("no held-out conversations", place=heldout, fix="set holdout above 0")
    prompts = first_turns(examples, stage.answers.prompts)
    references = (*stage.before, stage.model)
    total = len(references) * len(prompts)
    with progress(f"{work.name}: answers", total) as update:
        rows = []
        for number, reference in enumerate(references):
            row = score(work, reference, examples, prompts, stage)
            rows.append(row)
            update((number + 1) * len(prompts), answer_loss=row["answer_loss"])
    return {
        "conversations": len(examples),
        "max_new_tokens": stage.answers.max_new_tokens,
        "scores": rows,
    }


def first_turns(examples: Sequence[Example], count: int) -> list[tuple[Message, ...]]:
    """What comes before the assistant's first turn, each such beginning once, at most `count`."""
    found: dict[str, tuple[Message, ...]] = {}
    for example in examples:
        messages = example.conversation.messages
        first = next(i for i, message in enumerate(messages) if message.role == "assistant")
        if first and messages[first - 1].role == "user":
            key = json.dumps([message.to_json() for message in messages[:first]])
            found.setdefault(key, messages[:first])
    return list(found.values())[:count]


def score(
    work: Work,
    reference: str,
    examples: Sequence[Example],
    prompts: Sequence[tuple[Message, ...]],
    stage: Settings,
) -> dict[str, Any]:
    """The row of one model."""
    model, tokenizer, renderer = work.chat_model(reference)
    preflight = Preflight()
    batches = heldout_batches(
        examples, renderer, min(stage.context, model.config.context), preflight
    )
    found = answer_loss(model, batches, assistant_loss)
    chosen: dict[str, float] = {"max_new_tokens": stage.answers.max_new_tokens, "seed": work.seed}
    if stage.answers.temperature is not None:
        chosen["temperature"] = stage.answers.temperature
    sampling = api.sampling(model, **chosen)
    ends = api.end_ids(model, tokenizer) | frozenset(preflight.end_ids)
    answers: list[Generation] = []
    for start in range(0, len(prompts), BATCH):
        ids = [renderer.prompt(messages) for messages in prompts[start : start + BATCH]]
        answers += generate(model, tokenizer, ids, sampling, end_ids=ends)
    share = share_interval(stopped(answers), len(answers)) if answers else None
    return {
        "name": reference,
        "answer_loss": found.loss,
        "answer_tokens": found.tokens,
        "answers": len(answers),
        "stopped": stopped(answers),
        "interval": [share.low, share.high] if share else None,
        "temperature": sampling.temperature,
        "samples": [
            {"prompt": messages[-1].content, "text": answer.text, "ended": answer.finish_reason}
            for messages, answer in list(zip(prompts, answers, strict=True))[:SHOWN]
        ],
    }


def heldout_batches(
    examples: Sequence[Example], renderer: Renderer, context: int, preflight: Preflight
) -> Iterator[Batch]:
    """Held-out conversations, whole and packed, a few samples at a time."""
    store = in_memory(checked(examples, renderer, context, preflight))
    if not store.num_documents:
        return
    plan = plan_whole(store.offsets, context)
    for start in range(0, plan.num_samples, 4):
        yield build_batch(store, plan, np.arange(start, min(start + 4, plan.num_samples)))
