"""How steps are taken, through a real stage: resumed to the bit, averaged, guarded, traced."""

import json
import math

import pytest
import torch

from stemma import api
from stemma.core.errors import DivergedError, UsageError
from stemma.pipeline import pretrain, records
from stemma.pipeline.keys import LATER, UNSEEN
from stemma.pipeline.regime import flops_of
from stemma.pipeline.training import method
from stemma.pipeline.work import Work
from stemma.train.checkpoint import checkpoints, open_checkpoint, read_tensor
from tests.models.test_names import golden
from tests.pipeline.conftest import job, run
from tests.pipeline.test_resume import Killed, weights

EVERYTHING = (
    "base.precision=fp16",
    "base.z_loss=1e-3",
    "base.ema.decay=0.8",
    "base.guard.on_nonfinite=skip",
    "base.guard.on_spike=skip",
    "base.guard.window=3",
    "base.guard.deviations=3",
    "base.guard.most_skips=9",
)
UNSEEN_ONES = (
    "base.recompute.every=1",
    "base.statistics.every=4",
    "base.profile.step=5",
    "base.profile.steps=2",
)


def rows(folder):
    lines = (folder / "out" / "base" / "metrics.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def last_checkpoint(folder):
    return open_checkpoint(checkpoints(folder / "out" / "base" / "steps")[-1])


def killed_at(number):
    """The loss, until the process ends at a micro-batch; two are a step."""
    real, seen = pretrain.next_token_parts, []

    def loss(model, batch, **settings):
        seen.append(batch)
        if len(seen) == number:
            raise Killed
        return real(model, batch, **settings)

    return loss


def test_everything_at_once_is_resumed_to_the_bit(tmp_path, project, monkeypatch):
    """Loss scale, averages and the window of spikes are in the checkpoint; `final/` is averaged."""
    unbroken = tmp_path / "unbroken"
    for name in ("docs", "tiny.yaml"):
        source = project / name
        (unbroken / name).parent.mkdir(exist_ok=True)
        (unbroken / name).symlink_to(source)
    run(unbroken, *EVERYTHING, *UNSEEN_ONES)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretrain, "next_token_parts", killed_at(15))
        run(project, *EVERYTHING)
    assert last_checkpoint(project).step == 4
    run(project, *EVERYTHING)
    assert weights(project) == weights(unbroken)
    states = [last_checkpoint(folder).state["memory"] for folder in (project, unbroken)]
    assert states[0] == states[1] and len(states[0]["recent"]["losses"]) == 3
    assert states[0]["loss_scale"]["good_steps"] > 0
    model, _ = api.load(unbroken / "out" / "base")
    found = last_checkpoint(unbroken)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, read_tensor(found, f"ema/{name}"))
        assert not torch.equal(parameter, read_tensor(found, f"model/{name}"))
    steps = [row for row in rows(unbroken) if "learning_rate" in row]
    told = [row for row in steps if row["step"] % 4 == 0 and "skipped_spike" not in row]
    assert told and all(0 < row["mfu"] < 2 for row in told)
    assert any("skipped_spike" in row for row in steps[:8])
    assert all(row["gradient_norm/blocks.0"] > 0 and row["z_loss"] > 0 for row in told)
    trace = json.loads((unbroken / "out" / "base" / "profile" / "steps-00000005.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def diverging(monkeypatch, at):
    """The loss of some micro-batches is not finite; two are a step."""
    real, seen = pretrain.next_token_loss, []

    def loss(model, batch):
        seen.append(batch)
        return real(model, batch) * (math.nan if len(seen) in at else 1)

    monkeypatch.setattr(pretrain, "next_token_loss", loss)
    return seen


def test_steps_left_out_are_told_with_their_samples(project, monkeypatch, caplog):
    seen = diverging(monkeypatch, at={6, 13})
    run(project, "base.guard.on_nonfinite=skip")
    told = [row for row in rows(project) if "skipped_nonfinite" in row]
    assert [row["step"] for row in told] == [3, 7] and not any("loss" in row for row in told)
    samples = [int(sample) for batch in seen[4:6] for sample in batch.samples_B]
    assert told[0]["samples"] == samples
    assert "base: step 2 was left out" in caplog.messages
    summary = records.read_record(project / "out" / "base")["summary"]
    assert summary["skipped_steps"] == 2 and summary["steps"] == 12
    assert summary["ledger"]["places"] == 12 * 64


def test_too_many_steps_left_out_end_the_run(project, monkeypatch):
    diverging(monkeypatch, at=range(5, 99))
    told = "at step 4, .*after 2 steps in a row that were left out, samples "
    with pytest.raises(DivergedError, match=told) as caught:
        run(project, "base.guard.on_nonfinite=skip", "base.guard.most_skips=2")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("base.recompute.modules=[blocks.*.mpl]", "recompute.modules: no module matches"),
        ("base.precision=fp8", "unknown value fp8; known: bf16, fp16, fp32"),
        ("base.ema.decay=1", "decay: input should be less than 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(project, override, said):
    with pytest.raises(UsageError, match=said):
        run(project, override)
    assert not (project / "out" / "base" / "metrics.jsonl").exists()


def test_keys_that_an_old_checkpoint_does_not_know_count_where_they_are_set(project):
    work = Work(name="base", folder=project / "out" / "base", seed=0)
    plain = method(job(project).recipe.stages["base"], work)
    assert not LATER & plain.keys() and not UNSEEN & plain.keys()
    stage = job(project, "base.ema.decay=0.5", *UNSEEN_ONES).recipe.stages["base"]
    assert method(stage, work) == plain | {"ema": {"decay": 0.5, "final": True}}
    assert records.settings(job(project).recipe.stages["base"], defaults=False) == records.settings(
        job(project, *UNSEEN_ONES).recipe.stages["base"], defaults=False
    )


def test_operations_of_a_token_where_the_layers_are_unknown():
    model = api.build("transformer", **golden("transformer")[0])
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    looked_up = sizes.get("source_embedding.weight", 0)
    looked_up += sizes["embedding.weight"] if "head.weight" in sizes else 0
    assert flops_of(model, 16) == 6 * (sum(sizes.values()) - looked_up)
