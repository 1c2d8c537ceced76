"""Stage `evaluate`: bits per byte on the held-out documents, beside n-grams and `xz -9`."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stemma.core.config import StrictModel
from stemma.core.errors import DataError, UsageError
from stemma.core.files import write_json
from stemma.core.progress import progress
from stemma.data.curate import read_sizes, read_texts
from stemma.eval.baselines import baselines
from stemma.eval.bits_per_byte import bits_per_byte
from stemma.eval.statistics import bootstrap_interval
from stemma.pipeline.work import Work

VERSION = 1


class EvaluateStage(StrictModel):
    """Score a model on held-out documents."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("pretrain",),
        "corpus": ("curate",),
    }
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["evaluate"] = Field(description="the kind of stage")
    model: str = Field(description="a stage that made a model, a path, or asset:NAME")
    corpus: str = Field(description="the curate stage whose held-out documents are scored")
    context: int = Field(ge=2, description="tokens the model sees at once")
    stride: int = Field(default=128, ge=1, description="tokens between two windows")
    batch_size: int = Field(default=8, ge=1, description="windows at once")
    baselines: bool = Field(default=True, description="score n-grams and xz on the same text")
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")

    @model_validator(mode="after")
    def _overlaps(self) -> "EvaluateStage":
        if self.stride > self.context:
            raise ValueError(f"stride ({self.stride}) must be at most context ({self.context})")
        return self


def run(stage: EvaluateStage, work: Work) -> dict[str, Any]:
    """Write scores.json."""
    train, heldout = work.corpus(stage.corpus)
    texts = list(read_texts(heldout))
    if not texts:
        raise DataError("no held-out documents", place=heldout, fix="set holdout.fraction above 0")
    model, tokenizer = work.model(stage.model)
    if stage.context > model.config.context:
        what = f"context ({stage.context}) is longer than the model's ({model.config.context})"
        fix = f"use at most context={model.config.context}"
        raise UsageError(what, place=work.name, fix=fix)
    with progress(work.name, 1.0) as update:
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
    rows: list[dict[str, Any]] = [
        {
            "name": "model",
            "bits_per_byte": score.bits_per_byte,
            "interval": [interval.low, interval.high] if interval else None,
            "note": f"context {stage.context}, stride {stage.stride}",
        }
    ]
    if stage.baselines:
        found = baselines(
            read_texts(train),
            texts,
            tokenizer,
            tokenizer.vocab_size,
            train_bytes=sum(read_sizes(train)),
        )
        rows += [
            {"name": b.name, "bits_per_byte": b.bits_per_byte, "interval": None, "note": b.note}
            for b in found
        ]
    summary = {
        "heldout": {"documents": len(texts), "bytes": score.bytes, "tokens": score.tokens},
        "scores": rows,
    }
    write_json(work.folder / "scores.json", {"format_version": 1, **summary})
    return summary
