"""The average of the weights: its equation, its use for a while, and its end."""

import pytest
import torch

from stemma.train.average import Average
from stemma.train.loop import fit
from stemma.train.memory import Regime, begin_memory
from stemma.train.norms import norms_of
from tests.train.test_loop import Rows, loss_sum, model_of, ragged_rows


def steps(model, memory, count):
    tokens, targets = ragged_rows(4)
    windows = [[Rows(tokens, targets)]] * count
    optimizer = torch.optim.AdamW(model.parameters())
    settings = {"learning_rate": lambda step: 1e-2, "clip": 1e9, "seed": 0}
    return fit(model, windows, loss_sum, optimizer, **settings, memory=memory)


def named(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_average_is_that_of_the_equation():
    model = model_of(torch.float64)
    model.norm.weight.requires_grad_(False)
    memory, wanted = begin_memory(Regime(decay=0.9), model), named(model)
    for _ in steps(model, memory, 5):
        wanted = {name: 0.9 * wanted[name] + 0.1 * p for name, p in named(model).items()}
    assert memory.averages().keys() == {f"ema/{n}" for n in wanted if n != "norm.weight"}
    for name, value in memory.averages().items():
        torch.testing.assert_close(value, wanted[name.removeprefix("ema/")], rtol=1e-12, atol=0)


def test_averages_are_used_for_a_while_and_training_never_knows():
    seldom, often = model_of(torch.float32), model_of(torch.float32)
    for model, looked in ((seldom, False), (often, True)):
        memory = begin_memory(Regime(decay=0.5), model)
        for _ in steps(model, memory, 4):
            if looked:
                own = named(model)
                with pytest.raises(KeyError), memory.average.used():
                    values = memory.average.values
                    assert all(torch.equal(p, values[name]) for name, p in named(model).items())
                    raise KeyError
                assert all(torch.equal(p, own[name]) for name, p in named(model).items())
    assert all(map(torch.equal, seldom.parameters(), often.parameters()))
    assert not torch.equal(memory.average.values["embedding.weight"], often.embedding.weight)


def test_averages_that_were_saved_go_on_and_are_settled():
    model = model_of(torch.float32)
    memory = begin_memory(Regime(decay=0.7), model)
    list(steps(model, memory, 3))
    saved = {name: value.clone() for name, value in memory.average.values.items()}
    again = Average(model, 0.7)
    for name, value in again.values.items():
        value.copy_(saved[name])
    again.update(), memory.average.update()
    assert all(torch.equal(again.values[name], memory.average.values[name]) for name in saved)
    again.settle()
    assert all(torch.equal(p, again.values[name]) for name, p in named(model).items())


def test_norms_of_layers_are_those_of_their_tensors():
    model = model_of(torch.float64)
    (row,) = steps(model, begin_memory(Regime(norms_every=1), model), 1)
    parts = {name: [] for name in ("embedding", "blocks.0", "blocks.1", "norm", "head")}
    for name, parameter in model.named_parameters():
        layer = next(part for part in parts if name.startswith(f"{part}."))
        parts[layer].append(parameter.grad.flatten())
    parts = {name: torch.cat(found).norm().item() for name, found in parts.items() if found}
    got = {n.split("/")[1]: v for n, v in row.items() if n.startswith("gradient_norm/")}
    assert got == pytest.approx(parts, rel=1e-12)
    whole = sum(value**2 for value in got.values()) ** 0.5
    assert row["gradient_norm"] == pytest.approx(whole, rel=1e-12)
    weights = {n for n in row if n.startswith("parameter_norm/")}
    assert weights == {f"parameter_norm/{name}" for name in parts}
    found = norms_of(model)["parameter_norm/embedding"]
    torch.testing.assert_close(found, model.embedding.weight.detach().norm())


def test_norms_come_when_they_are_due():
    model = model_of(torch.float32)
    rows = list(steps(model, begin_memory(Regime(norms_every=3), model), 7))
    assert [r["step"] for r in rows if any("/" in name for name in r)] == [3, 6]
