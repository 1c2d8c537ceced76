"""Mixture of experts: the experiment in a much smaller form."""

import json

import pytest
import torch

from experiments import experts
from experiments.experts import ALONE, ARMS, BALANCED, claims, compare, draw, loads, network, table
from experiments.record import run
from experiments.synthetic import skewed
from stemma.nn.moe import MoE


def tiny():
    return compare((ALONE, BALANCED), (0, 1), steps=2, say=lambda line: None)


def made(without, balanced):
    """Numbers of two arms from (dead, largest load, loss) of each seed."""
    keys = ("dead", "largest", "loss")
    rows = [
        {"arm": arm, "runs": [dict(zip(keys, each, strict=True)) for each in runs]}
        for arm, runs in ((ALONE, without), (BALANCED, balanced))
    ]
    return {"arms": rows}


def test_frequent_tokens_come_first_and_partners_follow():
    batch = skewed(200, 50)(torch.Generator().manual_seed(0))
    counts = torch.bincount(batch.inputs[0].flatten(), minlength=64)
    assert counts[0] > 2 * counts[1] > 2 * counts[8]
    assert torch.equal(batch.inputs[0][:, 1:], batch.targets_BT[:, :-1])


def test_the_record_has_loads_drops_and_one_heat_map(tmp_path):
    numbers = tiny()
    assert [row["arm"] for row in numbers["arms"]] == [ALONE, BALANCED]
    for row in numbers["arms"]:
        for each in row["runs"]:
            assert all(sum(layer) == pytest.approx(1, abs=1e-3) for layer in each["loads"])
            assert each["largest"] == max(max(layer) for layer in each["loads"])
            drops = list(each["dropped"].values())
            assert drops == sorted(drops, reverse=True)
        assert ["asked" in each for each in row["runs"]] == [True, False]
    assert "dropped at 1.25" in table(numbers) and len(draw(numbers).axes) == 4
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_dropped_is_what_exceeds_the_places(arm):
    """Counted once more from each row's choices: 64 tokens, an even share times the factor."""
    model = network(*ARMS[arm], seed=3)
    found = loads(model, 3)
    _, kept = experts.routed(model, 3)
    choices, over = ARMS[arm][0], []
    for moe, x_BTC, context in kept:
        experts_BTK = moe.route(moe.scores(x_BTC), context).experts_BTK
        for row in experts_BTK.flatten(1):
            counts = torch.bincount(row, minlength=8)
            over.append(float((counts - 64 * choices / 8).clamp(min=0).sum()) / len(row))
    assert found["dropped"]["1.0"] == pytest.approx(sum(over) / len(over), abs=1e-4)
    assert all(layer.capacity is None for layer in model.modules() if isinstance(layer, MoE))


def test_an_arm_has_the_loss_it_names():
    weights = {
        arm: {m.balance_loss for m in network(*ARMS[arm], seed=0).modules() if isinstance(m, MoE)}
        for arm in ARMS
    }
    assert list(weights.values()) == [{0.0}, {0.01}, {0.0}, {0.01}]


def test_claims_hold_or_fail_by_every_seed():
    assert all(claims(made([(3, 0.6, 2.4), (9, 0.5, 2.4)], [(0, 0.2, 2.42)] * 2)).values())
    assert not any(
        claims(made([(3, 0.6, 2.4), (2, 0.5, 2.4)], [(0, 0.2, 2.4), (1, 0.4, 2.5)])).values()
    )


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(experts.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "experts.png").stat().st_size > 10_000
