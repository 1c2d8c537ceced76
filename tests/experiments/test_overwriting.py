"""The delta rule against the additive one: the experiment's own numbers, and by hand."""

import json

import torch

from experiments import overwriting
from experiments.overwriting import RULES, claims, read_error, sweep
from experiments.record import run


def test_one_key_written_twice_is_replaced_by_delta_and_summed_by_addition():
    # a single key of length one: delta reads the last value, addition the sum of both
    assert read_error(RULES["delta"], 1, 2, seed=0) < 1e-28
    assert 0.8 < read_error(RULES["additive"], 1, 2, seed=0) < 1.2


def test_errors_are_those_of_the_rules_written_out(monkeypatch):
    drawn = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: drawn.append(randn(*a, **k)) or drawn[-1])
    found = {name: read_error(rule, 5, 2, seed=3, draws=2) for name, rule in RULES.items()}
    monkeypatch.undo()
    keys = drawn[0] / drawn[0].norm(dim=-1, keepdim=True)
    for name, expected in found.items():
        wrong = 0.0
        for b in range(2):
            matrix = torch.zeros(16, 16, dtype=torch.float64)
            for values in drawn[1:3]:
                for key, value in zip(keys[b, 0], values[b, 0], strict=True):
                    old = matrix @ key if name == "delta" else 0.0
                    matrix = matrix + torch.outer(value - old, key)
            wrong += (keys[b, 0] @ matrix.T - drawn[2][b, 0]).square().sum().item()
        assert abs(wrong / drawn[2].square().sum().item() - expected) < 1e-12


def test_claims_hold_in_a_few_draws_and_fail_where_the_rules_change_places():
    numbers = sweep([0], draws=16, say=lambda line: None)
    assert all(claims(numbers).values())
    for row in numbers["errors"]:
        row["rule"] = {"additive": "delta", "delta": "additive"}[row["rule"]]
    assert sum(claims(numbers).values()) == 1  # only that both fail beyond the width


def test_the_quick_form_writes_its_record_and_picture(tmp_path, capsys):
    assert run(overwriting.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "overwriting.json").read_text())
    assert record["quick"] and record["seeds"] == [0, 1]
    assert len(record["errors"]) == 2 * 2 * 5
    assert {"claims", "seconds", "versions", "settings"} <= set(record)
    assert (tmp_path / "overwriting.png").stat().st_size > 10_000
    assert "holds: delta" in capsys.readouterr().out
