"""Random features against softmax attention: the experiment in a much smaller form."""

import json
import math

import pytest
import torch

from experiments import favor
from experiments.favor import (
    Joined,
    claims,
    difference,
    draw,
    feature_map,
    squared_errors,
    sweep,
    table,
)
from experiments.record import run
from stemma.nn.feature_map import Favor


def test_joined_maps_estimate_the_kernel_as_the_mean_of_their_estimates():
    x, y = torch.randn(2, 1, 1, 3, 16, dtype=torch.float64)
    maps = tuple(Favor(1, seed=0, layer=layer) for layer in range(5))
    joined = Joined(maps)
    product = joined(x).plain() @ joined(y).plain().mT
    each = torch.stack([one(x).plain() @ one(y).plain().mT for one in maps])
    assert torch.allclose(product, each.mean(0), rtol=1e-12)


def test_independent_directions_are_not_orthogonal_and_orthogonal_ones_are():
    orthogonal = feature_map("positive", "orthogonal", 8, 1).directions(torch.zeros(1, 16))
    independent = torch.cat(
        [
            one.directions(torch.zeros(1, 16))
            for one in feature_map("positive", "independent", 8, 1).maps
        ]
    )
    for directions, wanted in ((orthogonal, True), (independent, False)):
        overlap = directions @ directions.T
        assert bool((overlap - overlap.diag().diag()).abs().max() < 1e-4) is wanted


def test_the_error_falls_with_the_number_of_positive_features():
    few = squared_errors("positive", "orthogonal", 16, seed=0, draws=6)
    many = squared_errors("positive", "orthogonal", 512, seed=0, draws=6)
    assert len(few) == 6 and sum(many) < 0.8 * sum(few)


def test_a_difference_is_told_with_its_standard_error():
    told = difference([2.0, 8.0], [1.0, 1.0])
    assert told["mean_log_ratio"] == pytest.approx(math.log(4))
    assert told["standard_error"] == pytest.approx(math.log(2))


def test_claims_hold_in_a_few_draws_and_fail_where_the_kinds_change_places():
    numbers = sweep([0, 1], counts=(16, 256), draws=4, say=lambda line: None)
    assert all(claims(numbers).values())
    assert "within noise" in table(numbers)
    assert len(draw(numbers).axes) == 1
    for row in numbers["errors"]:
        other = {"positive": "trigonometric", "trigonometric": "positive"}
        row["features"] = other[row["features"]]
    assert not next(iter(claims(numbers).values()))


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(favor.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "favor.json").read_text())
    assert {"errors", "orthogonality", "claims", "versions"} <= set(record)
