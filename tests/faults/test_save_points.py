"""Kill at every write-side call of a save: what was there before always loads.

Most points are tried with a tiny network and no command, so that all of them can be; a few with
the real command. A kill keeps what was written; a power cut does not, so that is played as well.
"""

import shutil
import signal
from dataclasses import replace

import pytest

from stemma.core.errors import ModelError
from stemma.train.checkpoint import (
    checkpoints,
    clear_leftovers,
    newest_checkpoint,
    open_checkpoint,
)
from tests.faults import scenes, shim
from tests.faults.durability import check_order, cut_power, undurable
from tests.faults.shim import Fault

# the steps that are saved, the last of them broken, and how many are kept
SCENARIOS = {
    "next": ([1, 2, 3], 2),
    "again": ([1, 2, 2], 2),  # a step saved before, as after a resume from an older one
    "only-one-kept": ([1, 2], 1),
    "first": ([1], 2),
}


def traced(zygote, folder, scenario, fault):
    """Play a scenario; the trace of its last save."""
    steps, keep = SCENARIOS[scenario]
    folder.mkdir(parents=True)
    return zygote.run("saves", folder, fault=fault, steps=steps, keep=keep)


@pytest.fixture(scope="module", params=SCENARIOS)
def scenario(request):
    return request.param


@pytest.fixture(scope="module")
def calls(zygote, scenario, tmp_path_factory):
    ended = traced(zygote, tmp_path_factory.mktemp("whole") / "a", scenario, Fault())
    assert ended.code == 0
    return ended.calls


def committed(calls):
    """The number of the call that puts the new checkpoint in its place."""
    final = [call.number for call in calls if call.commits]
    assert len(final) == 1
    return final[0]


def loads(folder):
    """The newest checkpoint that is seen, verified. A half one is a failure, not passed over."""
    found = checkpoints(folder)
    return open_checkpoint(found[-1]).step if found else None


def check_next_start(folder, expected):
    """What the next run does: it clears, finds what there is, saves; nothing hidden is left."""
    clear_leftovers(folder)
    found, damaged = newest_checkpoint(folder)
    assert not damaged and (found.step if found else None) in expected
    assert not list(folder.glob(".*"))
    before = [found.step] if found else []
    scenes.save(folder, 4)
    assert [open_checkpoint(each).step for each in checkpoints(folder)] == [*before, 4]
    assert sorted(folder.iterdir()) == checkpoints(folder)


def check_point(folder, scenario, *, is_committed, in_doubt=False):
    """What is seen, and what the next start finds: the new checkpoint, or all of the older.

    A step that is saved again may be out of sight between two renames, and then comes back.
    """
    steps, _ = SCENARIOS[scenario]
    older = steps[-2] if len(steps) > 1 else None
    expected = {steps[-1]} if is_committed else {older}
    expected |= {older} if in_doubt else set()
    out_of_sight = {1} if scenario == "again" and (in_doubt or not is_committed) else set()
    assert loads(folder) in expected | out_of_sight
    check_next_start(folder, expected)


def faults(calls):
    """A kill before each call, and one in the middle of each that moves bytes."""
    for call in calls:
        yield call, shim.killed_before(call.number)
        if call.writes:
            yield call, shim.torn_at(call.number)


@pytest.fixture(scope="module")
def killed(zygote, scenario, calls, tmp_path_factory):
    """The folder that each kill left, with what it was, and the calls that were made."""
    folder, found = tmp_path_factory.mktemp("killed"), []
    for number, (call, fault) in enumerate(faults(calls)):
        ended = traced(zygote, folder / str(number), scenario, fault)
        assert ended.code == -signal.SIGKILL and len(ended.calls) == call.number
        found.append((folder / str(number), call, ended.calls))
    return found


def test_kill_at_every_call_of_a_save(scenario, calls, killed, tmp_path, tell):
    for folder, call, _ in killed:
        place = shutil.copytree(folder, tmp_path / folder.name)
        check_point(place / "steps", scenario, is_committed=call.number > committed(calls))
    tell(f"save, {scenario}: {len(killed)} points, {len(calls)} calls")
    assert len(killed) > len(calls) > 15


def test_no_half_checkpoint_is_ever_seen(killed):
    for folder, _, _ in killed:
        for each in checkpoints(folder / "steps"):
            open_checkpoint(each)  # complete, or absent


@pytest.mark.parametrize("undone", [0, 1, 2])
def test_power_cut_at_every_call_of_a_save(scenario, calls, killed, tmp_path, undone):
    commit = committed(calls)
    for folder, call, made in killed:
        if undone > len(undurable(made[:-1])):
            continue  # no such rename: tried with fewer
        place = shutil.copytree(folder, tmp_path / folder.name)
        cut_power(made, undone=undone, at=folder, to=place)
        in_doubt = undone > 0 and call.number <= durable(calls)
        check_point(place / "steps", scenario, is_committed=call.number > commit, in_doubt=in_doubt)


def test_save_syncs_before_it_renames_and_removes_last(calls):
    check_order(calls)
    commit = committed(calls)
    checkpoint = calls[commit - 1].path
    files = {c.path.name for c in calls if c.writes and c.path.parent == checkpoint}
    assert files == {"rank-00000.safetensors", "state.json", "manifest.json", "manifest.sha256"}


def durable(calls):
    """The number of the call that makes the commit last."""
    return next(c.number for c in calls if c.number > committed(calls) and c.syncs)


def test_order_check_finds_each_sync_that_is_missing(calls):
    syncs = [call for call in calls if call.syncs and call.number <= durable(calls)]
    assert len(syncs) >= 6
    for lost in syncs:
        with pytest.raises(AssertionError, match="synced|durable"):
            check_order([call for call in calls if call is not lost])


def test_order_check_finds_a_removal_that_comes_too_early(calls, scenario):
    removals = [call for call in calls if call.removes and call.number > committed(calls)]
    if scenario == "first":
        assert not removals  # there is nothing to remove
        return
    early = replace(removals[0], number=committed(calls) + 0.5)
    with pytest.raises(AssertionError, match="removed before"):
        check_order([*(call for call in calls if call is not removals[0]), early])


def test_power_cut_takes_what_was_not_synced(zygote, tmp_path):
    script = """
os.mkdir("new")
for name in ("synced", "lost"):
    handle = os.open("new/" + name, os.O_WRONLY | os.O_CREAT)
    os.write(handle, b"bytes")
    if name == "synced":
        os.fsync(handle)
os.rename("new", "final")
os.mkdir("end")
"""
    for undone in (0, 1):
        folder = tmp_path / str(undone)
        folder.mkdir()
        ended = zygote.run("calls", folder, fault=shim.killed_before(8), script=script)
        cut_power(ended.calls, undone=undone, at=folder, to=folder)
        kept = folder / ("new" if undone else "final")
        assert (kept / "synced").read_bytes() == b"bytes"
        assert (kept / "lost").read_bytes() == b""


def test_half_a_checkpoint_would_be_noticed(zygote, tmp_path):
    traced(zygote, tmp_path / "a", "next", Fault())
    (tmp_path / "a" / "steps" / "00000003" / "state.json").write_bytes(b"")
    with pytest.raises(ModelError, match=r"state\.json"):
        loads(tmp_path / "a" / "steps")


@pytest.mark.parametrize("ready", ["pretrain"], indirect=True)
@pytest.mark.parametrize("call", ["write", "rename", "unlinkat"])
def test_real_run_killed_in_a_save(unbroken, trial, third_save, call):
    check_order(third_save)
    point = next(c for c in third_save if c.name == call and not (c.other and c.removes))
    fault = shim.torn_at(point.number) if point.writes else shim.killed_before(point.number)
    assert trial.run(fault=fault, at="save", number=3).code == -signal.SIGKILL
    resumed = trial.finish().resumed
    commit = committed(third_save)
    assert resumed == (15 if point.number > commit else 10)
    assert trial.results() == unbroken.results() and not trial.leftovers()
