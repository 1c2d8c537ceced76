"""Stage `evaluate`: bits per byte on held-out documents, and how held-out first turns are answered.

Documents are scored beside n-grams and `xz -9`. Conversations are those that a stage `sft` held
out: the loss of their answers, and how many of the model's own answers end by themselves. Models
named in `before` are scored on the same, so that one sees what the training brought and cost.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import write_json
from stemma.core.progress import progress
from stemma.data.curate import read_sizes, read_texts
from stemma.data.tokenizer import Tokenizer
from stemma.eval.baselines import baselines
from stemma.eval.bits_per_byte import bits_per_byte
from stemma.eval.statistics import bootstrap_interval
from stemma.pipeline.chat_scores import chat_scores
from stemma.pipeline.work import Work, require_context

VERSION = 1


class Answers(StrictModel):
    """Answers to the first turns of held-out conversations."""

    prompts: int = Field(default=100, ge=1, description="first turns to answer, at most")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens within which one must end")
    temperature: float | None = Field(
        default=None, ge=0, description="default: as the model recommends, else 0.8"
    )


class EvaluateStage(StrictModel):
    """Score a model on what was held out: on documents, on conversations, or on both."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("pretrain", "sft"),
        "before": ("pretrain", "sft"),
        "corpus": ("curate",),
        "conversations": ("sft",),
    }
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["evaluate"] = Field(description="the kind of stage")
    model: str = Field(description="a stage that made a model, a path, or asset:NAME")
    before: tuple[str, ...] = Field(
        default=(), description="models to score on the same, as it was before training"
    )
    corpus: str | None = Field(
        default=None, description="the curate stage whose held-out documents are scored"
    )
    conversations: str | None = Field(
        default=None, description="the sft stage whose held-out conversations are scored"
    )
    context: int = Field(ge=2, description="tokens the model sees at once")
    stride: int = Field(default=128, ge=1, description="tokens between two windows")
    batch_size: int = Field(default=8, ge=1, description="windows at once")
    baselines: bool = Field(default=True, description="score n-grams and xz on the same text")
    answers: Answers = Field(default=Answers(), description="answers to held-out first turns")
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")

    @model_validator(mode="after")
    def _fits(self) -> "EvaluateStage":
        if self.corpus is not None and self.stride > self.context:
            raise ValueError(f"stride ({self.stride}) must be at most context ({self.context})")
        if self.corpus is None and self.conversations is None:
            raise ValueError("give corpus, conversations, or both: there is nothing to score on")
        if self.model in self.before or len(set(self.before)) < len(self.before):
            raise ValueError("name each model once, in model or in before")
        return self


def run(stage: EvaluateStage, work: Work) -> dict[str, Any]:
    """Write scores.json."""
    summary: dict[str, Any] = {}
    if stage.corpus is not None:
        summary |= document_scores(stage, work)
    if stage.conversations is not None:
        heldout = work.inputs[stage.conversations].path / "conversations" / "heldout.jsonl"
        summary["chat"] = chat_scores(work, heldout, stage)
    write_json(work.folder / "scores.json", {"format_version": 1, **summary})
    return summary


def document_scores(stage: EvaluateStage, work: Work) -> dict[str, Any]:
    """Bits per byte of every model and of the baselines."""
    assert stage.corpus is not None
    train, heldout = work.corpus(stage.corpus)
    texts = list(read_texts(heldout))
    if not texts:
        raise DataError("no held-out documents", place=heldout, fix="set holdout.fraction above 0")
    rows: list[dict[str, Any]] = []
    about: dict[str, int] = {}
    for reference in (*stage.before, stage.model):
        name = reference if stage.before else "model"
        row, about, tokenizer = model_score(stage, work, reference, name, texts)
        rows.append(row)
    if stage.baselines:
        rows += baseline_scores(train, texts, tokenizer)
    return {"heldout": {"documents": len(texts), **about}, "scores": rows}


def model_score(
    stage: EvaluateStage, work: Work, reference: str, name: str, texts: list[str]
) -> tuple[dict[str, Any], dict[str, int], Tokenizer]:
    """The row of one model, the size of what it was scored on, and its tokenizer."""
    model, tokenizer = work.model(reference)
    require_context(stage.context, model, place=work.name, whose=name)
    with progress(f"{work.name}: {name}", 1.0) as update:
        score = bits_per_byte(
            model,
            tokenizer,
            texts,
            context=stage.context,
            stride=stage.stride,
            batch_size=stage.batch_size,
            on_progress=lambda done, total: update(done / total),
        )
    interval = bootstrap_interval(score.per_chunk, seed=work.seed)
    row = {
        "name": name,
        "bits_per_byte": score.bits_per_byte,
        "interval": [interval.low, interval.high] if interval else None,
        "note": f"context {stage.context}, stride {stage.stride}",
    }
    return row, {"bytes": score.bytes, "tokens": score.tokens}, tokenizer


def baseline_scores(train: Path, texts: list[str], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The rows of n-grams and `xz -9`, fitted to the training documents."""
    found = baselines(
        read_texts(train),
        texts,
        tokenizer,
        tokenizer.vocab_size,
        train_bytes=sum(read_sizes(train)),
    )
    return [
        {"name": b.name, "bits_per_byte": b.bits_per_byte, "interval": None, "note": b.note}
        for b in found
    ]
