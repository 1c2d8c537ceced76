"""What every trainer owes: however a run ends, the next one gives the bits of one never broken.

Each test runs for every trainer of `trainers.py`. Runs are real ones, of the real command.
"""

import random
import shutil
import signal
import time
from typing import get_args

import pytest

from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner
from stemma.pipeline.training import PLAN
from stemma.train.checkpoint import checkpoints, open_checkpoint
from tests.faults import shim
from tests.faults.durability import check_order
from tests.faults.shim import Fault
from tests.faults.trainers import TRAINERS
from tests.faults.trial import Trial


def test_every_kind_of_trainer_is_registered():
    kinds = {get_args(stage.model_fields["kind"].annotation)[0] for stage in runner.TRAINERS}
    assert {trainer.kind for trainer in TRAINERS.values()} == kinds
    assert TRAINERS.keys() == kinds


def stage_of(trial):
    """The trainer's settings, and its samples an epoch."""
    recipe = recipes.load(trial.folder / "tiny.yaml", [])
    return recipe.stages[trial.trainer.stage]


def test_recipe_has_what_makes_resuming_hard(unbroken):
    plan = unbroken.trainer.read_plan(unbroken.stage / "data" / PLAN)
    stage, pieces = stage_of(unbroken), unbroken.trainer.pieces(plan)
    record = runner.read_record(unbroken.stage)
    assert stage.kind == unbroken.trainer.kind == record["kind"]
    assert record["summary"]["model"]["dropout"] > 0
    assert len(pieces) > plan.num_samples  # several documents, or pairs, in a sample
    assert stage.batch_tokens >= 2 * stage.micro_batch_tokens
    rows, steps = stage.batch_tokens // stage.context, record["summary"]["steps"]
    assert steps * rows > 2 * plan.num_samples
    saved = range(stage.checkpoint_every, steps, stage.checkpoint_every)
    assert len(saved) >= 3 and any(step * rows % plan.num_samples for step in saved)
    assert steps % stage.checkpoint_every  # the last one is saved for another reason
    samples = (unbroken.stage / "samples.jsonl").read_text().splitlines()
    assert len(samples) > 3 and stage.watch.every


def killed_at_random(trial, draw, tmp_path, *more):
    """Kill -9 from outside at some time after the first checkpoint; returns the broken trial."""
    wait = draw.uniform(0, 0.15)
    for attempt in range(20):
        broken = trial.copied(tmp_path / f"at-random-{attempt}")
        child = broken.start(*more)
        child.wait_until(lambda: bool(checkpoints(broken.steps)))  # noqa: B023
        time.sleep(wait)
        child.send(signal.SIGKILL)
        child.wait()
        if runner.read_record(broken.stage)["status"] == "running":
            return broken, f"{wait * 1000:.0f} ms after the first checkpoint"
        wait /= 2  # the stage was complete before
    raise AssertionError("the run always ends before it is killed")


def killed_in_save(trial, draw, tmp_path, *more):
    """Kill -9 before a random call of the third or a later save."""
    broken = trial.copied(tmp_path / "in-save")
    save, call = draw.randint(2, 4), draw.randint(1, 16)
    ended = broken.run(*more, fault=shim.killed_before(call), at="save", number=save)
    assert ended.code == -signal.SIGKILL and len(ended.calls) == call
    return broken, f"save {save}, call {call} ({ended.calls[-1].name})"


KILLS = [killed_at_random, killed_at_random, killed_in_save]


@pytest.mark.parametrize("number", range(3))
def test_killed_run_resumes_to_the_same_bits(trial, unbroken, tmp_path, number, tell):
    draw = random.Random(f"{trial.trainer.kind} {number}")
    broken, where = KILLS[number](trial, draw, tmp_path)
    resumed = broken.finish().resumed
    tell(f"{trial.trainer.kind}: killed {where}, resumed from step {resumed}")
    assert resumed > 0
    assert broken.results() == unbroken.results()
    assert not broken.leftovers()


def test_every_rename_of_a_run_is_of_something_synced_and_is_synced_itself(trial):
    calls = trial.run(fault=Fault()).calls
    check_order(calls, root=trial.folder)
    assert sum(call.commits for call in calls) > 15


@pytest.mark.parametrize("name", ["stage.json", ".probe"])
def test_kill_before_the_stage_has_a_record_is_no_obstacle(ready, trial, unbroken, name):
    calls = ready.copied(trial.folder.with_name("traced")).run(fault=Fault()).calls
    last = "unlink" if name == ".probe" else "rename"
    found = [call for call in calls if call.name == last and name in call.path.name]
    at = next(call for call in found if call.path.parent.name in ("out", trial.trainer.stage))
    assert trial.run(fault=shim.killed_before(at.number)).code == -signal.SIGKILL
    assert trial.leftovers()
    trial.finish()
    assert trial.results() == unbroken.results() and not trial.leftovers()


@pytest.mark.slow
def test_kill_at_a_hundred_calls_of_a_run_from_nothing(trial, unbroken, tmp_path, capsys):
    def from_nothing(name):
        trial.trainer.lay_out(tmp_path / name)
        return Trial(trial.zygote, trial.trainer, tmp_path / name)

    calls = from_nothing("whole").run(fault=Fault()).calls
    bad, gone_on = [], 0
    for call in random.Random(trial.trainer.kind).sample(calls, 100):
        broken = from_nothing(str(call.number))
        assert broken.run(fault=shim.killed_before(call.number)).code == -signal.SIGKILL
        ended = broken.run()
        gone_on += ended.resumed is not None
        if ended.code or broken.results() != unbroken.results() or broken.leftovers():
            bad.append((call, ended.code, ended.errors))
        shutil.rmtree(broken.folder)
    with capsys.disabled():
        print(f"\n{trial.trainer.kind}: 100 of {len(calls)} calls, {gone_on} after a checkpoint")
    assert not bad


@pytest.mark.slow
def test_twenty_kills_of_every_trainer(trial, unbroken, tmp_path, capsys):
    table = []
    for number in range(20):
        draw = random.Random(f"{trial.trainer.kind} slow {number}")
        kill = killed_in_save if number >= 15 else killed_at_random
        broken, where = kill(trial, draw, tmp_path / str(number))
        resumed = broken.finish().resumed
        equal = broken.results() == unbroken.results() and not broken.leftovers()
        table.append((number + 1, where, resumed, equal))
    with capsys.disabled():
        print(f"\n{trial.trainer.kind}: kill, where, resumed from step, equal")
        for row in table:
            print("{:>3}  {:<40} {:>4}  {}".format(*row))
    assert all(equal and (resumed or 0) > 0 for _, _, resumed, equal in table)


@pytest.mark.parametrize("kill", [killed_in_save, killed_at_random])
def test_workers_change_no_bit_killed_or_not(trial, unbroken, tmp_path, kill):
    workers = f"{trial.trainer.stage}.workers=2"
    broken, _ = kill(trial, random.Random(trial.trainer.kind), tmp_path, workers)
    assert broken.finish(workers).resumed > 0
    assert broken.results() == unbroken.results()


def losses_a_step(trial):
    """Micro-batches of a step."""
    stage = stage_of(trial)
    return stage.batch_tokens // stage.micro_batch_tokens


def test_kill_between_two_micro_batches_replays_the_step(trial, unbroken):
    second = 17 * losses_a_step(trial) + 2  # of step 18: the gradient of the first is there
    assert trial.run(at="loss", number=second, act="kill").code == -signal.SIGKILL
    assert trial.taken() == 17
    assert trial.finish().resumed == 15
    assert trial.results() == unbroken.results()


@pytest.mark.parametrize("kills", [2, 3])
def test_several_kills_in_a_row(trial, unbroken, kills):
    resumed = [None, 5, 10]
    for number in range(kills):
        eighth = 7 * losses_a_step(trial) + 1  # step of this process: two after a checkpoint
        ended = trial.run(at="loss", number=eighth, act="kill")
        assert ended.code == -signal.SIGKILL and ended.resumed == resumed[number]
    assert trial.finish().resumed == 5 * kills
    assert trial.results() == unbroken.results()


def test_kill_before_the_first_checkpoint_starts_over(trial, unbroken):
    assert trial.run(at="loss", number=3 * losses_a_step(trial), act="kill").code == -9
    assert trial.finish().resumed is None
    assert trial.results() == unbroken.results()


def held_in_step(trial, step, *more):
    """A run that is in the middle of a step when a signal comes."""
    child = trial.start(*more, at="loss", number=(step - 1) * losses_a_step(trial) + 2, act="hold")
    assert child.held()
    return child


TERM, INTERRUPT = (signal.SIGTERM, 75), (signal.SIGINT, 130)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("number", "code"), [TERM, INTERRUPT])
def test_signal_saves_after_the_step_and_the_run_goes_on(trial, unbroken, number, code, workers):
    more = [f"{trial.trainer.stage}.workers=2"] if workers else []
    child = held_in_step(trial, 11, *more)
    child.send_heeded(number)
    ended = child.let_go()
    assert ended.code == code
    words = "stopped: after step 11, state saved; run the same command again to go on"
    assert ended.errors == [words] and trial.taken() == 11
    assert open_checkpoint(checkpoints(trial.steps)[-1]).step == 11
    assert trial.finish(*more).resumed == 11
    assert trial.results() == unbroken.results()


def test_signal_in_a_save_saves_once_more_and_the_run_goes_on(trial, unbroken):
    child = trial.start(at="save", number=2, act="hold")
    assert child.held()
    child.send_heeded(signal.SIGTERM)
    ended = child.let_go()
    assert ended.code == 75
    resumed = trial.finish().resumed
    assert resumed in (10, 11) and f"after step {resumed}, state saved" in ended.err
    assert trial.results() == unbroken.results()


@pytest.mark.parametrize(("number", "code"), [TERM, INTERRUPT])
def test_second_signal_leaves_at_once(trial, unbroken, number, code):
    child = held_in_step(trial, 11)
    child.send_heeded(number)
    child.send(number)
    ended = child.wait()  # never let go: the step does not end
    assert (ended.code, ended.errors) == (
        code,
        ["stopped: by a signal; run the same command again"],
    )
    assert trial.taken() == 10
    assert [folder.name for folder in checkpoints(trial.steps)] == ["00000005", "00000010"]
    assert trial.finish().resumed == 10
    assert trial.results() == unbroken.results()


@pytest.mark.slow
def test_signals_at_random_times(trial, unbroken, tmp_path, capsys):
    seen = []
    for number in range(20):
        draw = random.Random(f"{trial.trainer.kind} signal {number}")
        broken = trial.copied(tmp_path / str(number))
        child = broken.start()
        child.wait_until(lambda: broken.taken() > 0)  # noqa: B023
        time.sleep(draw.uniform(0, 0.15))
        child.send(signal.SIGTERM)
        ended = child.wait()
        seen.append((ended.code, broken.taken(), broken.finish().resumed))
        assert ended.code in (0, 75)  # 0: it had ended
        assert broken.results() == unbroken.results() and not broken.leftovers()
    with capsys.disabled():
        print(f"\n{trial.trainer.kind}: exit code, steps taken, resumed from step")
        print(*seen, sep="\n")
    assert sum(code == 75 for code, _, _ in seen) >= 10
