"""Muon against AdamW: the experiment in a much smaller form."""

import json
import random

import pytest

from experiments import optimizers
from experiments.optimizers import FULL, claims, draw, shares, stages, sweep, table
from experiments.record import run
from stemma.train.muon import Muon
from stemma.train.optimizer import AdamW

WORDS = "the a cat dog sat ran on under mat tree and then saw big small red blue moon".split()
TINY = FULL | {
    "vocab_size": 280,
    "network": "{family: llama, width: 16, depth: 1, num_heads: 2, hidden: 24, tied: true}",
    "context": 32,
    "tokens": 128,
    "batch_tokens": 64,
    "rates": [1e-3, 3e-3],
    "share": 0.5,
    "watched": 100,
    "points": 2,
    "scored": 100,
}


@pytest.fixture
def tiny(tmp_path):
    draw = random.Random(0)
    for number in range(10):
        text = "\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(6))
        (tmp_path / f"{number}_gut.txt").write_text(text)
    return TINY | {"inputs": [str(tmp_path)]}


def made(adamw, muon, rates=(9e-3, 9e-3), grid=(3e-3, 9e-3, 2.7e-2)):
    """Numbers from the scores of each seed; curves fall in a straight line to them."""
    rows = [
        {
            "optimizer": name,
            "rate": rate,
            "rates": [{"rate": one, "bits_per_byte": 3.0} for one in grid],
            "bits_per_byte": scores,
            "tokens_per_second": [100],
            "curves": [[[100, 4.0], [200, 4.0 if last is None else last]] for last in scores],
        }
        for name, scores, rate in zip(("adamw", "muon"), (adamw, muon), rates, strict=True)
    ]
    return {"optimizers": rows}


def test_stages_differ_in_the_optimizer_alone(tiny, tmp_path):
    found = {name: stage for name, stage, _ in stages(tmp_path, tiny)}
    kinds = {name: type(stage.optimizer) for name, stage in found.items()}
    assert kinds == {"adamw": AdamW, "muon": Muon}
    adamw, muon = (stage.model_dump(exclude={"optimizer"}) for stage in found.values())
    assert adamw == muon
    assert found["adamw"].optimizer.beta2 == found["muon"].optimizer.beta2 == 0.98


def test_the_sweep_has_every_rate_and_seed_and_a_picture(tiny):
    lines = []
    numbers = sweep([0], tiny, say=lines.append)
    assert [row["optimizer"] for row in numbers["optimizers"]] == ["adamw", "muon"]
    for row in numbers["optimizers"]:
        assert [one["rate"] for one in row["rates"]] == [1e-3, 3e-3]
        best = min(row["rates"], key=lambda one: one["bits_per_byte"])
        assert row["rate"] == best["rate"]
        assert len(row["bits_per_byte"]) == 1 and 3 < row["bits_per_byte"][0] < 9
        assert row["curves"][0][-1][0] >= 100
    first = [row["bits_per_byte"] for row in numbers["optimizers"]]
    assert first[0] != first[1] and len(lines) == 6
    assert "Muon is where AdamW ends" in table(numbers) and len(draw(numbers).axes) == 2
    json.dumps(numbers, allow_nan=False)


def test_claims_hold_or_fail_by_every_seed():
    assert all(claims(made([2.3, 2.2], [2.2, 2.1])).values())
    assert all(claims(made([None, 2.2], [2.2, 2.1])).values())  # who diverges has lost
    assert list(claims(made([2.3, 2.2], [2.2, 2.25])).values()) == [False, True, True]
    assert not claims(made([2.3], [None]))["Muon has fewer bits per byte than AdamW in every seed"]
    assert list(claims(made([2.3], [2.2], rates=(2.7e-2, 3e-3))).values()) == [True, False, False]
    assert len(claims(made([2.3], [2.2], grid=()))) == 1  # the quick form has one rate


def test_share_of_the_tokens_is_between_two_scores():
    # Muon falls from 4 at 100 tokens to 2 at 200, so it is at AdamW's 3 after 150 of the 200
    assert shares(made([3.0, 1.0], [2.0, 2.0])) == [0.75, 1.0]


@pytest.mark.net
def test_the_quick_form_holds(tmp_path):
    assert run(optimizers.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "optimizers.png").stat().st_size > 10_000
