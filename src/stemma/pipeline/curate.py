"""Stage `curate`: from files to documents, split into training and held-out by whole documents."""

from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.files import write_json
from stemma.core.progress import LOG
from stemma.data.curate import (
    CurateOptions,
    DropDuplicates,
    HoldoutSetting,
    curate,
    read_sources,
)
from stemma.data.documents import (
    BadLines,
    MaxDocumentBytes,
    MaxExpansion,
    ReadOptions,
    RejectFile,
    TextKey,
    read_documents,
)
from stemma.data.sources import KINDS, Kind
from stemma.pipeline.work import Work, read_groups

VERSION = 1
NAMED = 20  # held-out sources that the summary names
READING, CURATING = ReadOptions(), CurateOptions()  # their defaults are the stage's


class CurateStage(StrictModel):
    """Read documents, drop the empty and the repeated, hold a part out."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {}
    FILES: ClassVar[tuple[str, ...]] = ("inputs",)
    READS: ClassVar[Mapping[str, Kind]] = KINDS
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["curate"] = Field(description="the kind of stage")
    inputs: tuple[str, ...] = Field(description="folders, files, globs, or asset:NAME")
    text_key: TextKey = READING.text_key
    bad_lines: BadLines = READING.bad_lines
    max_document_bytes: MaxDocumentBytes = READING.max_document_bytes
    max_expansion: MaxExpansion = READING.max_expansion
    drop_duplicates: DropDuplicates = CURATING.drop_duplicates
    holdout: HoldoutSetting = CURATING.holdout
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")


def run(stage: CurateStage, work: Work) -> dict[str, Any]:
    """Write train.jsonl, heldout.jsonl, dropped.jsonl, rejects.jsonl and ledger.json."""
    options = ReadOptions(
        text_key=stage.text_key,
        bad_lines=stage.bad_lines,
        max_document_bytes=stage.max_document_bytes,
        max_expansion=stage.max_expansion,
    )
    chosen = CurateOptions(holdout=stage.holdout, drop_duplicates=stage.drop_duplicates)
    folder = work.folder
    with RejectFile(folder / "rejects.jsonl") as rejects:
        ledger = curate(
            read_groups(
                work.files["inputs"],
                lambda files, root: read_documents(files, options, rejects, root),
            ),
            chosen,
            folder / "train.jsonl",
            folder / "heldout.jsonl",
            folder / "dropped.jsonl",
            rejects,
        )
    if rejects.count:
        LOG.warning("%d bad lines were left out; see %s", rejects.count, rejects.path)
    summary = ledger.to_json()
    kept_out = dict.fromkeys(read_sources(folder / "heldout.jsonl"))
    summary["heldout_sources"] = list(islice(kept_out, NAMED))
    summary["heldout_source_count"] = len(kept_out)
    write_json(folder / "ledger.json", {"format_version": 1, **summary})
    return summary
