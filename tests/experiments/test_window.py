"""Windows of attention: the experiment in a much smaller form."""

import json

import pytest
import torch

from experiments import window
from experiments.record import run
from experiments.window import (
    CHANCE,
    claims,
    copy_loss,
    difference,
    distant,
    draw,
    influence,
    reach,
    roll,
    sweep,
    table,
)


@pytest.mark.parametrize(("layers", "size"), [(1, 1), (1, 5), (3, 4)])
def test_the_reach_is_found_by_gradients(layers, size):
    felt = influence(layers, size, 0, length=20)
    assert felt.shape == (20,) and reach(felt) == layers * (size - 1)


def test_reach_counts_places_back_from_the_last():
    assert reach(torch.tensor([1.0, 0.0, 1e-30, 0.0])) == 2


def test_targets_are_the_tokens_of_so_many_places_before():
    batch = distant(2, 9, 3)(torch.Generator().manual_seed(0))
    (tokens,) = batch.inputs
    assert torch.equal(batch.targets_BT[:, 3:], tokens[:, :-3])
    assert (batch.targets_BT[:, :3] == -100).all() and batch.counted == 2 * 6


def test_a_neighbour_is_learned_in_a_window_of_two_and_not_in_one_of_one():
    assert copy_loss(1, 2, 1, 0, steps=20) < 0.5 * CHANCE
    assert copy_loss(1, 1, 1, 0, steps=20) > 0.98 * CHANCE


def test_the_rolling_cache_is_the_full_pass_and_flat():
    assert difference(8, 100, 7, 0) < 1e-12
    assert roll(8, 40, 8, 0)[0].nbytes == roll(8, 400, 8, 0)[0].nbytes


def test_claims_are_drawn_from_every_number():
    numbers = sweep([0], {1: (4,)}, steps=2, rolled=(128, 192), say=lambda line: None)
    numbers["copies"].append({"layers": 1, "distance": 3, "losses": [0.01]})
    assert all(claims(numbers).values())
    assert "L (W - 1)" in table(numbers) and len(draw(numbers).axes) == 2
    numbers["copies"][-1]["losses"] = [0.4]
    numbers["copies"][0]["losses"] = [2.0]
    numbers["reach"][0]["reach"] = [4]
    numbers["rolling"]["differences"][0]["largest_difference"] = [1e-8]
    numbers["rolling"]["sizes"][0]["bytes"] += 1
    assert not any(claims(numbers).values())


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(window.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "window.json").read_text())
    assert {"reach", "copies", "rolling", "claims", "versions"} <= set(record)
