"""Steps that would do harm: left out to the bit, told, and not for ever."""

import json
import math
import statistics

import pytest
import torch

from stemma.core.errors import DivergedError
from stemma.train.guard import Guard, Recent, harm, leaps, recent_of, skipped
from stemma.train.loop import fit
from stemma.train.memory import Memory, Regime, begin_memory, recall
from tests.train.test_loop import Rows, model_of, ragged_rows
from tests.train.test_loop import loss_sum as plain_sum

SKIP = Guard(on_nonfinite="skip", most_skips=2)


def weights_and_state(model, optimizer):
    state = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*model.parameters(), *state]]


def steps_of(model, optimizer, memory, factors, first=0):
    """Steps whose loss is multiplied by a factor each; a list of them so far is kept beside."""
    tokens, targets = ragged_rows(4)
    windows = [[Rows(tokens, targets)] for _ in factors]
    at = iter(factors)

    def loss_sum(model, batch):
        return plain_sum(model, batch) * next(at)

    settings = {"learning_rate": lambda step: 1e-3, "clip": 1.0, "seed": 0, "first_step": first}
    return fit(model, windows, loss_sum, optimizer, **settings, memory=memory)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_left_out_changes_no_bit(factor):
    model, memory = model_of(torch.float32), Memory(Regime(guard=SKIP))
    optimizer = torch.optim.AdamW(model.parameters())
    steps = steps_of(model, optimizer, memory, [1, 1, factor, factor, 1, factor, 1])
    next(steps), next(steps)
    before = weights_and_state(model, optimizer)
    row = next(steps)
    assert row["step"] == 3 and row["skipped_nonfinite"] == 1.0 and row["tokens"] > 0
    assert "loss" not in row and all(map(math.isfinite, row.values()))
    next(steps)
    assert all(map(torch.equal, weights_and_state(model, optimizer), before))
    assert memory.recent.skips == 2
    taken = next(steps)
    assert taken["step"] == 5 and taken["loss"] > 0 and memory.recent.skips == 0
    assert not all(map(torch.equal, weights_and_state(model, optimizer), before))
    assert [row["step"] for row in steps] == [6, 7] and memory.skipped == 3


def test_too_many_in_a_row_end_it():
    model, memory = model_of(torch.float32), Memory(Regime(guard=SKIP))
    optimizer = torch.optim.AdamW(model.parameters())
    before = weights_and_state(model, optimizer)
    told = "at step 2, learning rate 0.001, after 2 steps in a row that were left out"
    with pytest.raises(DivergedError, match=told) as caught:
        list(steps_of(model, optimizer, memory, [math.nan] * 9))
    assert caught.value.exit_code == 6
    assert all(map(torch.equal, weights_and_state(model, optimizer), before))


def test_a_spike_is_what_is_far_above_the_last_steps():
    guard = Guard(on_spike="skip", window=8)
    draws = torch.Generator().manual_seed(0)
    past = torch.rand(8, generator=draws, dtype=torch.float64).tolist()
    limit = statistics.fmean(past) + 6 * statistics.pstdev(past)
    assert not leaps(limit * (1 - 1e-12), past, guard) and leaps(limit * (1 + 1e-12), past, guard)
    assert not leaps(limit * 9, past[1:], guard)  # the window is not full yet
    assert not leaps(-limit, past, guard)
    recent = Recent(8)
    for value in [9.0, *past]:
        recent.take(value, 2 * value)
    assert list(recent.losses) == past
    assert harm(guard, recent, past[0], 2 * past[0]) == ""
    assert harm(guard, recent, 2 * limit, past[0]) == "spike"
    assert harm(guard, recent, past[0], 3 * limit) == "spike"
    assert harm(guard, recent, math.nan, past[0]) == "nonfinite"
    assert harm(Guard(window=8), recent, 2 * limit, 3 * limit) == ""


def test_policies():
    assert skipped(Guard(on_spike="skip"), "spike")
    assert skipped(Guard(on_nonfinite="skip"), "nonfinite")
    assert not skipped(Guard(on_spike="skip"), "nonfinite")


@pytest.mark.parametrize("cut", [None, 5, 9, 10])
def test_spikes_are_left_out_and_the_window_is_resumed(cut):
    """The same steps are left out, wherever the run is broken; spikes are not in the window."""
    factors = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.0, 50.0, 60.0, 1.0, 1.0]
    regime = Regime(guard=Guard(on_spike="skip", window=6, most_skips=2))
    model = model_of(torch.float32)
    optimizer, memory = torch.optim.AdamW(model.parameters()), begin_memory(regime, model)
    rows = list(steps_of(model, optimizer, memory, factors[:cut]))
    if cut is not None:
        again = begin_memory(regime, model)
        recall(again, json.loads(json.dumps(memory.to_json())))
        assert again.to_json() == memory.to_json()
        rows += list(steps_of(model, optimizer, again, factors[cut:], first=cut))
        memory = again
    assert [row["step"] for row in rows if "skipped_spike" in row] == [9, 10]
    assert memory.skipped == 2
    assert rows[8]["loss"] > 10 * rows[7]["loss"] and max(memory.recent.losses) < 10


def test_a_memory_of_another_version_begins_anew():
    assert recent_of(4, {}) == Recent(4)
    memory = Memory()
    recall(memory, {})
    assert memory == Memory()
