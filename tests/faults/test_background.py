"""Saves in the background: broken wherever it is, a run goes on to the bits of one never broken.

The thread that saves and the one that trains make their calls in an order of their own each time,
so a kill at a call's number is a kill at about that place.
"""

import random
import signal

import pytest

from stemma.train.checkpoint import checkpoints, open_checkpoint
from tests.faults import shim
from tests.faults.shim import Fault

pytestmark = pytest.mark.parametrize("ready", ["pretrain"], indirect=True)

BACKGROUND, WARN = "base.saving.background=true", "base.saving.on_error=warn"


@pytest.fixture(scope="module")
def calls(ready):
    """The write-side calls of a run that saves in the background, and of its first three saves."""
    trial = ready.copied(ready.folder.with_name("background"))
    every = trial.run(BACKGROUND, fault=Fault()).calls
    third = next(call for call in every if call.commits and call.other.name == "00000015")
    return [c for c in every if "steps" in c.path.parts and c.number <= third.number]


def test_background_changes_no_bit(trial, unbroken):
    trial.finish(BACKGROUND)
    assert trial.results() == unbroken.results() and not trial.leftovers()


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 4))]
)
def test_run_killed_in_a_save_goes_on_to_the_same_bits(trial, unbroken, calls, number):
    call = random.Random(f"background {number}").choice(calls)
    fault = shim.torn_at(call.number) if call.writes else shim.killed_before(call.number)
    assert trial.run(BACKGROUND, fault=fault).code == -signal.SIGKILL
    for each in checkpoints(trial.steps):
        open_checkpoint(each)  # complete, or absent
    trial.finish(BACKGROUND)
    assert trial.results() == unbroken.results() and not trial.leftovers()


def too_small(unbroken):
    """A limit of file sizes that a checkpoint exceeds, and nothing else that a run writes."""
    size = (checkpoints(unbroken.steps)[-1] / "rank-00000.safetensors").stat().st_size
    files = [path for path in (unbroken.folder / "out").rglob("*") if path.is_file()]
    others = [p.stat().st_size for p in files if not p.name.startswith("rank-")]
    assert max(others) < size - 1000
    return {"at": "save", "number": 3, "act": "limit", "amount": size - 1000}


def test_refusal_ends_the_run_and_it_goes_on_later(trial, unbroken):
    ended = trial.run(BACKGROUND, **too_small(unbroken))
    assert ended.code == 5, ended.err
    (line,) = ended.errors
    assert "/steps/00000015: the file is larger than the limit set for it" in line
    assert trial.taken() < 24 and not trial.leftovers()
    assert trial.finish(BACKGROUND).resumed == 10
    assert trial.results() == unbroken.results()


def test_refusal_may_be_a_warning(trial, unbroken):
    ended = trial.run(BACKGROUND, WARN, **too_small(unbroken))
    assert ended.code == 0 and not ended.errors
    said = [text for text in ended.messages if "training goes on" in text]
    assert len(said) == 3 and "/steps/00000015" in said[0] and "/steps/00000024" in said[2]
    assert [folder.name for folder in checkpoints(trial.steps)] == ["00000005", "00000010"]
    assert trial.results()["weights"] == unbroken.results()["weights"] and not trial.leftovers()


def test_signal_waits_for_the_state_to_be_saved(trial, unbroken):
    child = trial.start(BACKGROUND, at="loss", number=22, act="hold")  # of step 11
    assert child.held()
    child.send_heeded(signal.SIGTERM)
    assert child.let_go().code == 75
    assert open_checkpoint(checkpoints(trial.steps)[-1]).step == 11
    assert trial.finish(BACKGROUND).resumed == 11
    assert trial.results() == unbroken.results()
