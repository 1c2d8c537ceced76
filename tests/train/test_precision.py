"""Precision: half products on full weights, and a loss scale that changes nothing but the range."""

import json

import pytest
import torch

from stemma import api
from stemma.core.errors import DivergedError
from stemma.train.loop import fit
from stemma.train.memory import Memory, Regime, begin_memory, recall
from stemma.train.precision import GROWTH, LARGEST, LossScale, autocast
from tests.train.test_loop import Rows, loss_sum, ragged_rows

RATE = 1e-2


def network(seed=0):
    numbers = {"width": 32, "depth": 2, "num_heads": 4, "vocab_size": 61, "context": 16}
    return api.build("gpt2", seed=seed, **numbers)


def windows(steps, first=0):
    tokens, targets = ragged_rows(6)
    for step in range(first, steps):
        rows = slice(step % 3, step % 3 + 3)
        yield [Rows(tokens[rows][:2], targets[rows][:2]), Rows(tokens[rows][2:], targets[rows][2:])]


def train(model, memory, steps, *, first=0, optimizer=None, loss=loss_sum, clip=1.0):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=RATE)
    settings = {"learning_rate": lambda step: RATE, "clip": clip, "seed": 0, "first_step": first}
    return list(fit(model, windows(steps, first), loss, optimizer, **settings, memory=memory))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_scale_halves_at_an_overflow_and_doubles_after_many_sound_steps():
    scale = LossScale()
    assert scale.scale == 2.0**16
    assert scale.after(overflowed=True) == LossScale(2.0**15, 0)
    for _ in range(GROWTH - 1):
        scale = scale.after(overflowed=False)
    assert scale == LossScale(2.0**16, GROWTH - 1)
    assert scale.after(overflowed=True) == LossScale(2.0**15, 0)
    assert scale.after(overflowed=False) == LossScale(2.0**17, 0)
    assert LossScale(1.0).after(overflowed=True).scale == 1.0
    assert LossScale(LARGEST, GROWTH - 1).after(overflowed=False).scale == LARGEST


def test_scaling_by_a_power_of_two_changes_no_bit():
    plain, scaled = network(), network()
    numbers = train(plain, Memory(), 4), train(scaled, Memory(scale=LossScale(2.0**12)), 4)
    assert torch.equal(weights(plain), weights(scaled))
    assert [row["loss"] for row in numbers[0]] == [row["loss"] for row in numbers[1]]
    assert [row["gradient_norm"] for row in numbers[0]] == [r["gradient_norm"] for r in numbers[1]]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_products_are_halves_and_weights_are_not(precision):
    model, seen = network(), set()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for block in model.blocks:
        block.mlp.up.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    memory = begin_memory(Regime(precision), model)
    rows = train(model, memory, 12, optimizer=optimizer)
    assert seen == {torch.float16 if precision == "fp16" else torch.bfloat16}
    state = [value for state in optimizer.state.values() for value in state.values()]
    full = [*model.parameters(), *(p.grad for p in model.parameters()), *state]
    assert {tensor.dtype for tensor in full} == {torch.float32}
    other = network()
    wanted = train(other, Memory(), 12)
    for row, full_row in zip(rows, wanted, strict=True):
        assert row["loss"] == pytest.approx(full_row["loss"], rel=0.03)
        assert ("loss_scale" in row) == (precision == "fp16")


MORE = {
    "llama": {"num_heads": 2},
    "bert": {"num_heads": 2, "masked_head": True},
    "t5": {"num_heads": 2, "hidden": 48},
    "mixtral": {"num_heads": 2, "hidden": 48},
    "linear": {"num_heads": 2},
    "lstm": {},
}


@pytest.mark.parametrize("family", MORE)
def test_families_run_in_half_precision(family):
    numbers = {"width": 32, "depth": 1, "vocab_size": 61, "context": 16, **MORE[family]}
    model = api.build(family, **numbers).eval()
    tokens, _ = ragged_rows(2)
    inputs = (tokens, tokens) if hasattr(model, "encode") else (tokens,)
    exact = model(*inputs)
    with autocast("bf16", torch.device("cpu")):
        logits = model(*inputs)
    logits.float().logsumexp(-1).sum().backward()
    assert logits.dtype == torch.bfloat16
    assert ((logits - exact).norm() / exact.norm()).item() < 0.05
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_overflow_leaves_the_step_out_and_halves_the_scale():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    memory = begin_memory(Regime("fp16"), model)
    train(model, memory, 1, optimizer=optimizer)
    before = weights(model).clone()
    counts = [state["step"].clone() for state in optimizer.state.values()]
    memory.scale = LossScale(LARGEST, 7)
    settings = {"learning_rate": lambda step: RATE, "clip": 1.0, "seed": 0, "first_step": 1}
    steps = fit(model, windows(9, 1), loss_sum, optimizer, **settings, memory=memory)
    row = next(steps)
    assert row["skipped_overflow"] == 1.0 and row["loss_scale"] == LARGEST
    assert memory.scale == LossScale(LARGEST / 2, 0) and memory.skipped == 1
    assert torch.equal(weights(model), before)
    assert all(map(torch.equal, counts, [s["step"] for s in optimizer.state.values()]))
    later = list(steps)
    assert "skipped_overflow" not in later[-1] and memory.scale.good_steps >= 1
    assert memory.skipped == sum("skipped_overflow" in r for r in [row, *later])


@pytest.mark.parametrize("scale", [LARGEST, 1.0])
def test_a_loss_that_is_not_finite_is_no_overflow(scale):
    model = network()
    memory = begin_memory(Regime("fp16"), model)
    memory.scale = LossScale(scale)
    with pytest.raises(DivergedError, match="at step 0"):
        train(model, memory, 1, loss=lambda model, batch: loss_sum(model, batch) * float("nan"))
    assert memory.scale == LossScale(scale)


def test_scale_is_resumed():
    unbroken, broken = network(), network()
    memory = begin_memory(Regime("fp16"), unbroken)
    memory.scale = LossScale(LARGEST)
    train(unbroken, memory, 9)
    first, optimizer = begin_memory(Regime("fp16"), broken), torch.optim.AdamW(broken.parameters())
    first.scale = LossScale(LARGEST)
    train(broken, first, 4, optimizer=optimizer)
    second = begin_memory(Regime("fp16"), broken)
    recall(second, json.loads(json.dumps(first.to_json())))
    train(broken, second, 9, first=4, optimizer=optimizer)
    assert second.to_json() == memory.to_json() and memory.scale.scale < LARGEST
    assert torch.equal(weights(unbroken), weights(broken))
