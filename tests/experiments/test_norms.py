"""Where norms stand: the experiment in a much smaller form."""

import json
import math

import pytest
import torch

from experiments import norms
from experiments.norms import CHANCE, claims, draw, first_gradient, network, sweep, table
from experiments.record import run
from experiments.synthetic import IGNORED, repetition
from stemma.core.errors import DivergedError


def tiny(say=lambda line: None):
    return sweep((3e-3, 1e-2), (0, 2), (1, 2), (0, 1), steps=1, depth=1, say=say)


def made(post, pre, dual, gradients):
    losses = [
        {"norms": name, "rate": 3e-3, "warmup": 0, "losses": found}
        for name, found in zip(("post", "pre", "dual"), (post, pre, dual), strict=True)
    ]
    rows = [
        {"norms": name, "depth": depth, "median": value}
        for name, pair in gradients.items()
        for depth, value in zip((3, 48), pair, strict=True)
    ]
    return {"losses": losses, "gradients": rows}


def test_what_is_repeated_can_be_known_and_the_first_round_does_not_count():
    batch = repetition(5, 15)(torch.Generator().manual_seed(0))
    tokens = torch.cat((batch.inputs[0], batch.targets_BT[:, -1:]), 1)
    assert torch.equal(tokens[:, 8:], tokens[:, :8])
    assert (batch.targets_BT[:, :7] == IGNORED).all()
    assert torch.equal(batch.targets_BT[:, 7:], batch.inputs[0][:, :8])
    assert batch.counted == 5 * 8


def test_the_sweep_has_every_scheme_rate_and_seed(tmp_path):
    lines = []
    numbers = tiny(lines.append)
    assert len(numbers["losses"]) == 3 * 2 * 2 and len(numbers["gradients"]) == 3 * 2
    assert len(lines) == 18
    for row in numbers["losses"]:
        assert len(row["losses"]) == 2
        assert all(0.5 * CHANCE < loss < 4 * CHANCE for loss in row["losses"])
    assert len(table(numbers).splitlines()) == 13 + 1 + 7
    assert len(draw(numbers).axes) == 3
    json.dumps(numbers, allow_nan=False)


def test_schemes_begin_with_the_same_weights():
    weights = [network(name, 2, 0).get_parameter("blocks.1.mlp.up.weight") for name in norms.NAMES]
    assert all(torch.equal(weights[0], other) for other in weights)
    assert abs(weights[0].std().item() / math.sqrt(2 / (48 + 192)) - 1) < 0.05


def test_the_last_gradient_falls_with_depth_in_pre_norm_alone():
    def growth(norms):
        deep, shallow = (
            sum(first_gradient(norms, depth, seed) for seed in (0, 1, 2)) for depth in (24, 3)
        )
        return deep / shallow

    assert growth("pre") < 0.7 < growth("post") < 2


def test_claims_hold_or_fail_by_every_seed():
    good = {"post": (1.0, 1.3), "pre": (1.0, 0.3), "dual": (1.0, 0.9)}
    assert all(claims(made([2.78, None], [0.01, 0.02], [0.03, 0.04], good)).values())
    bad = {"post": (1.0, 2.3), "pre": (1.0, 0.6), "dual": (1.0, 0.9)}
    assert not any(claims(made([2.78, 1.0], [0.01, 0.2], [0.03, None], bad)).values())


def test_a_run_that_leaves_the_numbers_is_recorded_as_such(monkeypatch):
    def learn(*given, **named):
        raise DivergedError("loss nan", fix="none")
        yield

    monkeypatch.setattr(norms, "learn", learn)
    numbers = tiny()
    assert {row["median"] for row in numbers["losses"]} == {None}
    assert draw(numbers) is not None


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(norms.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "norms.png").stat().st_size > 10_000
