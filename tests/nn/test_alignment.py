"""Scores, their softmax under padding, and the aligned cell, against the papers' equations."""

import pytest
import torch
from torch import nn

from stemma.nn.alignment import Additive, AlignedRecurrence, Dot, General, align
from stemma.nn.cache import TensorState
from stemma.nn.cells import GRU, LSTM, ChoGRU
from stemma.nn.context import Context

CLOSE = {"rtol": 0, "atol": 1e-9}
SIZES = [(5, 6, 7), (4, 10, 3), (9, 2, 5)]  # width, memory width, units that compare


@torch.no_grad()
def scatter(module, seed=7):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_((0.3 if name.endswith("bias") else 0.7) * noise)
    return module


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(inputs, sizes, cell):
    width, memory_width, hidden = sizes
    alignment = Additive(width, memory_width, hidden)
    return scatter(AlignedRecurrence(inputs, width, memory_width, cell, alignment).double())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scores_are_their_equations(sizes):
    """Pair by pair; Luong's concat is one matrix times query and memory joined."""
    width, memory_width, hidden = sizes
    additive = scatter(Additive(width, memory_width, hidden).double())
    general = scatter(General(width, memory_width).double())
    query, memory = draw(2, 3, width), draw(2, 4, memory_width, seed=2)
    added = additive(query, additive.keys(memory))
    mapped = general(query, general.keys(memory))
    joined = torch.cat((additive.query.weight, additive.key.weight), dim=1)
    v = additive.score.weight[0]
    for b, t, m in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
        s, h = query[b, t], memory[b, m]
        e = v @ torch.tanh(additive.query.weight @ s + additive.key.weight @ h)
        torch.testing.assert_close(added[b, t, m], e, **CLOSE)
        torch.testing.assert_close(e, v @ torch.tanh(joined @ torch.cat((s, h))), **CLOSE)
        torch.testing.assert_close(mapped[b, t, m], s @ general.key.weight @ h, **CLOSE)


def test_the_dot_score_needs_one_width():
    dot, query, memory = Dot(), draw(2, 3, 5), draw(2, 4, 5, seed=2)
    scores = dot(query, dot.keys(memory))
    torch.testing.assert_close(scores, torch.einsum("btc,bmc->btm", query, memory), **CLOSE)
    with pytest.raises(ValueError, match="width 5 and a memory of 6"):
        dot(query, draw(2, 4, 6))


def test_padding_has_no_weight_and_a_row_of_padding_has_none_at_all():
    scores = (100 * draw(3, 2, 4)).requires_grad_()
    real = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    weights = align(scores, real)
    assert (weights[~real[:, None].expand(-1, 2, -1)] == 0).all()
    torch.testing.assert_close(weights[0][:, real[0]], scores[0][:, real[0]].softmax(-1), **CLOSE)
    torch.testing.assert_close(weights[2], align(scores, None)[2], **CLOSE)
    weights.square().sum().backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[1] == 0).all() and (scores.grad[0, :, ~real[0]] == 0).all()


CELLS = {"gru": GRU(), "lstm": LSTM(), "cho": ChoGRU()}
THEIRS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


def step_of(name, layer, part, state):
    """The cell's step: by torch's cell, or gate by gate as arXiv:1409.0473, A.1.1, writes it."""
    s = state[0]
    if name != "cho":
        theirs = THEIRS[name](len(part), len(s)).double()
        joined = torch.cat((layer.input.weight, layer.context.weight), dim=1)
        for own, value in (
            ("weight_ih", joined),
            ("bias_ih", layer.input.bias),
            ("weight_hh", layer.hidden.weight),
            ("bias_hh", layer.hidden.bias),
        ):
            getattr(theirs, own).data.copy_(value)
        if name == "gru":
            return (theirs(part[None], s[None])[0],)
        return tuple(t[0] for t in theirs(part[None], [t[None] for t in state]))
    y, c = part.split((layer.input.in_features, layer.context.in_features))
    w, cc, u = (m.weight.chunk(3) for m in (layer.input, layer.context, layer.hidden))
    b = layer.input.bias.chunk(3)
    r = torch.sigmoid(w[0] @ y + b[0] + u[0] @ s + cc[0] @ c)
    keep = torch.sigmoid(w[1] @ y + b[1] + u[1] @ s + cc[1] @ c)
    new = torch.tanh(w[2] @ y + b[2] + u[2] @ (r * s) + cc[2] @ c)
    z = 1 - keep  # the paper's update gate
    return ((1 - z) * s + z * new,)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_the_aligned_cell_is_its_equations(name, sizes):
    """Row by row and step by step, with a source whose first token is padding."""
    layer = make(3, sizes, CELLS[name])
    x, memory = draw(2, 5, 3), draw(2, 4, sizes[1], seed=2)
    real = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    context = Context(memory_BMC=memory, memory_padding_BM=real)
    found, weights = layer.aligned(x, context)
    score = layer.alignment
    for n in range(2):
        h = memory[n, real[n]]
        s = torch.tanh(layer.begin.weight @ h[0, sizes[1] // 2 :] + layer.begin.bias)
        state = (s, torch.zeros_like(s))
        for t in range(5):
            s = state[0]
            compared = score.query.weight @ s + h @ score.key.weight.T
            alpha = (torch.tanh(compared) @ score.score.weight[0]).softmax(-1)
            c = alpha @ h
            state = step_of(name, layer, torch.cat((x[n, t], c)), state)
            torch.testing.assert_close(weights[n, t, real[n]], alpha, **CLOSE)
            torch.testing.assert_close(found[n, t], torch.cat((state[0], c)), **CLOSE)
    assert weights.std() > 0.05  # not the same for all


@pytest.mark.parametrize("cell", [ChoGRU(), GRU(), LSTM()], ids=lambda cell: type(cell).__name__)
def test_gradients_are_finite_differences(cell):
    """Of the input, the memory and every parameter, with padding on both sides."""
    layer = make(2, (3, 4, 3), cell)
    real = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    target = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
    names = [name for name, _ in layer.named_parameters()]

    def outputs(x, memory, *values):
        context = Context(memory_BMC=memory, memory_padding_BM=real, real_BT=target)
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, parameters, (x, context))[0]

    given = [draw(2, 3, 2), draw(2, 3, 4, seed=2), *(p.detach() for p in layer.parameters())]
    assert torch.autograd.gradcheck(outputs, [value.requires_grad_() for value in given])


@pytest.mark.parametrize("alignment", [Dot(), General(6, 6), Additive(6, 6, 4)])
def test_a_score_is_handed_in_and_its_keys_are_made_once(alignment):
    calls = []
    layer = scatter(AlignedRecurrence(3, 6, 6, GRU(), alignment).double())
    keys = alignment.keys
    alignment.keys = lambda memory: calls.append(1) or keys(memory)
    x, memory, state = draw(2, 5, 3), draw(2, 4, 6, seed=2), TensorState()
    parts = [
        layer(x[:, t, None], Context(cache=state, memory_BMC=memory if t == 0 else None))[0]
        for t in range(5)
    ]
    assert len(calls) == 1
    whole, _ = layer(x, Context(memory_BMC=memory))
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


def test_dropout_falls_on_what_leaves_and_not_on_what_is_carried():
    alignment = Additive(5, 6, 7)
    layer = AlignedRecurrence(3, 5, 6, GRU(), alignment, dropout=0.5).double()
    context = Context(memory_BMC=draw(2, 4, 6), cache=TensorState())
    torch.manual_seed(0)
    dropped, _ = layer(draw(2, 9, 3), context)
    whole, _ = layer.aligned(draw(2, 9, 3), Context(memory_BMC=draw(2, 4, 6)))
    gone = dropped == 0
    assert 0.3 < gone.double().mean() < 0.7
    torch.testing.assert_close(dropped[~gone], 2 * whole[~gone], **CLOSE)
    torch.testing.assert_close(context.cache.get("hidden"), whole[:, -1, :5], **CLOSE)


def test_what_a_decoder_cannot_do_is_refused():
    layer = make(3, (5, 6, 7), ChoGRU())
    with pytest.raises(ValueError, match="encode the source first"):
        layer(draw(1, 2, 3), Context())
    ids = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="several documents"):
        layer(draw(1, 2, 3), Context(memory_BMC=draw(1, 2, 6), document_ids_BT=ids))
