"""Attention to a source: the experiment in a much smaller form."""

import json

import pytest
import torch
import torch.nn.functional as F

from experiments import bahdanau
from experiments.bahdanau import accuracy, claims, compare, draw, network, offsets, table
from experiments.record import run
from experiments.synthetic import reversal
from stemma.nn.context import Context


def made(steps, plain, aligned, near):
    """Numbers from the accuracies at 20 and 40 tokens of each seed, and the share beside gold."""
    rows = [
        {
            "runs": [
                {
                    "accuracy": {"5": 1, "10": 1, "20": some[0], "30": 0, "40": some[1]},
                    "offsets": {"20": {"-1": 0.0, "+0": near / 2, "+1": near / 2}},
                }
                for some in seeds
            ]
        }
        for seeds in (plain, aligned)
    ]
    return {"settings": {"steps": steps}, "networks": rows}


@torch.no_grad()
def step_by_step(model, source):
    """Greedy decoding without a cache: the whole target again for every token."""
    target = torch.zeros(len(source), 1, dtype=torch.long)
    for _ in range(source.shape[1]):
        best = model(source, target, Context())[:, -1].argmax(-1, keepdim=True)
        target = torch.cat((target, best), 1)
    return target[:, 1:]


def test_every_token_has_a_partner_and_the_order_is_turned():
    batch = reversal(300, 4, 20)(torch.Generator().manual_seed(0))
    source, inputs = batch.inputs
    partners = {int(s): set() for s in source.unique()}
    for s, t in zip(
        source.flip(1).flatten().tolist(), batch.targets_BT.flatten().tolist(), strict=True
    ):
        partners[s].add(t)
    assert all(len(found) == 1 for found in partners.values())
    assert sorted(t for found in partners.values() for t in found) == list(range(1, 20))
    assert torch.equal(inputs, F.pad(batch.targets_BT[:, :-1], (1, 0)))


@pytest.mark.parametrize("family", bahdanau.NAMES)
def test_accuracy_is_that_of_greedy_decoding(family):
    model = network(family, 1).eval()
    batch = bahdanau.tested(5, 1)
    expected = (step_by_step(model, batch.inputs[0]) == batch.targets_BT).double().mean()
    assert accuracy(model, 5, 1) == pytest.approx(float(expected), abs=1e-4)


def test_offsets_count_from_the_gold_line():
    gold = torch.eye(6).flip(0)
    assert offsets(gold[None])["+0"] == 1
    beside = torch.cat((gold[:1], gold[:-1]))  # each step looks where the step before should
    assert offsets(beside[None]) == {"-2": 0, "-1": 0, "+0": 0.1667, "+1": 0.8333, "+2": 0}


def test_the_record_has_accuracies_and_an_alignment(monkeypatch):
    monkeypatch.setattr(bahdanau, "LENGTHS", (5, 9))
    monkeypatch.setattr(bahdanau, "TESTED", 4)
    monkeypatch.setattr(bahdanau, "ROWS", 8)
    numbers = compare((0,), steps=1, say=lambda line: None)
    for row in numbers["networks"]:
        assert [set(each["accuracy"]) for each in row["runs"]] == [{"5", "9"}]
    example = numbers["networks"][1]["runs"][0]["example"]
    assert all(sum(line) == pytest.approx(1, abs=0.02) for line in example)
    assert "with attention" in table(numbers) and len(draw(numbers).axes) == 3
    json.dumps(numbers, allow_nan=False)


def test_claims_hold_or_fail_by_every_seed():
    plain, aligned = [(0.3, 0.1), (0.4, 0.2)], [(0.96, 0.5), (1.0, 0.4)]
    assert all(claims(made(1500, plain, aligned, 0.96)).values())
    assert not any(claims(made(1500, [*plain, (0.7, 0.31)], [(0.9, 0.4)], 0.9)).values())
    assert len(claims(made(500, plain, aligned, 0.5))) == 2


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(bahdanau.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "bahdanau.png").stat().st_size > 10_000
