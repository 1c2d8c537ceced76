"""Stage `curate`: its settings are the reader's, and its summary names what was held out."""

import json

from stemma.data.curate import CurateOptions
from stemma.data.documents import ReadOptions
from stemma.pipeline import curate
from stemma.pipeline.curate import CurateStage
from tests.pipeline.conftest import run


def test_settings_are_those_of_the_reader_and_of_curation():
    for options in (ReadOptions, CurateOptions):
        for name, theirs in options.model_fields.items():
            ours = CurateStage.model_fields[name]
            assert ours.description == theirs.description, name
            assert (ours.annotation, ours.metadata) == (theirs.annotation, theirs.metadata), name
            assert ours.default == theirs.default, name


def test_summary_names_the_first_heldout_sources_and_counts_all(copied, monkeypatch):
    monkeypatch.setattr(curate, "NAMED", 2)
    run(copied, "corpus.holdout.fraction=0.4", overwrite=True, until="corpus")
    corpus = copied / "out" / "corpus"
    lines = [json.loads(line) for line in (corpus / "heldout.jsonl").read_text().splitlines()]
    sources = list(dict.fromkeys(line["source"] for line in lines))
    summary = json.loads((corpus / "ledger.json").read_text())
    assert summary["heldout_sources"] == sources[:2]
    assert summary["heldout_source_count"] == len(sources) > 2
