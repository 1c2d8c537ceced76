"""What an earlier version wrote must stay complete, load, and compute the same (tests/releases)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from stemma import api
from stemma.data.store import open_store
from stemma.pipeline import runner
from stemma.pipeline.report import write_report
from stemma.train.checkpoint import newest_checkpoint, restore
from tests.pipeline.conftest import job

RELEASES = sorted(p for p in (Path(__file__).parent / "releases").iterdir() if p.is_dir())
RELEASES = [p for p in RELEASES if (p / "tiny.yaml").is_file()]


@pytest.fixture(params=RELEASES, ids=lambda p: p.name)
def project(request, tmp_path, monkeypatch):
    shutil.copytree(request.param, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return Path()


def test_run_is_complete_to_the_code_of_today(project):
    states = {p.name: p.state for p in runner.plan(job(project))}
    assert states == {
        "corpus": "complete",
        "words": "complete",
        "base": "complete",
        "scores": "complete",
        "export": "new",
    }


def test_model_computes_what_it_computed(project):
    expected = json.loads((project / "expected.json").read_text())
    model, tokenizer = api.load(project / "out")
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(expected["text"])]])
    with torch.inference_mode():
        logits = model(ids)[0, -1]
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), atol=1e-4, rtol=0)


def test_checkpoint_store_and_report_open(project):
    base = project / "out" / "base"
    found, damaged = newest_checkpoint(base / "steps")
    assert found is not None and found.step == 12 and not damaged
    model, _ = api.load(base)
    before = {name: p.clone() for name, p in model.named_parameters()}
    restore(found, model, None)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert open_store(base / "data").num_documents > 0
    assert write_report(project / "out").stat().st_size > 10_000
