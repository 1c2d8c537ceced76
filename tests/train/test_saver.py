"""Saves in the background hold their step, one at a time; what goes wrong is told, never lost."""

import errno
import json
import threading

import pytest
import torch
from torch import nn

from stemma.core.errors import DivergedError, ResourceError
from stemma.train import saver as saver_module
from stemma.train import saving
from stemma.train.checkpoint import checkpoints, newest_checkpoint, open_checkpoint, restore, retain
from stemma.train.saver import Saver, Saving
from stemma.train.snapshot import Snapshot

BACKGROUND, PATIENCE = Saving(background=True), 30


def network():
    """A module, its optimizer, and its values."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        optimizer.state[parameter] = {"exp_avg": torch.ones_like(parameter)}
    return module, optimizer


def grow(module):
    """Change every value, as a step does."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)


class Held:
    """Holds writes until they are let go, and counts those under way."""

    def __init__(self, monkeypatch):
        self.begun, self.go, self.most, self.under_way = threading.Event(), threading.Event(), 0, 0
        self.pauses = []
        self.real = saving.write_shard
        monkeypatch.setattr(saving, "write_shard", self.write)

    def write(self, path, tensors, *, pause):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.set()
        assert self.go.wait(PATIENCE)
        entry = self.real(path, tensors, pause=pause)
        self.under_way -= 1
        return entry


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


def test_a_save_holds_the_values_of_its_step(tmp_path, held):
    module, optimizer = network()
    wanted = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {"step": 1, "losses": [1.0]}
    with Saver(tmp_path, BACKGROUND) as saver:
        saver.save(module, optimizer, state, {})
        assert held.begun.wait(PATIENCE)
        grow(module)
        optimizer.state[module.weight]["exp_avg"].zero_()
        state["losses"].append(2.0)
        held.go.set()
    found, _ = newest_checkpoint(tmp_path)
    other, other_optimizer = network()
    restore(found, other, other_optimizer)
    assert all(torch.equal(other.state_dict()[name], wanted[name]) for name in wanted)
    assert torch.equal(other_optimizer.state[other.weight]["exp_avg"], torch.ones(2, 3))
    assert found.state == {"step": 1, "losses": [1.0]}


def test_background_and_waiting_write_the_same_bytes(tmp_path):
    module, optimizer = network()
    for name, how in (("a", Saving()), ("b", BACKGROUND)):
        with Saver(tmp_path / name, how) as saver:
            saver.save(module, optimizer, {"step": 1}, {"data": "x"}, parallel={"tensor": 2})
    for path in sorted((tmp_path / "a" / "00000001").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "00000001" / path.name).read_bytes()


def test_the_next_save_waits_for_the_one_under_way(tmp_path, held):
    module, optimizer = network()
    with Saver(tmp_path, BACKGROUND) as saver:
        saver.save(module, optimizer, {"step": 1}, {})
        assert held.begun.wait(PATIENCE)
        threading.Timer(0.05, held.go.set).start()
        saver.save(module, optimizer, {"step": 2}, {})
        assert [folder.name for folder in checkpoints(tmp_path)][:1] == ["00000001"]
    assert held.most == 1
    assert [open_checkpoint(folder).step for folder in checkpoints(tmp_path)] == [1, 2]


def test_check_never_waits(tmp_path, held):
    module, optimizer = network()
    with Saver(tmp_path, BACKGROUND) as saver:
        saver.save(module, optimizer, {"step": 1}, {})
        saver.check()
        assert not checkpoints(tmp_path)
        held.go.set()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("told_by", ["check", "wait", "save", "end"])
def test_refusal_is_told_at_the_next_step_or_at_the_end(tmp_path, monkeypatch, told_by):
    module, optimizer = network()
    with Saver(tmp_path, BACKGROUND) as saver:
        saver.save(module, optimizer, {"step": 1}, {})
    monkeypatch.setattr(saving, "write_shard", full)
    with (
        pytest.raises(ResourceError, match="00000002: the disk is full"),
        Saver(tmp_path, BACKGROUND) as saver,
    ):
        saver.save(module, optimizer, {"step": 2}, {})
        if told_by == "check":
            assert saver._done.wait(PATIENCE)
        if told_by != "end":
            more = (module, optimizer, {"step": 3}, {}) if told_by == "save" else ()
            getattr(saver, told_by)(*more)
            raise AssertionError("nothing was told")
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


@pytest.mark.parametrize("background", [False, True])
def test_policy_to_warn_lets_training_go_on(tmp_path, monkeypatch, background):
    warned = []
    monkeypatch.setattr(saver_module.LOG, "warning", lambda text, *more: warned.append(text % more))
    module, optimizer = network()
    with Saver(tmp_path, Saving(background=background, on_error="warn")) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(saving, "write_shard", full)
            saver.save(module, optimizer, {"step": 1}, {})
            saver.wait()
            with pytest.raises(ResourceError, match="the disk is full"):
                saver.require()  # who stops now may not say that the state is saved
        assert len(warned) == 1 and "00000001: the disk is full" in warned[0]
        saver.save(module, optimizer, {"step": 2}, {})
        saver.require()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["00000002"]


def test_values_that_are_not_finite_are_told_whatever_the_policy(tmp_path):
    module, optimizer = network()
    grow(module)
    with torch.no_grad():
        module.bias[0] = float("inf")
    with (
        pytest.raises(DivergedError, match=r"after step 1 values of model/bias"),
        Saver(tmp_path, Saving(background=True, on_error="warn")) as saver,
    ):
        saver.save(module, optimizer, {"step": 1}, {})
    assert not checkpoints(tmp_path)


def test_an_error_of_training_is_told_when_the_save_under_way_is_there(tmp_path, held):
    module, optimizer = network()
    with pytest.raises(DivergedError, match="loss"), Saver(tmp_path, BACKGROUND) as saver:
        saver.save(module, optimizer, {"step": 1}, {})
        threading.Timer(0.05, held.go.set).start()
        raise DivergedError("loss nan")
    assert open_checkpoint(tmp_path / "00000001").step == 1


def test_who_leaves_at_once_leaves_nothing_half_done(tmp_path, held):
    module, optimizer = network()
    saver = Saver(tmp_path, BACKGROUND)
    with pytest.raises(KeyboardInterrupt), saver:
        saver.save(module, optimizer, {"step": 1}, {})
        assert held.begun.wait(PATIENCE)
        threading.Timer(0.05, held.go.set).start()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_checkpoint_counts_on_is_durable_before_it(tmp_path):
    module, optimizer = network()
    seen = []
    with Saver(tmp_path, BACKGROUND) as saver:
        first = lambda: seen.append(list(tmp_path.glob("*")))  # noqa: E731
        saver.save(module, optimizer, {"step": 1}, {}, first=first)
    assert seen == [[]] and checkpoints(tmp_path)


def scored(folder, step, score=None):
    """A checkpoint of a step, with a held-out score where there is one."""
    state = {"step": step} if score is None else {"step": step, "heldout": score}
    saving.write(Snapshot({}, {}), saving.Save(folder, state, {}))


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ([3.0, 1.0, 2.0, 4.0], 1, [2, 4]),
        ([3.0, 1.0, 2.0, 4.0], 2, [2, 3, 4]),
        ([3.0, 2.0, 1.0], 1, [3]),
        ([None, None, None], 2, [2, 3]),
        ([None, 5.0, None, None], 1, [2, 4]),
    ],
)
def test_retention_keeps_the_newest_and_the_best(tmp_path, scores, keep, kept):
    for step, score in enumerate(scores, start=1):
        scored(tmp_path, step, score)
        retain(tmp_path, keep=keep)
    assert [int(folder.name) for folder in checkpoints(tmp_path)] == kept


@pytest.mark.parametrize("text", ["", "[]", '{"heldout": "low"}', '{"heldout": null}'])
def test_retention_takes_no_damage_for_the_best(tmp_path, text):
    for step in (1, 2, 3):
        scored(tmp_path, step, score=float(step))
    (tmp_path / "00000001" / "state.json").write_text(text)
    retain(tmp_path, keep=1)
    assert [int(folder.name) for folder in checkpoints(tmp_path)] == [2, 3]


def test_manifest_tells_the_code_and_the_plan(tmp_path):
    module, optimizer = network()
    with Saver(tmp_path, Saving()) as saver:
        saver.save(module, optimizer, {"step": 1}, {}, parallel={"shards": 4})
    manifest = json.loads((tmp_path / "00000001" / "manifest.json").read_text())
    assert manifest["code_version"] and manifest["parallel"] == {"shards": 4}
