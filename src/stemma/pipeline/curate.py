"""Stage `curate`: from files to documents, split into training and held-out by whole documents."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import DataError
from stemma.core.files import write_json
from stemma.core.progress import LOG
from stemma.data.curate import CurateOptions, curate, read_sources
from stemma.data.documents import Document, ReadOptions, RejectFile, read_documents
from stemma.data.heldout import Holdout
from stemma.pipeline.work import Work

VERSION = 1
NAMED = 20  # held-out sources that the summary names


class CurateStage(StrictModel):
    """Read documents, drop the empty and the repeated, hold a part out."""

    REFERENCES: ClassVar[dict[str, tuple[str, ...]]] = {}
    UNSEEN: ClassVar[frozenset[str]] = frozenset({"minutes"})

    kind: Literal["curate"] = Field(description="the kind of stage")
    inputs: tuple[str, ...] = Field(description="folders, files, globs, or asset:NAME")
    text_key: str = Field(default="text", description="key or column that holds the text")
    bad_lines: Literal["error", "skip"] = Field(
        default="error", description="stop at the first bad line, or list it in rejects.jsonl"
    )
    max_document_bytes: int = Field(
        default=64 << 20, ge=1, description="a longer document is a bad one"
    )
    max_expansion: int = Field(
        default=1000, gt=1, description="how many times its size a compressed file may unpack to"
    )
    drop_duplicates: bool = Field(default=True, description="keep one of equal documents")
    holdout: Holdout = Field(default=Holdout(), description="what is kept from training")
    minutes: float | None = Field(default=None, ge=0, description="budget, printed beforehand")


def read_groups(
    groups: list[tuple[Path, list[Path]]], options: ReadOptions, rejects: RejectFile
) -> Iterator[Document]:
    """The documents of all inputs; an error names the file as it is found from where we are."""
    for root, files in groups:
        try:
            yield from read_documents(files, options, rejects, root)
        except DataError as error:
            below = root.resolve().is_relative_to(Path.cwd().resolve())
            place = os.path.join(os.path.relpath(root) if below else root, error.place)
            place = place.removeprefix("./").rstrip("/")
            raise DataError(error.what, place=place, fix=error.fix) from error


def run(stage: CurateStage, work: Work, groups: list[tuple[Path, list[Path]]]) -> dict[str, Any]:
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
            read_groups(groups, options, rejects),
            chosen,
            folder / "train.jsonl",
            folder / "heldout.jsonl",
            folder / "dropped.jsonl",
            rejects,
        )
    if rejects.count:
        LOG.warning("%d bad lines were left out; see %s", rejects.count, rejects.path)
    summary = ledger.to_json()
    kept_out = islice(read_sources(folder / "heldout.jsonl"), NAMED)
    summary["heldout_sources"] = list(dict.fromkeys(kept_out))
    write_json(folder / "ledger.json", {"format_version": 1, **summary})
    return summary
