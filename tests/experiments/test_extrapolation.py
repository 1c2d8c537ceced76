"""Longer than trained: the experiment in a much smaller form."""

import json
import math

import pytest
import torch

from experiments import extrapolation
from experiments.extrapolation import (
    change,
    claims,
    corpus,
    draw,
    losses_of,
    network,
    refusal,
    stretches,
    sweep,
    table,
    windows,
)
from experiments.record import run

TINY = {"width": 16, "depth": 1, "num_heads": 2, "vocab_size": 256, "initial_std": 0.08}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "src").mkdir()
    for i in range(30):
        (tmp_path / "docs" / f"{i}.md").write_text(f"page {i}")
        (tmp_path / "src" / f"{i}.py").write_text(f"x = {i}")
    return tmp_path


def test_text_is_learnt_or_kept_apart_and_a_new_file_moves_no_other(root):
    learnt, kept, fingerprint = corpus(root)
    everything = sum(len(path.read_bytes()) for path in root.rglob("*") if path.is_file())
    assert len(learnt) + len(kept) == everything and 0 < len(kept) < len(learnt)
    assert corpus(root)[2] == fingerprint
    (root / "docs" / "new.md").write_text("")
    assert torch.equal(corpus(root)[1], kept)
    (root / "docs" / "new.md").write_text("text")
    assert corpus(root)[2] != fingerprint


def test_windows_are_text_and_its_next_bytes():
    batch = windows(torch.arange(200), 4, 10)(torch.Generator().manual_seed(0))
    (tokens,) = batch.inputs
    assert tokens.shape == (4, 10) and torch.equal(batch.targets_BT, tokens + 1)
    assert len(set(tokens[:, 0].tolist())) > 1


def test_every_length_scores_the_same_bytes():
    tokens, targets = stretches(torch.arange(3000) % 256, 3, 512)
    model = network("llama", 0, table=512, sizes=TINY)
    short, long = (losses_of(model, tokens, targets, n) for n in (128, 512))
    assert short.shape == long.shape == (3, 512)
    # up to the trained length a token sees the same in both; after it, begins anew in one
    assert torch.allclose(long[:, :128], short[:, :128], atol=1e-5)
    again = losses_of(model, tokens[:, 128:256], targets[:, 128:256], 128)
    assert torch.allclose(short[:, 128:256], again, atol=1e-5)
    assert not torch.allclose(long[:, 128:], short[:, 128:], atol=1e-5)


def test_a_byte_is_compared_with_itself_at_the_end_of_a_window():
    tokens, targets = stretches(torch.arange(3000) * 7 % 256, 2, 512)
    model = network("llama", 0, table=512, sizes=TINY)
    long = losses_of(model, tokens, targets, 512)
    found = change(model, long, tokens, targets)
    assert found.shape == (13,) and abs(float(found[0])) < 1e-5
    near = losses_of(model, tokens[:, 384:], targets[:, 384:], 128)[:, 96:]
    assert torch.allclose(found[-1], (long[:, 480:] - near).mean(), atol=1e-5)


def test_a_table_of_128_rows_refuses_more():
    tokens = torch.zeros(1, 512, dtype=torch.long)
    said = refusal(tokens, TINY)
    assert "512" in said and "128" in said
    assert refusal(tokens[:, :128], TINY) is None


def test_a_tiny_sweep_has_every_number():
    numbers = sweep([0], steps=1, count=2, say=lambda line: None, sizes=TINY)
    assert [row["family"] for row in numbers["losses"]] == ["bloom", "llama", "gpt2"]
    for row in numbers["losses"]:
        assert all(4 < loss < 1.3 * math.log(256) for one in row["losses"] for loss in one.values())
    assert all(len(each["change"]) == 13 for each in numbers["by_position"]["curves"])
    assert "asked at 512" in table(numbers) and len(draw(numbers).axes) == 2


def numbers_of(alibi, rotary, learned):
    grown = {"bloom": alibi, "llama": rotary, "gpt2": learned}
    rows = [
        {"family": family, "losses": [{"128": 2.0, "256": 2.0, "512": 2.0 * ratio}]}
        for family, ratio in grown.items()
    ]
    return {"losses": rows, "table_of_128_says": "no"}


def test_claims_follow_the_ratios():
    assert all(claims(numbers_of(1.019, 1.05, 1.04)).values())
    assert list(claims(numbers_of(1.03, 1.035, 1.0)).values()) == [False, False, False, True]


@pytest.mark.slow
def test_the_quick_form_holds(tmp_path):
    assert run(extrapolation.EXPERIMENT, ["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "extrapolation.json").read_text())
    assert {"losses", "by_position", "text", "claims", "versions"} <= set(record)
