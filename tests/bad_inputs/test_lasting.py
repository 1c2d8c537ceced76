# ruff: noqa: E501  (tables are read by rows)
"""What lasts in training, cases 33 to 36, 47, 76 and 77: the machine refuses, a second run comes,
the data are too few, the numbers are no numbers.
"""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stemma.core.errors import DivergedError
from stemma.core.files import sha256_file
from stemma.train.loop import STILL, fit
from tests.bad_inputs.command_line import call, check_line, snapshot
from tests.bad_inputs.interrupted import (
    BASE,
    MODEL,
    RUN,
    SIX,
    goes_on,
    lay_out,
    record,
)
from tests.bad_inputs.layouts import put
from tests.bad_inputs.test_conversations import RECIPE as TALK
from tests.bad_inputs.test_conversations import line as conversation
from tests.bad_inputs.test_folders import FULL_FILE, file_limit

# 33: the file system refuses a write or a sync


def refusing(monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Every sync of a file or folder whose path matches is refused."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if re.search(place, os.readlink(f"/proc/self/fd/{handle}")):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


SAID = {
    errno.EIO: r"the disk reports an input/output error; check the disk",
    errno.EDQUOT: r"the disk quota is used up \(.*\d+ bytes free\); free some space .+",
}


PLACES = [
    r"\.00000006.*/rank-",
    r"\.00000006.*/manifest\.json",
    r"\.00000006[^/]*$",
    r"base/\.?final",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", SAID, ids=["33-input-output", "33-quota"])
def test_sync_that_is_refused(number, place, half_done, unbroken, monkeypatch):
    before = snapshot(half_done / BASE / "steps")
    with monkeypatch.context() as patch:
        refusing(patch, place, number)
        outcome = call(half_done, RUN)
    check_line(outcome, 5, r"\S*base/\S+: " + SAID[number])
    after = snapshot(half_done / BASE / "steps")
    kept = [name for name in before if name.startswith("00000004")]
    assert kept and all(after[name] == before[name] for name in kept)
    assert not (half_done / MODEL).exists()
    goes_on(half_done, unbroken)


@pytest.mark.parametrize("size", [1 << 10, 30 << 10], ids=["33-limit-small", "33-limit-large"])
def test_file_that_may_not_grow(size, half_done, unbroken):
    before = snapshot(half_done / BASE / "steps")
    with file_limit(size):
        outcome = call(half_done, RUN)
    check_line(outcome, 5, r"runs/tiny\S*: " + FULL_FILE.removeprefix(r"\S+: "))
    assert snapshot(half_done / BASE / "steps") == before
    goes_on(half_done, unbroken)


# 34: few files may be open


def test_few_open_files_are_enough(half_done, unbroken):
    script = 'ulimit -n 64 && exec "$0" -m stemma run tiny.yaml'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], cwd=half_done, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sha256_file(half_done / MODEL) == unbroken


@pytest.mark.parametrize("more", range(1, 7), ids=[f"34-{n}-more" for n in range(1, 7)])
def test_no_more_open_files(more, half_done, unbroken):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        outcome = call(half_done, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if more == 1:
        assert outcome.code == 5
    if outcome.code != 0:
        check_line(outcome, 5, r"\S+: too many open files; raise `ulimit -n`")
    goes_on(half_done, unbroken)


# 35: two runs in one folder

HOLDER = """\
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
with open(os.path.join(sys.argv[1], ".lock"), "w") as file:
    file.write(f"{os.getpid()}\\n")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("sound", [True, False], ids=["35-named", "35-unnamed"])
def test_second_run_is_refused_until_the_first_is_dead(sound, half_done, unbroken):
    out = half_done / "runs" / "tiny"
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        if not sound:
            (out / ".lock").write_text("")
        before = snapshot(half_done)
        outcome = call(half_done, RUN)
        named = f"pid {other.pid}" if sound else "another run"
        check_line(outcome, 2, rf"runs/tiny: locked by {named}; wait for it, or choose out=FOLDER")
        assert snapshot(half_done) == before
        other.send_signal(signal.SIGKILL)
    assert (out / ".lock").exists(), "the dead cannot clear up"
    goes_on(half_done, unbroken)


# 36: the clock jumps back


@pytest.mark.parametrize("jump", [-3600.0, -1e9], ids=["36-hour", "36-years"])
def test_clock_that_jumps_back(jump, half_done, unbroken, monkeypatch):
    before = record(half_done)["seconds"]
    real, calls = time.time, iter(range(1 << 30))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + jump * next(calls))
        goes_on(half_done, unbroken)
    path = half_done / BASE / "metrics.jsonl"
    seconds = [json.loads(text).get("seconds") for text in path.read_text().splitlines()[1:]]
    assert len(seconds) == 6 and seconds == sorted(seconds) and seconds[0] > 0
    assert record(half_done)["seconds"] >= before > 0


# 47: fewer samples than a batch holds


def talking(folder: Path) -> None:
    """Two short conversations, and a recipe that wants more of them at once."""
    turns = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "cat"})
    put(folder / "talk.yaml", re.sub(r"batch_tokens: \d+", "batch_tokens: 3200", TALK))
    put(folder / "talk" / "a.jsonl", conversation(*turns) * 2)


@pytest.mark.parametrize(
    "recipe, stage", [("tiny", "base"), ("talk", "chat")], ids=["47-pretrain", "47-sft"]
)
def test_data_smaller_than_a_batch(recipe, stage, sound_model, tmp_path):
    if stage == "chat":
        shutil.copytree(sound_model, tmp_path / "model")
        talking(tmp_path)
    else:
        lay_out(tmp_path)
        put(tmp_path / "tiny.yaml", SIX.replace("batch_tokens: 32", "batch_tokens: 3200"))
    outcome = call(tmp_path, f"run {recipe}.yaml")
    said = rf"{stage}: batch_tokens: \d+ samples? of \d+ tokens (is|are) less than a batch of \d+; use batch_tokens=\d+, or more documents"
    check_line(outcome, 2, said)
    folder = tmp_path / "runs" / recipe / stage
    assert not (folder / "metrics.jsonl").exists() and not (folder / "steps").exists()
    assert json.loads((folder / "stage.json").read_text())["status"] == "running"
    (fitting,) = re.findall(r"use (batch_tokens=\d+)", outcome.errors[0])
    assert call(tmp_path, f"run {recipe}.yaml {stage}.{fitting}").code == 0


@pytest.mark.parametrize("examples", [False, True], ids=["47-init", "47-init-examples"])
def test_recipe_of_init_fits_a_handful(examples, tmp_path):
    for number in range(3):
        put(tmp_path / "notes" / f"{number}.md", f"a short note, number {number}, on the cat\n")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a cat"}]
    rows = (conversation(turns[0] | {"content": f"hi {n}"}, turns[1]) for n in range(5))
    put(tmp_path / "talk.jsonl", "".join(rows))
    more = " --examples talk.jsonl" if examples else ""
    assert call(tmp_path, f"init notes{more}").code == 0
    until = "chat" if examples else "base"
    tiny = "base.model.width=32 base.model.num_heads=1 base.model.depth=1 base.tokens=512"
    outcome = call(tmp_path, f"run notes.yaml {tiny} --until {until}")
    assert outcome.code == 0, outcome.err


# 76: a reward that teaches nothing, or is no number


@dataclass(frozen=True)
class Play:
    """Actions taken, and what each was worth."""

    actions: torch.Tensor
    rewards: torch.Tensor

    @property
    def counted(self) -> int:
        return len(self.actions)


def policy_loss(policy: torch.nn.Module, play: Play) -> torch.Tensor:
    """Policy gradient with the mean reward as baseline (REINFORCE, Williams 1992, section 6)."""
    logits = policy(torch.ones(1, 1)).squeeze(0)
    gain = play.rewards - play.rewards.mean()
    return -(gain * logits.log_softmax(-1)[play.actions]).sum()


def rewarded(reward: Callable[[int], list[float]], steps: int) -> list[dict[str, float]]:
    """A policy over three actions, trained on what `reward` gives at each step."""
    policy = torch.nn.Linear(1, 3)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    plays = [[Play(torch.arange(3), torch.tensor(reward(step)))] for step in range(steps)]
    rate = {"learning_rate": lambda step: 0.1, "clip": 1.0, "seed": 0}
    return list(fit(policy, plays, policy_loss, optimizer, **rate))


@pytest.mark.parametrize(
    "reward, told",
    [
        (lambda step: [1.0, 1.0, 1.0], [f"step {STILL - 1}: "]),
        (lambda step: [1.0, 1.0, 1.0 + (step == 9)], [f"step {STILL + 9}: "]),
        (lambda step: [1.0, 1.0, 1.0 + (step % STILL == 9)], []),
        (lambda step: [0.0, 0.5, 1.0], []),
    ],
    ids=["76-constant", "76-constant-later", "76-seldom", "76-sound"],
)
def test_reward_that_teaches_nothing_is_told_once(reward, told, caplog):
    with caplog.at_level("WARNING", logger="stemma"):
        assert len(rewarded(reward, 3 * STILL)) == 3 * STILL
    assert len(caplog.messages) == len(told)
    for said, message in zip(told, caplog.messages, strict=True):
        assert message.startswith(said) and "nothing is learned" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["76-nan", "76-infinite"])
def test_reward_that_is_no_number_ends_it_at_its_step(value):
    with pytest.raises(DivergedError, match="at step 3, ") as caught:
        rewarded(lambda step: [0.0, 0.5, value if step == 3 else 1.0], 9)
    assert caught.value.exit_code == 6


# 77: the numbers leave what a float holds


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize(
    "more, said",
    [
        ("base.learning_rate=1e30 base.clip=1e30", r"loss \S+, gradient norm \S+ at step \d, learning rate \S+, samples \d+, \d+"),
        ("base.learning_rate=1e38 base.optimizer.embedding_rate=20", r"after step \d values of model/embedding\.weight are not finite"),
    ],
    ids=["77-loss", "77-weights"],
)  # fmt: skip
def test_rate_that_is_far_too_high(more, said, every, tmp_path):
    lay_out(tmp_path)
    outcome = call(tmp_path, f"{RUN} {more} base.checkpoint_every={every}")
    saved = sorted((tmp_path / BASE).glob("steps/*"))
    last = (
        f"last checkpoint: {saved[-1].relative_to(tmp_path)}"
        if saved
        else "no checkpoint was saved yet"
    )
    if "loss" in said:
        assert bool(saved) == (every == 1)
        check_line(
            outcome, 6, rf"base: {said} \({last}\); the step was not taken; lower learning_rate, .+"
        )
    elif every == 1:
        check_line(outcome, 6, rf"base: {said} \({last}\); lower learning_rate, .+")
    assert outcome.code == 6 and not (tmp_path / MODEL).exists()
    for folder in saved:
        for name, tensor in load_file(folder / "rank-00000.safetensors").items():
            assert tensor.isfinite().all(), name
