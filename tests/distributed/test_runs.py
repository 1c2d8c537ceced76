"""Recipes on several processes: the run of one, whatever their number, stopped or not."""

import shutil

import pytest

from stemma.core.distributed import ALONE
from tests.distributed.run_cases import run
from tests.faults.trainers import TRAINERS

CASE = "tests.distributed.run_cases:run"
TOLD = ("loss", "gradient_norm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folders of unbroken runs of one process, by trainer, with their histories."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            trainer = TRAINERS[kind]
            trainer.lay_out(folder)
            text = (folder / "tiny.yaml").read_text().replace("dropout: 0.1", "dropout: 0")
            (folder / "tiny.yaml").write_text(text)
            made[kind] = folder, run(ALONE, folder, ["out=one"])
        return made[kind]

    return of


def same(found, wanted):
    """Losses, norms and counts of every step, and what was held out, within fp32's rounding."""
    assert len(found) == len(wanted)
    for row, other in zip(found, wanted, strict=True):
        assert (row["step"], row["tokens"]) == (other["step"], other["tokens"])
        for key, value in other.items():
            if key in TOLD or key.startswith("heldout"):
                assert row[key] == pytest.approx(value, rel=1e-4), (row["step"], key)


@pytest.mark.parametrize(
    "kind", ["pretrain", *(pytest.param(k, marks=pytest.mark.slow) for k in [*TRAINERS][1:])]
)
def test_two_processes_train_as_one_does(pools, whole, kind):
    folder, wanted = whole(kind)
    for found in pools(2).run(CASE, folder=str(folder), overrides=["out=two"]):
        assert found["ended"] == wanted["ended"] == "done"
        same(found["metrics"], wanted["metrics"])


def test_a_signal_to_one_process_stops_all_and_another_number_goes_on(pools, whole):
    """Stopped on two by a signal to the second alone; four go on, each with its own part."""
    folder, wanted = whole("pretrain")
    overrides = ["out=stopped", "base.parallel.shards=2"]
    stop = {"stage": "base", "step": 5, "rank": 1}
    for found in pools(2).run(CASE, folder=str(folder), overrides=overrides, stop=stop):
        assert found["ended"].startswith("StoppedError: after step ")
        assert 5 <= len([row for row in found["metrics"] if "loss" in row]) < 24
    for found in pools(4).run(CASE, folder=str(folder), overrides=overrides):
        assert found["ended"] == "done"
        same(found["metrics"], wanted["metrics"])
    shutil.rmtree(folder / "stopped")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("base.parallel.shards=3", "2 processes are no multiple of shards (3) x tensor (1) = 3;"),
        ("base.parallel.tensor=2", "blocks.0.attention: query heads (1) are no multiple of ten"),
    ],
)
def test_plans_that_do_not_divide_are_refused_on_all(pools, whole, override, words):
    folder, _ = whole("pretrain")
    overrides = ["out=refused", override, "base.model.num_heads=1"]
    for found in pools(2).run(CASE, folder=str(folder), overrides=overrides):
        assert found["ended"].startswith("UsageError: ") and words in found["ended"]
    shutil.rmtree(folder / "refused", ignore_errors=True)
