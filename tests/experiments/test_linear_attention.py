"""Forms and costs of linear attention: the experiment in a much smaller form."""

import json

import pytest

from experiments import linear_attention
from experiments.linear_attention import (
    FAMILIES,
    FORMS,
    claims,
    cost,
    draw,
    form_error,
    network_error,
    table,
)
from experiments.record import run
from stemma.nn.fast_weight import Additive

SHORT, LONG = 512, 1024


def numbers_of(costs):
    row = {"rule": "linear", "length": 5, "forms": [1e-15], "networks": [2e-15]}
    return {"seeds": [0], "forms": [row], "costs": costs}


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_agree(name):
    assert 0 < form_error(name, 37, 0) < 1e-12
    assert network_error(name, 67, 0) < 1e-12


def test_forms_that_differ_are_told_apart(monkeypatch):
    # a rule whose chunks forget half of what was written before them
    class Forgetful(Additive):
        def chunk(self, tokens, memory):
            return super().chunk(tokens, memory._replace(matrix_BHFD=memory.matrix_BHFD / 2))

    monkeypatch.setitem(FORMS, "linear", (FORMS["linear"][0], Forgetful()))
    assert form_error("linear", 37, 0) > 0.1


def test_state_is_flat_but_for_the_growing_cache():
    costs = [row for family in FAMILIES for row in cost(family, (SHORT, LONG), rounds=2)]
    for row in costs:
        row["milliseconds"] = 1.0  # what a busy machine says is no matter of a test
    numbers = numbers_of(costs)
    assert all(claims(numbers).values())
    assert "bytes of state" in table(numbers) and len(draw(numbers).axes) == 2
    costs[1]["state_bytes"] += 1
    costs[1]["milliseconds"] = 2.0
    costs[-1]["state_bytes"] = costs[-2]["state_bytes"]
    numbers["forms"][0]["networks"] = [1e-11]
    assert not any(claims(numbers).values())


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(linear_attention.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "linear_attention.json").read_text())
    assert {"forms", "costs", "claims", "versions"} <= set(record)
