"""Stopped in the middle: of a step, of a save, with threads; what is said, and what is refused."""

import json
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stemma.core import signals
from stemma.core.errors import ModelError, StoppedError, UsageError
from stemma.core.files import sha256_file
from stemma.pipeline import records, resume, runner, training
from stemma.pipeline.rows import RowFile
from stemma.train import loop
from tests.pipeline.conftest import job, run


class Killed(BaseException):
    """Stands for the end of the process at any line."""


def killed():
    raise Killed


def weights(folder):
    return sha256_file(folder / "out" / "base" / "final" / "model.safetensors")


def in_micro_batch(monkeypatch, number, act):
    """Do something in the middle of a step, at a micro-batch of the run; two are a step."""
    real, seen = loop.accumulate, []

    def accumulate(model, window, loss_sum, together):
        def loss(model, batch):
            seen.append(batch)
            if len(seen) == number:
                act()
            return loss_sum(model, batch)

        return real(model, window, loss, together)

    monkeypatch.setattr(loop, "accumulate", accumulate)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_bit(finished, project, workers):
    run(project, f"base.workers={workers}")
    assert weights(project) == weights(finished)
    assert not [t for t in threading.enumerate() if t.name.startswith("stemma")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [3, 6, 15, 24])
def test_killed_in_the_middle_of_a_step(finished, project, monkeypatch, workers, number):
    """The step is taken again as a whole, from its boundary."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, number, killed)
        run(project, f"base.workers={workers}")
    assert not [t for t in threading.enumerate() if t.name.startswith("stemma")]
    run(project, f"base.workers={2 - workers}")
    assert weights(project) == weights(finished)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_in_the_middle_of_a_step(finished, project, monkeypatch, sent, code, workers):
    """The step is finished, saved, and left."""
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="step 6, ") as stopped:
        in_micro_batch(patch, 12, lambda: signal.raise_signal(sent))
        run(project, f"base.workers={workers}")
    assert stopped.value.exit_code == code
    assert (project / "out" / "base" / "steps" / "00000006" / "manifest.json").is_file()
    run(project, f"base.workers={workers}")
    assert weights(project) == weights(finished)


@pytest.mark.parametrize("step", [4, 8, 12])
def test_signal_while_a_checkpoint_is_saved_is_not_lost(finished, project, monkeypatch, step):
    """What is not saved yet is saved before the run leaves; also after the last step it leaves."""
    real = training.Training.save

    def save(self):
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)
        real(self)

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="state saved") as stop:
        patch.setattr(training.Training, "save", save)
        run(project)
    left = min(step + 1, 12)
    assert f"after step {left}," in str(stop.value)
    assert (project / "out" / "base" / "steps" / f"{left:08d}").is_dir()
    assert not (project / "out" / "scores").exists()
    run(project)
    assert weights(project) == weights(finished)


def test_second_signal_leaves_at_once_and_ends_the_threads(finished, project, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(signals.StopNow):
        in_micro_batch(patch, 9, twice)
        run(project, "base.workers=2")
    assert not [t for t in threading.enumerate() if t.name.startswith("stemma")]
    run(project)
    assert weights(project) == weights(finished)


def test_seconds_of_a_resumed_run_go_on(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, 20, killed)
        run(project)
    first = records.read_record(project / "out" / "base")["seconds"]
    saved = json.loads((project / "out/base/steps/00000008/state.json").read_text())["seconds"]
    run(project)
    record = records.read_record(project / "out" / "base")
    assert record["seconds"] > first > 0 and record["summary"]["training_seconds"] > saved > 0


@pytest.mark.parametrize("free", [0, 100_000, 1 << 30])
def test_little_room_is_told_before_the_first_step(project, monkeypatch, caplog, free):
    monkeypatch.setattr(training, "free_bytes", lambda folder: free)
    with caplog.at_level("WARNING", logger="stemma"):
        run(project, until="base")
    needed = (project / "out/base/steps/00000012/rank-00000.safetensors").stat().st_size
    told = [m for m in caplog.messages if "next checkpoint" in m]
    assert len(told) == (free < 1.2 * needed)
    for message in told:
        assert message.endswith(f" bytes, and {free} are free") and message.startswith("base: ")
        assert 0.8 * needed < int(message.split("about ")[1].split()[0]) <= needed


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": "new"}', "\xff"])
@pytest.mark.parametrize("fresh", [False, True])
def test_unreadable_record_says_what_to_move_away(copied, content, fresh):
    folder = copied / "out" / "base"
    (folder / "stage.json").write_text(content, "latin-1")
    with pytest.raises(UsageError, match=rf"move {folder} away") as caught:
        run(copied, fresh=fresh)
    assert caught.value.place == str(folder / "stage.json")
    shutil.move(folder, copied / "away")
    assert len(run(copied)) == 5


def test_state_of_a_checkpoint_tells_its_network(finished):
    state = json.loads((finished / "out/base/steps/00000012/state.json").read_text())
    model = state["model"]
    assert (model["family"], model["family_version"], model["width"]) == ("llama", 1, 16)
    assert (state["places"], state["filled"], state["data_resets"]) == (
        12 * 64,
        state["tokens"],
        [],
    )


def test_preview_of_other_data(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, 12, killed)
        run(project)
    (project / "docs" / "z.md").write_text("the cat\n")

    def states(**settings):
        return [row["state"] for row in runner.preview(job(project, **settings))][:3]

    assert states() == ["changed"] * 3
    assert states(reset_data=True) == ["changed", "kept", "other data"]
    lines = runner.preview_lines(runner.preview(job(project, reset_data=True)))
    assert [line.split()[2] for line in lines[:3]] == ["changed", "kept", "resume"]


def test_larger_batches_after_a_reset_keep_the_ledger(project, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, 12, killed)
        run(project)
    keys = ("base.batch_tokens=96", "base.micro_batch_tokens=48")
    run(project, *keys, reset_data=True)
    record = records.read_record(project / "out" / "base")
    ledger, (reset,) = record["summary"]["ledger"], record["data_resets"]
    assert ledger["places"] == 4 * 64 + 8 * 96 == ledger["trained"] + ledger["padded"]
    assert reset["step"] == 4
    losses = [
        json.loads(x) for x in (project / "out/base/metrics.jsonl").read_text().split("\n")[1:-1]
    ]
    counted = [row["tokens"] for row in losses if "loss" in row]
    assert counted[-1] == ledger["trained"] and counted == sorted(counted)
    assert all("skipped" in line for line in run(project, *keys))
    told = "The stage base went on with other data from step 4 (--reset-data)"
    assert told in (project / "out" / "report.html").read_text()


def test_data_reset_reads_no_old_batch(project, monkeypatch):
    """What is trained on after a reset are the documents of today."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, 12, killed)
        run(project)
    for path in (project / "docs").iterdir():
        path.unlink()
    for number in range(9):
        (project / "docs" / f"{number}.txt").write_text("zzz " * (20 + number))
    seen = []
    real = loop.accumulate
    monkeypatch.setattr(
        loop,
        "accumulate",
        lambda model, window, *rest: (seen.extend(window), real(model, window, *rest))[1],
    )
    run(project, reset_data=True)
    store = (project / "out" / "corpus" / "train.jsonl").read_text()
    assert "cat" not in store and len(seen) == 16
    tokens = torch.cat([torch.from_numpy(batch.tokens_BT).flatten() for batch in seen])
    assert len(tokens.unique()) < 12


def test_rows_are_cut_back_to_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = RowFile(path, "metrics", keep_to_step=-1)
    for step in range(1, 6):
        rows.add(step=step)
    path.write_text(path.read_text() + '{"step": 6')
    RowFile(path, "metrics", keep_to_step=3).add(step=9)
    assert [json.loads(x).get("step") for x in path.read_text().splitlines()] == [None, 1, 2, 3, 9]


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        (["corpus", "words"], "other data"),
        (["files"], "other data"),
        (["model"], ""),
        ([], "other data"),
    ],
)
def test_only_data_may_be_others(finished, others, wanted):
    """A stage's model from outside is no data: its weights would be others."""
    stage = job(finished).recipe.stages["base"]
    folder = finished / "out" / "base"
    record = records.read_record(folder) | {"status": "running"}
    version = record["kind_version"]
    assert records.with_other_data(folder, record, stage, version, others) == wanted
    assert records.with_other_data(folder, record, stage, version + 1, others) == ""
    complete = record | {"status": "complete"}
    assert records.with_other_data(folder, complete, stage, version, others) == ""


def half_way(project, monkeypatch, number=18, *keys):
    """A run that is killed in the middle of a step."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, number, killed)
        run(project, *keys)


def test_another_run_that_ends_before_the_lock_is_not_replaced(project, monkeypatch):
    """What is decided before the folder is held is decided again when it is."""
    real = runner.require_writable

    def meanwhile(out):
        monkeypatch.setattr(runner, "require_writable", real)
        run(project, "base.learning_rate=2e-2")

    monkeypatch.setattr(runner, "require_writable", meanwhile)
    with pytest.raises(UsageError, match="made with other settings"):
        run(project)
    assert records.read_record(project / "out" / "base")["config"]["learning_rate"] == 2e-2
    assert not (project / "out" / "base.previous").exists()


@pytest.mark.parametrize("keys", [("base.steps=16",), ("base.micro_batch_tokens=16",)])
def test_a_reset_of_lengths_is_written_down(project, monkeypatch, keys):
    half_way(project, monkeypatch)
    with pytest.raises(UsageError, match="--reset-data"):
        run(project, *keys)
    run(project, *keys, reset_data=True)
    (reset,) = records.read_record(project / "out" / "base")["data_resets"]
    assert reset["step"] == 8 and reset["from"] != reset["to"]


@pytest.mark.parametrize("name", ["document", "start", "length", "first_piece", "context"])
@pytest.mark.parametrize("number", [4, 18], ids=["before a checkpoint", "after one"])
def test_a_damaged_plan_is_made_again(finished, project, monkeypatch, caplog, name, number):
    half_way(project, monkeypatch, number)
    path = project / "out" / "base" / "data" / "plan.safetensors"
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    start, end = json.loads(raw[8 : 8 + size])[name]["data_offsets"]
    raw[8 + size + (start + end) // 2 // 8 * 8] ^= 1
    path.write_bytes(bytes(raw))
    with caplog.at_level("WARNING", logger="stemma"):
        run(project)
    assert "does not match its sha256" in caplog.text
    assert weights(project) == weights(finished)


def test_a_checkpoint_under_another_name_is_none(finished, project, monkeypatch, caplog):
    half_way(project, monkeypatch)
    steps = project / "out" / "base" / "steps"
    shutil.copytree(steps / "00000004", steps / "00000099")
    with caplog.at_level("WARNING", logger="stemma"):
        run(project)
    assert "holds step 4, which is not the step of its name" in caplog.text
    assert weights(project) == weights(finished)
    assert sorted(f.name for f in steps.iterdir() if f.name.isdigit()) == ["00000008", "00000012"]


def test_a_checkpoint_of_another_method_is_refused(project, tmp_path, monkeypatch):
    other = tmp_path / "other"
    half_way(project, monkeypatch, 18, "base.learning_rate=3e-2", f"out={other}")
    half_way(project, monkeypatch)
    steps = project / "out" / "base" / "steps"
    shutil.rmtree(steps)
    shutil.copytree(other / "base" / "steps", steps)
    with pytest.raises(ModelError, match=r"other settings \(learning_rate 0\.03, here 0\.01\)"):
        run(project)


def test_a_checkpoint_of_another_machine_is_told(project, monkeypatch, caplog):
    half_way(project, monkeypatch)
    real = resume.machine.machine
    monkeypatch.setattr(resume.machine, "machine", lambda: real() | {"threads": 77})
    with caplog.at_level("WARNING", logger="stemma"):
        run(project)
    assert "of another threads, so last digits may differ" in caplog.text


def test_a_signal_while_the_bar_is_closed_is_not_lost(project, monkeypatch):
    """The last look comes when everything that was opened is closed."""
    real = training.progress

    @contextmanager
    def closing_late(label, total):
        with real(label, total) as update:
            yield update
        if label == "base":
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="after step 12"):
        patch.setattr(training, "progress", closing_late)
        run(project)
    run(project)


def test_a_tokenizer_that_is_lost_is_not_kept(project, monkeypatch):
    half_way(project, monkeypatch)
    (project / "docs" / "more.md").write_text("more words " * 40)
    assert runner.plan(job(project, reset_data=True))[1].state == "kept"
    (project / "out" / "words" / "final" / "tokenizer.json").unlink()
    assert runner.plan(job(project, reset_data=True))[1].state != "kept"


def test_killed_while_a_half_done_stage_is_replaced(project, monkeypatch):
    """Half of its folder is gone, its record first: what is left is no folder of somebody else."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_micro_batch(patch, 12, killed)
        run(project)

    def rmtree(folder, **settings):
        (folder / "stage.json").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", rmtree)
        run(project, "base.learning_rate=2e-2", overwrite=True)
    run(project, "base.learning_rate=2e-2")
    assert not list((project / "out").rglob(".*"))


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The run of version 0.1, whose stage has lost its result: its checkpoint is what is left."""
    shutil.copytree(Path(__file__).parents[1] / "releases" / "0.1.0", tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    (tmp_path / "old/out/base/final/model.safetensors").unlink()
    return Path()


def test_checkpoint_of_version_0_1_still_goes_on(old):
    before = records.read_record(old / "out" / "base")
    run(old, until="base")
    after = records.read_record(old / "out" / "base")
    assert after["status"] == "complete" and "data_resets" not in after
    assert after["summary"]["ledger"] == before["summary"]["ledger"]
    name = "final/model.safetensors"
    assert after["outputs"][name]["sha256"] == before["outputs"][name]["sha256"]


def test_checkpoint_of_version_0_1_keeps_its_data(old):
    path = old / "out" / "base" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    with pytest.raises(UsageError, match="--reset-data goes on with the weights"):
        run(old, "base.batch_tokens=32", "base.steps=14", until="base")
    with pytest.raises(ModelError, match="kept no count of places"):
        run(old, "base.batch_tokens=32", "base.steps=14", until="base", reset_data=True)
    run(old, until="base")  # the refusals left it as it was
