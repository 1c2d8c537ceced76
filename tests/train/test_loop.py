"""The loop: the gradient of a step does not depend on how its window is cut."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma import api
from stemma.core.errors import DivergedError
from stemma.models import llama
from stemma.nn.initial import initialise
from stemma.train.loop import accumulate, fit
from stemma.train.optimizer import AdamW, adamw
from stemma.train.schedule import Cosine, WarmupStableDecay

IGNORED = -100


@dataclass
class Rows:
    """Micro-batch of tensors with a ragged mask."""

    tokens: Tensor
    targets: Tensor

    @property
    def counted(self):
        return int((self.targets != IGNORED).sum())


def loss_sum(model, batch):
    logits = model(batch.tokens).flatten(0, 1)
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def model_of(dtype):
    config = llama.LlamaConfig(width=32, depth=2, num_heads=4, num_kv_heads=2, vocab_size=61)
    model = llama.build(config)
    initialise(model, seed=1, std=0.15, depth=2)
    return model.to(dtype)


def ragged_rows(count):
    """Rows whose numbers of counted targets differ widely, one of them with none at all."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 61, (count, 13), generator=generator)
    targets = torch.randint(0, 61, (count, 13), generator=generator)
    for row in range(count):
        targets[row, (row * 5) % 14 :] = IGNORED
    return tokens, targets


def window(tokens, targets, micro):
    """Micro-batches of `micro` rows; the last is smaller where it does not divide."""
    cuts = range(0, len(tokens), micro)
    return [Rows(tokens[c : c + micro], targets[c : c + micro]) for c in cuts]


def gradients(dtype, batches):
    model = model_of(dtype)
    loss, counted = accumulate(model, batches, loss_sum)
    return loss.item(), counted, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_accumulation_changes_no_gradient(dtype, limit, parts):
    tokens, targets = ragged_rows(15)
    batches = window(tokens, targets, -(-15 // parts))
    assert len(batches) == parts
    assert parts == 1 or len(batches[-1].tokens) < len(batches[0].tokens)  # a short last one
    wanted_loss, wanted_count, wanted = gradients(dtype, [Rows(tokens, targets)])
    loss, counted, got = gradients(dtype, batches)
    assert counted == wanted_count
    assert loss == pytest.approx(wanted_loss, rel=limit)
    for name in wanted:
        difference = (got[name] - wanted[name]).norm() / wanted[name].norm()
        assert difference <= limit, name


def test_loss_is_the_mean_over_counted_tokens_not_over_rows():
    model = model_of(torch.float64)
    tokens, targets = ragged_rows(6)
    logits = model(tokens).log_softmax(-1)
    chosen = [
        -logits[r, t, targets[r, t]].item()
        for r in range(6)
        for t in range(13)
        if targets[r, t] != IGNORED
    ]
    loss, counted = accumulate(model, window(tokens, targets, 2), loss_sum)
    assert counted == len(chosen)
    assert loss.item() == pytest.approx(sum(chosen) / len(chosen), rel=1e-12)


def run(model, steps, rate=1e-2, windows=None):
    tokens, _ = ragged_rows(4)
    targets = tokens.roll(-1, dims=1)
    optimizer = adamw(model, AdamW(), learning_rate=rate)
    windows = windows or [[Rows(tokens, targets)]] * steps
    return list(
        fit(model, windows, loss_sum, optimizer, learning_rate=lambda s: rate, clip=1.0, seed=0)
    )


def test_training_learns_one_batch():
    numbers = run(model_of(torch.float32), 60)
    assert numbers[0]["loss"] > 3.5 and numbers[-1]["loss"] < 0.1
    assert [n["step"] for n in numbers] == list(range(1, 61))


def test_step_that_is_not_finite_is_not_taken():
    model = model_of(torch.float32)
    tokens, _ = ragged_rows(2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    before["norm.weight"] = model.norm.weight.clone()
    with pytest.raises(DivergedError, match="step 0"):
        run(model, 1, windows=[[Rows(tokens, tokens)]])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


def test_adamw_equals_the_equation():
    # arXiv:1711.05101, algorithm 2, written out for one matrix and one vector
    torch.manual_seed(3)
    module = torch.nn.Linear(3, 2).double()
    numbers = AdamW(weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer = adamw(module, numbers, learning_rate=0.05)
    wanted = {n: p.detach().clone() for n, p in module.named_parameters()}
    first = {n: torch.zeros_like(p) for n, p in wanted.items()}
    second = {n: torch.zeros_like(p) for n, p in wanted.items()}
    for step in range(1, 6):
        x = torch.randn(4, 3, dtype=torch.float64)
        optimizer.zero_grad()
        module(x).square().sum().backward()
        for name, parameter in module.named_parameters():
            g = parameter.grad
            first[name] = 0.8 * first[name] + 0.2 * g
            second[name] = 0.9 * second[name] + 0.1 * g * g
            decay = 0.1 if wanted[name].ndim == 2 else 0.0
            update = (first[name] / (1 - 0.8**step)) / (
                (second[name] / (1 - 0.9**step)).sqrt() + 1e-6
            )
            wanted[name] = wanted[name] - 0.05 * (update + decay * wanted[name])
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-10, atol=1e-12)


def test_cosine_by_hand():
    schedule = Cosine(kind="cosine", warmup=2, floor=0.1)
    assert [round(schedule.share(s, 7), 4) for s in range(7)] == [
        0.5, 1.0, 1.0, 0.8682, 0.55, 0.2318, 0.1,
    ]  # fmt: skip


def test_wsd_by_hand():
    schedule = WarmupStableDecay(kind="wsd", warmup=2, decay=0.5, floor=0.0)
    assert [schedule.share(s, 8) for s in range(8)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_embeddings_take_their_own_rate():
    # the first step of AdamW moves every weight by its rate, whatever the gradient's size
    model = model_of(torch.float64)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tokens = torch.arange(61).view(1, 61)
    optimizer = adamw(
        model, AdamW(weight_decay=0.0, embedding_rate=4.0, eps=1e-30), learning_rate=1
    )
    window = [[Rows(tokens, tokens.roll(-1))]]
    fitted = fit(model, window, loss_sum, optimizer, learning_rate=lambda s: 1e-3, clip=1.0, seed=0)
    next(fitted)
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(4e-3 if name == "embedding.weight" else 1e-3, rel=1e-6), name


def test_learned_positions_take_the_rate_of_embeddings():
    """A table of places is as seldom touched as one of words."""
    model = api.build("gpt2", width=8, depth=1, num_heads=2, vocab_size=11, context=4)
    groups = adamw(model, AdamW(embedding_rate=4.0), learning_rate=1).param_groups
    fast = {id(p) for group in groups if group["scale"] == 4.0 for p in group["params"]}
    assert fast == {id(model.embedding.weight), id(model.position.weight)}
