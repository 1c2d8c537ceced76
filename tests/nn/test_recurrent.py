"""Cells and their unrolling against torch's layers, the papers' equations, and the house's laws."""

import copy

import pytest
import torch
from torch import nn

from stemma.nn.cache import TensorState
from stemma.nn.cells import GRU, LSTM, RNN, ChoGRU
from stemma.nn.context import Context
from stemma.nn.initial import initialise
from stemma.nn.recurrent import Bidirectional, Recurrence

CLOSE = {"rtol": 0, "atol": 1e-9}
SHAPES = [(3, 5, True), (7, 4, True), (6, 9, False)]  # inputs, width, bias: odd sizes
CELLS = {"rnn": RNN(), "lstm": LSTM(), "gru": GRU(), "cho": ChoGRU()}
THEIRS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
LAST = {"rnn": 1, "lstm": 2, "gru": 1, "cho": 1}  # tensors that are carried


@torch.no_grad()
def scatter(module, seed=7):
    """Wide weights: small ones make many mistakes invisible."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.copy_((0.3 if name.endswith("bias") else 0.6) * noise)
    return module


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(name, inputs=4, width=5, bias=True):
    return scatter(Recurrence(inputs, width, CELLS[name], bias=bias).double())


def give(theirs, ours, suffix="_l0"):
    """Our weights in torch's layer."""
    for part, name in (("input", "ih"), ("hidden", "hh")):
        linear = getattr(ours, part)
        getattr(theirs, f"weight_{name}{suffix}").data.copy_(linear.weight)
        if linear.bias is not None:
            getattr(theirs, f"bias_{name}{suffix}").data.copy_(linear.bias)
    return theirs


def run(layer, x, state=None, **told):
    """Outputs, and what is carried at the end."""
    state = state or TensorState()
    caches = None if told.get("document_ids_BT") is not None else object()
    outputs, losses = layer(x, Context(caches=caches, cache=state, **told))
    assert losses == {}
    return outputs, [state.get(name) for name in layer.cell.carried]


def real_of(lengths, length, left=False):
    places = torch.arange(length)[None]
    places = places.flip(1) if left else places
    return places < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", THEIRS)
def test_outputs_states_and_gradients_are_those_of_torch(name, shape):
    inputs, width, bias = shape
    ours = make(name, *shape)
    theirs = give(THEIRS[name](inputs, width, bias=bias, batch_first=True).double(), ours)
    x, weights = draw(2, 11, inputs), draw(2, 11, width, seed=2)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, last = run(ours, mine)
    expected, theirs_last = theirs(other)
    torch.testing.assert_close(found, expected, **CLOSE)
    theirs_last = theirs_last if name == "lstm" else (theirs_last,)
    for a, b in zip(last, theirs_last, strict=True):
        torch.testing.assert_close(a, b[0], **CLOSE)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, **CLOSE)
    for part, short in (("input", "ih"), ("hidden", "hh")):
        for kind in ("weight", "bias") if bias else ("weight",):
            a = getattr(getattr(ours, part), kind).grad
            torch.testing.assert_close(a, getattr(theirs, f"{kind}_{short}_l0").grad, **CLOSE)
            assert a.abs().max() > 1e-3


@pytest.mark.parametrize("name", THEIRS)
def test_padded_rows_end_where_torchs_packed_rows_end(name):
    ours, x, lengths = make(name), draw(3, 8, 4), [8, 3, 1]
    theirs = give(THEIRS[name](4, 5, batch_first=True).double(), ours)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, last = theirs(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    real = real_of(lengths, 8)
    found, mine = run(ours, x, real_BT=real)
    torch.testing.assert_close(found[real], expected[real], **CLOSE)
    for a, b in zip(mine, last if name == "lstm" else (last,), strict=True):
        torch.testing.assert_close(a, b[0], **CLOSE)


@pytest.mark.parametrize("name", THEIRS)
def test_both_directions_are_those_of_torch_under_padding_on_the_right(name):
    ours = scatter(Bidirectional(4, 5, CELLS[name]).double())
    theirs = THEIRS[name](4, 5, batch_first=True, bidirectional=True).double()
    give(give(theirs, ours.forwards), ours.backwards, "_l0_reverse")
    x, lengths = draw(3, 8, 4), [8, 5, 2]
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, last = theirs(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    real = real_of(lengths, 8)
    found, _ = ours(x, Context(real_BT=real))
    torch.testing.assert_close(found[real], expected[real], **CLOSE)
    hidden = last[0] if name == "lstm" else last
    torch.testing.assert_close(found[:, 0, 5:], hidden[1], **CLOSE)  # backwards, after the text
    torch.testing.assert_close(found[:, -1, :5], hidden[0], **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_both_directions_of_a_padded_row_are_those_of_the_row_alone(left):
    layer = scatter(Bidirectional(4, 5, LSTM()).double())
    x, real = draw(3, 7, 4), real_of([7, 4, 1], 7, left)
    found, _ = layer(x, Context(real_BT=real))
    for n in range(3):
        alone, _ = layer(x[n, real[n]][None], Context())
        torch.testing.assert_close(found[n, real[n]], alone[0], **CLOSE)


def test_reading_backwards_refuses_a_cache_and_keeps_documents_apart():
    layer, x = scatter(Bidirectional(4, 5, GRU()).double()), draw(1, 9, 4)
    with pytest.raises(ValueError, match="no cache"):
        layer(x, Context(caches=object()))
    ids = torch.tensor([[3] * 4 + [1] * 5])
    found, _ = layer(x, Context(document_ids_BT=ids))
    for part, alone in zip(found.split((4, 5), 1), x.split((4, 5), 1), strict=True):
        torch.testing.assert_close(part, layer(alone, Context())[0], **CLOSE)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def equation(name, x, state, ours):
    """One step of one row as the papers write it, gate by gate."""
    h = state[0]
    u = ours.hidden.weight.chunk(CELLS[name].num_gates)
    part = (ours.input.weight @ x + ours.input.bias).chunk(CELLS[name].num_gates)
    past = [matrix @ h for matrix in u]
    if name != "cho":
        biases = ours.hidden.bias.chunk(CELLS[name].num_gates)
        past = [p + bias for p, bias in zip(past, biases, strict=True)]
    if name == "rnn":
        return (torch.tanh(part[0] + past[0]),)
    if name == "lstm":
        i, f, o = (sigmoid(part[k] + past[k]) for k in (0, 1, 3))
        cell = f * state[1] + i * torch.tanh(part[2] + past[2])
        return o * torch.tanh(cell), cell
    r, z = sigmoid(part[0] + past[0]), sigmoid(part[1] + past[1])
    inner = u[2] @ (r * h) if name == "cho" else r * past[2]
    return ((1 - z) * torch.tanh(part[2] + inner) + z * h,)


@pytest.mark.parametrize("shape", [(3, 5), (7, 4), (1, 9)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_its_equation(name, shape):
    ours, x = make(name, *shape), draw(2, 6, shape[0])
    found, last = run(ours, x)
    for n in range(2):
        state = tuple(torch.zeros(shape[1], dtype=torch.float64) for _ in range(LAST[name]))
        for t in range(6):
            state = equation(name, x[n, t], state, ours)
            torch.testing.assert_close(found[n, t], state[0], **CLOSE)
        for a, b in zip(last, state, strict=True):
            torch.testing.assert_close(a[n], b, **CLOSE)


def test_the_two_gated_units_are_different_cells():
    """With the same matrices and no second bias they differ only in where the reset gate stands."""
    cho, after, x = make("cho"), make("gru"), draw(1, 6, 4)
    after.input.load_state_dict(cho.input.state_dict())
    after.hidden.weight.data.copy_(cho.hidden.weight)
    after.hidden.bias.data.zero_()
    first, second = run(cho, x)[0], run(after, x)[0]
    torch.testing.assert_close(first[:, 0], second[:, 0], **CLOSE)  # nothing to reset yet
    assert (first[:, 1:] - second[:, 1:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 5), (1, 8), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_a_text_in_pieces_equals_the_text_at_once(name, chunks):
    layer, x, state = make(name), draw(2, 9, 4), TensorState()
    parts = [run(layer, part, state)[0] for part in x.split(chunks, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), run(layer, x)[0], **CLOSE)


@pytest.mark.parametrize("name", CELLS)
def test_padding_leaves_what_is_carried_as_it_is(name):
    """In the middle, at both ends, with a row of nothing else, and in single steps."""
    layer, x = make(name), draw(3, 6, 4)
    real = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0] * 6]).bool()
    noise = torch.where(real[..., None], x, 1e6)
    found, last = run(layer, noise, real_BT=real)
    state = TensorState()
    for t in range(6):
        run(layer, noise[:, t, None], state, real_BT=real[:, t, None])
    for n in (0, 1):
        alone, end = run(layer, x[n, real[n]][None])
        torch.testing.assert_close(found[n, real[n]], alone[0], **CLOSE)
        for a, b, name_of in zip(last, end, layer.cell.carried, strict=True):
            torch.testing.assert_close(a[n], b[0], **CLOSE)
            torch.testing.assert_close(state.get(name_of)[n], b[0], **CLOSE)
    assert all((tensor[2] == 0).all() for tensor in last)


@pytest.mark.parametrize("name", CELLS)
def test_with_every_document_a_cell_begins_anew(name):
    """Rows cut at different places; an id that comes back is another document."""
    layer, x = make(name), draw(2, 8, 4)
    ids = torch.tensor([[5, 5, 2, 2, 2, 5, 5, 5], [0, 1, 1, 1, 1, 1, 1, 7]])
    found, _ = run(layer, x, document_ids_BT=ids)
    for n, lengths in enumerate([(2, 3, 3), (1, 6, 1)]):
        alone = [run(layer, part)[0] for part in x[n, None].split(lengths, 1)]
        torch.testing.assert_close(found[n], torch.cat(alone, 1)[0], **CLOSE)


@pytest.mark.parametrize("name", CELLS)
def test_padding_between_documents_belongs_to_none(name):
    layer, x = make(name), draw(1, 8, 4)
    ids = torch.tensor([[9, 1, 1, 0, 1, 0, 2, 2]])
    real = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 1]]).bool()
    found, _ = run(layer, x, document_ids_BT=ids, real_BT=real)
    first, second = run(layer, x[:, [1, 2, 4]])[0], run(layer, x[:, 6:])[0]
    torch.testing.assert_close(found[real], torch.cat((first, second), 1)[0], **CLOSE)


def test_documents_and_a_cache_do_not_go_together():
    context = Context(caches=object(), document_ids_BT=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="document ids and caches"):
        make("gru")(draw(1, 3, 4), context)


class Wrapped(nn.Module):
    """A linear that something was put around, as an adapter does: torch's kernel must not run."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("documents", [False, True])
def test_torchs_kernel_equals_the_loop(monkeypatch, documents, bias):
    """The LSTM on a CPU in single precision: outputs, last states, and every gradient."""
    fused = scatter(Recurrence(6, 8, LSTM(), bias=bias))
    looped = copy.deepcopy(fused)
    looped.hidden = Wrapped(looped.hidden)
    calls, kernel = [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *given: calls.append(1) or kernel(*given))
    ids = torch.zeros(3, 70, dtype=torch.long)
    ids[0, 20:], ids[2, 41:] = 1, 1
    found = []
    for layer in (fused, looped):
        x = draw(3, 70, 6).float().requires_grad_()
        told = {"document_ids_BT": ids} if documents else {}
        outputs, last = run(layer, x, **told)
        (outputs * draw(3, 70, 8, seed=3)).sum().backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        found.append([outputs, *last, *grads])
        assert len(calls) == (3 if documents else 1)  # all of the first layer's, none of the second
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_torchs_kernel_is_left_aside_where_it_does_not_pay_or_fit(monkeypatch):
    def refuse(*given):
        raise AssertionError("called")

    monkeypatch.setattr(torch, "lstm", refuse)
    layer = scatter(Recurrence(6, 8, LSTM()))
    run(layer, torch.randn(2, 3, 6))  # short
    run(layer, torch.randn(2, 40, 6), real_BT=real_of([40, 7], 40))  # padded
    run(layer.double(), draw(2, 40, 6))  # another precision


def test_dropout_falls_on_what_leaves_and_not_on_what_is_carried():
    """The carried tensors are those of a layer without it, to the last bit."""
    layer = make("lstm")
    dropped = Recurrence(4, 5, LSTM(), dropout=0.5).double()
    dropped.load_state_dict(layer.state_dict())
    torch.manual_seed(0)
    outputs, last = run(dropped, draw(2, 9, 4))
    plain, expected = run(layer, draw(2, 9, 4))
    assert all((a == b).all() for a, b in zip(last, expected, strict=True))
    gone = outputs == 0
    assert 0.3 < gone.double().mean() < 0.7
    torch.testing.assert_close(outputs[~gone], 2 * plain[~gone], **CLOSE)


@pytest.mark.parametrize("name", CELLS)
def test_new_weights_are_orthogonal_by_gate_and_forget_nothing(name):
    layer = Recurrence(64, 48, CELLS[name])
    initialise(layer, seed=3, std=0.02, depth=1)
    for gate in layer.hidden.weight.double().split(48):
        torch.testing.assert_close(gate @ gate.T, torch.eye(48).double(), rtol=0, atol=1e-5)
    assert layer.input.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    forget = torch.zeros(CELLS[name].num_gates, 48)
    if name == "lstm":
        forget[1] = 1.0
    assert (layer.input.bias == forget.flatten()).all()
    assert layer.hidden.bias is None or (layer.hidden.bias == 0).all()


def test_a_wrapped_matrix_cannot_be_taken_apart():
    layer = make("cho")
    layer.hidden = Wrapped(layer.hidden)
    with pytest.raises(TypeError, match="takes its matrix apart"):
        run(layer, draw(1, 2, 4))
