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
from stemma.core.progress import LOG, progress
from stemma.data.batches import Batch, build_batch
from stemma.data.conversations import Example, read_prepared
from stemma.data.flaws import Flaw
from stemma.data.messages import Conversation
from stemma.data.packing import plan_whole
from stemma.data.preflight import Preflight, checked
from stemma.data.renderer import Renderer
from stemma.data.store import in_memory
from stemma.data.tokenizer import Tokenizer
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
    turns = first_turns(examples, stage.answers.prompts)
    references = (*stage.before, stage.model)
    total = len(references) * len(turns)
    with progress(f"{work.name}: answers", total) as update:
        rows = []
        for number, reference in enumerate(references):
            row = score(work, reference, examples, turns, stage)
            rows.append(row)
            update((number + 1) * len(turns), answer_loss=row["answer_loss"])
    return {
        "conversations": len(examples),
        "max_new_tokens": stage.answers.max_new_tokens,
        "scores": rows,
    }


def first_turns(examples: Sequence[Example], count: int) -> list[Conversation]:
    """What comes before the assistant's first turn, each such beginning once, at most `count`."""
    found: dict[str, Conversation] = {}
    for example in examples:
        whole = example.conversation
        roles = [message.role for message in whole.messages]
        first = roles.index("assistant")
        if first and roles[first - 1] == "user":
            begun = Conversation(whole.messages[:first], whole.tools)
            key = json.dumps([begun.tools, [message.to_json() for message in begun.messages]])
            found.setdefault(key, begun)
    return list(found.values())[:count]


Asked = list[tuple[Conversation, list[int]]]
"""Conversations that wait for an answer, each with the ids of its prompt."""


def askable(turns: Sequence[Conversation], renderer: Renderer, context: int) -> Asked:
    """Those that the template takes and that leave room for an answer in the context."""
    found = []
    for turn in turns:
        try:
            ids = renderer.prompt(turn.messages, tools=turn.tools)
        except Flaw:
            continue  # counted by whoever compares with `turns`
        if len(ids) < context:
            found.append((turn, ids))
    return found


def score(
    work: Work,
    reference: str,
    examples: Sequence[Example],
    turns: Sequence[Conversation],
    stage: Settings,
) -> dict[str, Any]:
    """The row of one model, with how much of what was held out it was scored on."""
    model, tokenizer, renderer = work.chat_model(reference)
    preflight, context = Preflight(), model.config.context
    batches = heldout_batches(examples, renderer, min(stage.context, context), preflight)
    found = answer_loss(model, batches, assistant_loss)
    asked = askable(turns, renderer, context)
    left_out = preflight.dropped.total() + len(turns) - len(asked)
    if left_out:
        LOG.warning(
            "%s: %s is not asked %d of %d first turns and not scored on %d conversations: they do "
            "not fit its context or its template",
            work.name,
            reference,
            len(turns) - len(asked),
            len(turns),
            preflight.dropped.total(),
        )
    answers, temperature = answered(work, model, tokenizer, asked, preflight.end_ids, stage)
    share = share_interval(stopped(answers), len(answers)) if answers else None
    return {
        "name": reference,
        "answer_loss": found.loss,
        "answer_tokens": found.tokens,
        "scored": preflight.samples,
        "shortened": preflight.shortened,
        "left_out": dict(sorted(preflight.dropped.items())),
        "answers": len(answers),
        "not_asked": len(turns) - len(asked),
        "stopped": stopped(answers),
        "interval": [share.low, share.high] if share else None,
        "temperature": temperature,
        "samples": [
            {
                "prompt": turn.messages[-1].content,
                "text": answer.text,
                "ended": answer.finish_reason,
            }
            for (turn, _), answer in list(zip(asked, answers, strict=True))[:SHOWN]
        ],
    }


def answered(
    work: Work, model: Any, tokenizer: Tokenizer, asked: Asked, ends: set[int], stage: Settings
) -> tuple[list[Generation], float]:
    """The model's answers, and at which temperature they were written."""
    chosen: dict[str, float] = {"max_new_tokens": stage.answers.max_new_tokens, "seed": work.seed}
    if stage.answers.temperature is not None:
        chosen["temperature"] = stage.answers.temperature
    sampling = api.sampling(model, **chosen)
    end_ids = api.end_ids(model, tokenizer) | frozenset(ends)
    answers: list[Generation] = []
    for start in range(0, len(asked), BATCH):
        prompts = [ids for _, ids in asked[start : start + BATCH]]
        answers += generate(model, tokenizer, prompts, sampling, end_ids=end_ids)
    return answers, sampling.temperature


def heldout_batches(
    examples: Sequence[Example], renderer: Renderer, context: int, preflight: Preflight
) -> Iterator[Batch]:
    """Held-out conversations, whole and packed, a few samples at a time.

    What the template refuses or the context has no room for is left out, and counted.
    """
    store = in_memory(checked(examples, renderer, context, preflight, skip=True))
    if not store.num_documents:
        return
    plan = plan_whole(store.offsets, context)
    for start in range(0, plan.num_samples, 4):
        yield build_batch(store, plan, np.arange(start, min(start + 4, plan.num_samples)))
