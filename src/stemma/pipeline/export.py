"""Stage `export`: hand the model out in a standard format, and read it back to be sure."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from stemma import api
from stemma.core.config import StrictModel
from stemma.core.errors import ModelError
from stemma.pipeline.work import Work

VERSION = 1
DISK = "check the disk, then run the same command again"


class ExportStage(StrictModel):
    """Write a model for other programs."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("pretrain", "sft", "translate", "masked", "classify")
    }
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["export"] = Field(description="the kind of stage")
    model: str = Field(description="a stage that made a model, a path, or asset:NAME")
    format: Literal["hf"] = Field(default="hf", description="hf: a Hugging Face folder")
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")


def run(stage: ExportStage, work: Work) -> dict[str, Any]:
    """Write the folder `FORMAT/` and compare every weight after reading it back."""
    model, tokenizer = work.model(stage.model, does="")
    folder = work.folder / stage.format
    api.save(model, tokenizer, folder, format=stage.format, overwrite=True)
    again, _ = api.load(str(folder))
    wanted, got = model.state_dict(), again.state_dict()
    if wanted.keys() != got.keys():
        raise ModelError("other tensors came back than were written", place=folder, fix=DISK)
    for name, tensor in wanted.items():
        if not torch.equal(tensor, got[name]):
            raise ModelError("came back changed", place=f"{folder}: {name}", fix=DISK)
    size = sum(f.stat().st_size for f in folder.iterdir())
    return {"folder": stage.format, "format": stage.format, "bytes": size}
