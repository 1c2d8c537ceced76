"""A disk that refuses, at every write-side call of a save: exit 5, and what was there still loads.

All calls are tried with a tiny network and no command; some with the real command, which must then
go on to the bits of a run that never met a refusal.
"""

import errno
import json
import os
import random

import pytest

from stemma.core.errors import MAX_MESSAGE
from stemma.core.files import FULL, REASONS
from stemma.train.checkpoint import checkpoints, open_checkpoint
from tests.faults import shim
from tests.faults.shim import Fault

# name: the error, and whether it stays or is met once
REFUSALS = {
    "full-for-good": (errno.ENOSPC, shim.full_from),
    "ENOSPC": (errno.ENOSPC, shim.fails_at),
    "EIO": (errno.EIO, shim.fails_at),
    "EROFS": (errno.EROFS, shim.fails_at),
    "EDQUOT": (errno.EDQUOT, shim.fails_at),
    "EMFILE": (errno.EMFILE, shim.fails_at),
}
STEPS = {"steps": [1, 2, 3], "keep": 2}


def words(error):
    """How a refusal is told."""
    return REASONS[error][0]


def check_words(text, error, place):
    """What a refusal says: place, fault, sizes where there are some, way out."""
    assert str(place) in text and words(error) in text and text.rpartition("; ")[2], text
    assert "free" in text or error not in FULL or error == errno.EFBIG, text


def check_line(ended, error, place):
    """One such line on stderr, and exit code 5."""
    assert ended.code == 5, ended.err
    (line,) = ended.errors
    assert line.startswith("error: ") and len(line) <= MAX_MESSAGE
    check_words(line, error, place)


@pytest.fixture(scope="module")
def calls(zygote, tmp_path_factory):
    """The calls of a save that nobody refuses."""
    ended = zygote.run("saves", tmp_path_factory.mktemp("whole"), fault=Fault(), **STEPS)
    assert ended.code == 0
    return ended.calls


def strikes(fault, call, calls):
    """Whether a fault at a call refuses anything at all: a full disk lets names go and move."""
    later = [c for c in calls if c.number >= call.number]
    return fault.kinds == shim.ALL or any(needs_room(c) for c in later)


def needs_room(call):
    """Whether a full disk refuses a call; every file that a save opens is new."""
    return call.writes or call.name.startswith(("open", "mkdir"))


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal_at_every_call_of_a_save(zygote, calls, tmp_path, refusal, tell):
    error, fault_at = REFUSALS[refusal]
    commit = next(call.number for call in calls if call.commits)
    removal = next(call.number for call in calls if call.removes and call.number > commit)
    faults = [fault_at(call.number, error) for call in calls]
    ended = zygote.run("refusals", tmp_path, faults=[f.to_json() for f in faults], step=3)
    rows, refused = [json.loads(line) for line in ended.out.splitlines()], 0
    for call, fault, row in zip(calls, faults, rows, strict=True):
        assert row["met"] >= call.number
        if call.number < removal and strikes(fault, call, calls):
            assert row["kind"] == "ResourceError"
            check_words(row["text"], error, "steps/00000003")
            steps = [1, 2, 3] if call.number > commit else [1, 2]
            assert row["names"] == [f"{step:08d}" for step in steps], call  # and nothing hidden
            assert row["sound"] == steps[-2:], call
            refused += 1
        else:  # removing comes last, and what it cannot remove harms nothing
            assert (row["kind"], row["sound"]) == ("", [2, 3]), call
    last = max(call.number for call in calls if needs_room(call))
    assert refused == (removal - 1 if fault.kinds == shim.ALL else last)
    tell(f"{refusal}: {refused} of {len(calls)} calls refused")


def test_file_larger_than_its_limit(zygote, tmp_path):
    ended = zygote.run("saves", tmp_path, **STEPS, limit=4000)
    check_line(ended, errno.EFBIG, "steps/00000003")
    assert [open_checkpoint(each).step for each in checkpoints(tmp_path / "steps")] == [1, 2]
    assert not list((tmp_path / "steps").glob(".*"))


# the real command: kinds of refusal, and the call of the third save that meets it
POINTS = [
    ("full-for-good", "write"),
    ("EIO", "fsync"),
    ("EMFILE", "open64"),
    ("EROFS", "rename"),
]


@pytest.mark.parametrize("ready", ["pretrain"], indirect=True)
@pytest.mark.parametrize(("refusal", "name"), POINTS)
def test_run_that_is_refused_ends_and_goes_on_later(unbroken, trial, third_save, refusal, name):
    draw, (error, fault_at) = random.Random(f"{refusal} {name}"), REFUSALS[refusal]
    number = draw.choice([call.number for call in third_save if call.name == name])
    ended = trial.run(fault=fault_at(number, error), at="save", number=3)
    place = os.path.join("out", trial.trainer.stage, "steps", "00000015")
    check_line(ended, error, place)
    assert open_checkpoint(trial.steps / "00000010").step == 10
    assert not trial.leftovers()
    assert trial.finish().resumed in (10, 15)
    assert trial.results() == unbroken.results()


@pytest.mark.parametrize("ready", ["sft"], indirect=True)
def test_run_whose_file_outgrows_its_limit_ends_and_goes_on(unbroken, trial):
    ended = trial.run(at="save", number=3, act="limit", amount=20_000)
    check_line(ended, errno.EFBIG, "steps/00000015")
    assert not trial.leftovers() and trial.finish().resumed == 10
    assert trial.results() == unbroken.results()
