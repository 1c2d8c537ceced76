"""Optimizers in stages: told apart by `kind`, resumed to the bit, averages never forgotten."""

import json

import pytest
import torch
from safetensors.torch import load_file

import stemma
from stemma.core.errors import UsageError
from stemma.eval.bits_per_byte import bits_per_byte
from stemma.pipeline import pretrain, recipe, training
from stemma.pipeline.records import settings
from stemma.pipeline.work import Input, Work
from stemma.train.optimizer import AdamW
from stemma.train.schedule_free import ScheduleFree
from tests.pipeline.conftest import job, run, write_documents

OLD = "{beta2: 0.98, embedding_rate: 40}"  # as recipes had it when AdamW was all there was


def base_of(project, optimizer):
    return recipe.load(project / "tiny.yaml", [f"base.optimizer={optimizer}"]).stages["base"]


def test_optimizer_without_a_kind_is_adamw_and_keeps_its_fingerprint(project):
    old, told = base_of(project, OLD), base_of(project, f"{OLD[:-1]}, kind: adamw}}")
    assert old.optimizer == AdamW(beta2=0.98, embedding_rate=40.0)
    for defaults in (True, False):
        assert settings(old, defaults=defaults) == settings(told, defaults=defaults)
    # what version 0.1 hashed and wrote into checkpoints
    assert settings(old, defaults=False)["optimizer"] == {"beta2": 0.98, "embedding_rate": 40.0}
    assert settings(old, defaults=True)["optimizer"] == {
        "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "embedding_rate": 40.0,
    }  # fmt: skip
    other = settings(base_of(project, "{kind: lion}"), defaults=False)["optimizer"]
    assert other == {"kind": "lion"}


@pytest.mark.parametrize(
    ("written", "key", "way_out"),
    [
        ("{kind: moun}", "kind", "did you mean muon"),
        ("{kind: muon, momentun: 0.9}", "momentun", "did you mean momentum"),
        ("{beta3: 0.9}", "beta3", "did you mean beta"),
        ("{kind: lion, beta2: 1.5}", "beta2", "less than 1"),
        ("{kind: adamw-8bit, block: 8}", "block", "greater than or equal to 16"),
        ("muon", "optimizer", "expected keys and values"),
    ],
)
def test_mistakes_are_told_at_their_line(project, written, key, way_out):
    path = project / "tiny.yaml"
    text = path.read_text()
    path.write_text(text.replace("    steps: 12\n", f"    steps: 12\n    optimizer: {written}\n"))
    line = path.read_text().splitlines().index(f"    optimizer: {written}") + 1
    with pytest.raises(UsageError, match=way_out) as told:
        recipe.load(path, [])
    assert str(told.value.place) == f"{path}:{line}: {key}"


class Killed(BaseException):
    """As a kill would end it, at once and with nothing handled."""


def stop_after(monkeypatch, step):
    real = training.RowFile.add

    def add(self, **row):
        real(self, **row)
        if "loss" in row and row["step"] == step:
            raise Killed

    monkeypatch.setattr(training.RowFile, "add", add)


def state_of(project):
    steps = project / "out" / "base" / "steps" / "00000012"
    return load_file(steps / "rank-00000.safetensors")


def test_schedule_free_stage_scores_and_keeps_the_averages(project, monkeypatch):
    choice = ("base.optimizer={kind: schedule-free}", "base.learning_rate=3e-2")
    stop_after(monkeypatch, 10)  # checkpoints of steps 4 and 8 are there
    with pytest.raises(Killed):
        run(project, *choice, until="base")
    monkeypatch.undo()
    run(project, *choice, until="base")
    final = load_file(project / "out" / "base" / "final" / "model.safetensors")
    ours, tokenizer = stemma.load(project / "out" / "base")
    rule, state, moved = ScheduleFree(kind="schedule-free"), state_of(project), 0
    for name, parameter in ours.named_parameters():
        kept = {key: state[f"optimizer/{name}/{key}"] for key in ("z", "weight_sum")}
        trained = state[f"model/{name}"]
        assert torch.equal(parameter, rule.averaged(trained, kept)), name
        moved += not torch.equal(parameter, trained)
    assert moved > 5 and len(final) > 5
    # the score at the last step is that of the averages, since nothing else was left to score
    lines = (project / "out" / "base" / "metrics.jsonl").read_text().splitlines()[1:]
    told = [row for row in map(json.loads, lines) if "heldout_bits_per_byte" in row][-1]
    stage = job(project, *choice).recipe.stages["base"]
    corpus = {"corpus": Input(project / "out" / "corpus", "")}
    texts = pretrain.heldout_part(stage, Work("base", project, 0, inputs=corpus))
    score = bits_per_byte(ours, tokenizer, texts, context=stage.context, stride=8)
    assert told["step"] == 12
    assert told["heldout_bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-6)
    whole = project.with_name("whole")
    write_documents(whole / "docs")
    (whole / "tiny.yaml").write_text((project / "tiny.yaml").read_text())
    run(whole, *choice, until="base")
    unbroken = load_file(whole / "out" / "base" / "final" / "model.safetensors")
    assert all(torch.equal(final[name], unbroken[name]) for name in unbroken)
