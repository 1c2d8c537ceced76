"""Blocks against their equations, written a second time in the plainest way."""

import math

import pytest
import torch
from torch import nn

from stemma.nn.attention import ALL_BIAS, Attention, attend
from stemma.nn.context import Context, Visible
from stemma.nn.mask import Causal
from stemma.nn.mlp import GLU, MLP, gelu_tanh
from stemma.nn.norm import layer_norm, rms_norm
from stemma.nn.position import NoPosition, Rope
from stemma.nn.residual import PreNorm
from stemma.nn.stack import Block

CLOSE = {"rtol": 0, "atol": 1e-10}


def plain_context():
    """What the stack would hand to a layer without positions of its own."""
    seen = {(Causal(), NoPosition()): Visible(causal=True)}
    return Context(visible=seen, tables={(Causal(), NoPosition()): (None, None)})


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rope_scores_depend_on_the_difference_of_positions_only():
    rope, query, key = Rope(8, base=100.0), drawn(1, 1, 1, 8), drawn(1, 1, 1, 8, seed=1)

    def score(at, of):
        turned = [
            rope.rotate(x, rope.table(torch.tensor([[p]]))) for x, p in ((query, at), (key, of))
        ]
        return (turned[0] * turned[1]).sum().item()

    for difference in range(-3, 4):
        scores = [score(at, at - difference) for at in (5, 17, 40)]
        assert max(scores) - min(scores) < 1e-4  # the table is single precision
    assert abs(score(5, 5) - score(5, 4)) > 1e-3


def test_rope_equals_the_complex_formula():
    """arXiv:2104.09864, equation 13: pair i turns by position * base^(-2i/d)."""
    rope, x = Rope(6, base=500.0), drawn(2, 5, 3, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4], [9, -1, 7, 4097, 3]])
    pairs = torch.complex(x[..., :3], x[..., 3:])
    for b in range(2):
        for t in range(5):
            for i in range(3):
                angle = positions[b, t].item() * 500.0 ** (-2 * i / 6)
                pairs[b, t, :, i] *= complex(math.cos(angle), math.sin(angle))
    expected = torch.cat((pairs.real, pairs.imag), dim=-1)
    found = rope.rotate(x, rope.table(positions))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_rope_turns_only_its_part_of_a_head():
    rope, x = Rope(4), drawn(1, 3, 2, 10)
    found = rope.rotate(x, rope.table(torch.arange(3)[None]))
    torch.testing.assert_close(found[..., 4:], x[..., 4:], rtol=0, atol=0)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-6)
    assert not torch.allclose(found[:, 1:, :, :4], x[:, 1:, :, :4])


def test_rope_is_exact_for_far_positions_in_half_precision():
    """The angle must be computed in single precision: bfloat16 has no 4,097."""
    rope, x = Rope(8), drawn(1, 1, 1, 8)
    table = rope.table(torch.tensor([[4097]]))
    found = rope.rotate(x.bfloat16(), table)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), rope.rotate(x, table), rtol=0, atol=0.02)


def test_rms_norm_equals_the_equation():
    """arXiv:1910.07467, equation 4, with epsilon inside the root."""
    norm, x = rms_norm(0.1)(7).double(), drawn(2, 3, 7)
    norm.weight.data = drawn(7, seed=2)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, **CLOSE)


def test_layer_norm_equals_the_equation():
    norm, x = layer_norm(0.1)(7).double(), drawn(2, 3, 7)
    norm.weight.data, norm.bias.data = drawn(7, seed=2), drawn(7, seed=3)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), expected * norm.weight + norm.bias, **CLOSE)


def test_glu_and_mlp_equal_their_equations():
    x, glu = drawn(2, 3, 6), GLU(6, 10).double()
    gate, up = x @ glu.gate.weight.T, x @ glu.up.weight.T
    expected = (gate * torch.sigmoid(gate) * up) @ glu.down.weight.T
    torch.testing.assert_close(glu(x, Context())[0], expected, **CLOSE)
    mlp = MLP(6, 10, activation=gelu_tanh, bias=True).double()
    h = x @ mlp.up.weight.T + mlp.up.bias
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    expected = h @ mlp.down.weight.T + mlp.down.bias
    torch.testing.assert_close(mlp(x, Context())[0], expected, **CLOSE)


def test_attention_equals_the_equation_head_by_head():
    """arXiv:1706.03762, equation 1, in loops over batch, head and query."""
    layer, x = Attention(12, 3, num_kv_heads=3, head_dim=4, bias=ALL_BIAS).double(), drawn(2, 5, 12)
    context = plain_context()
    expected = torch.zeros(2, 5, 12, dtype=torch.float64)
    for b in range(2):
        query, key, value = layer.query(x[b]), layer.key(x[b]), layer.value(x[b])
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            for t in range(5):
                scores = key[: t + 1, part] @ query[t, part] / 2  # sqrt(4)
                expected[b, t, part] = scores.softmax(0) @ value[: t + 1, part]
    torch.testing.assert_close(layer(x, context)[0], layer.output(expected), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_grouped_heads_equal_repeated_keys(groups):
    """arXiv:2305.13245, figure 2: neighbouring query heads share a key-value head."""
    query, key, value = drawn(2, 6, 5, 4), drawn(2, groups, 5, 4), drawn(2, groups, 5, 4, seed=1)
    visible = Visible(causal=True)
    repeated = (x.repeat_interleave(6 // groups, dim=1) for x in (key, value))
    expected = attend(query, *repeated, visible)
    torch.testing.assert_close(attend(query, key, value, visible), expected, **CLOSE)


def test_a_query_that_sees_nothing_gives_zeros():
    mask = torch.tensor([[True, False], [False, False]])[None, None]
    query, value = drawn(1, 2, 2, 4), drawn(1, 2, 2, 4, seed=1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        mixed = attend(query.to(dtype), query.to(dtype), value.to(dtype), Visible(mask=mask))
        torch.testing.assert_close(mixed[:, :, 0], value[:, :, 0].to(dtype))
        assert (mixed[:, :, 1] == 0).all()


class Tells(nn.Module):
    """A sublayer that doubles the stream and reports a loss."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x_BTC, context):
        return 2 * x_BTC, {"told": torch.tensor(self.loss)}


def test_pre_norm_adds_each_layer_to_its_own_norm_and_hands_on_losses():
    layers = {"first": Tells(1.0), "second": nn.Sequential()}
    block = Block(4, {"first": layers["first"]}, norm=layer_norm(1e-5), residual=PreNorm())
    x = drawn(1, 2, 4).float()
    stream, losses = block(x, Context())
    torch.testing.assert_close(stream, x + 2 * block.first_norm(x))
    assert losses == {"told": torch.tensor(1.0)}


def test_dropout_acts_in_training_only():
    layer, x = Attention(8, 2, num_kv_heads=2, head_dim=4, dropout=0.5).double(), drawn(1, 6, 8)
    context = plain_context()
    assert not torch.equal(layer(x, context)[0], layer(x, context)[0])
    layer.eval()
    torch.testing.assert_close(layer(x, context)[0], layer(x, context)[0], rtol=0, atol=0)
