"""The Transformer decoder against torch's own layers and against the recurrences of its papers.

All in double precision, all weights drawn wide.

Axes: B batch, T time, C model width, V vocabulary
"""

import pytest
import torch
from torch import nn

from stemma.models import decoder
from stemma.nn.context import Context
from tests.models.parity import scatter

CASES = {
    "post": {"width": 24, "depth": 2, "num_heads": 3},
    "post, deep and narrow": {"width": 10, "depth": 4, "num_heads": 1, "hidden": 14},
    "post, many heads": {"width": 30, "depth": 1, "num_heads": 15, "activation": "gelu"},
    "pre": {"width": 24, "depth": 2, "num_heads": 3, "norms": "pre"},
    "pre, deep and narrow": {"width": 10, "depth": 4, "num_heads": 1, "norms": "pre"},
    "pre, wide MLP": {"width": 18, "depth": 3, "num_heads": 6, "hidden": 90, "norms": "pre"},
}
VOCAB = 37


def build(**numbers):
    model = decoder.build(decoder.DecoderConfig(vocab_size=VOCAB, norm_eps=1e-4, **numbers))
    return scatter(model.double())


def layer_of(block, config):
    """torch's encoder layer with our weights: under a causal mask it is the decoder's block."""
    c = config
    layer = nn.TransformerEncoderLayer(
        c.width,
        c.num_heads,
        c.hidden,
        dropout=0.0,
        activation=c.activation,
        layer_norm_eps=c.norm_eps,
        batch_first=True,
        norm_first=c.norms == "pre",
        dtype=torch.float64,
    )
    attention, mlp = block.attention, block.mlp
    parts = (attention.query, attention.key, attention.value)
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([part.weight for part in parts]),
            "self_attn.in_proj_bias": torch.cat([part.bias for part in parts]),
            "self_attn.out_proj.weight": attention.output.weight,
            "self_attn.out_proj.bias": attention.output.bias,
            "linear1.weight": mlp.up.weight,
            "linear1.bias": mlp.up.bias,
            "linear2.weight": mlp.down.weight,
            "linear2.bias": mlp.down.bias,
            "norm1.weight": block.attention_norm.weight,
            "norm1.bias": block.attention_norm.bias,
            "norm2.weight": block.mlp_norm.weight,
            "norm2.bias": block.mlp_norm.bias,
        }
    )
    return layer.train()  # in evaluation torch takes another path, without gradients


def sines(length, width):
    """arXiv:1706.03762, section 3.5, number by number."""
    table_TC = torch.empty(length, width, dtype=torch.float64)
    for place in range(length):
        for i in range(width // 2):
            angle = torch.tensor(place / 10_000 ** (2 * i / width), dtype=torch.float64)
            table_TC[place, 2 * i], table_TC[place, 2 * i + 1] = angle.sin(), angle.cos()
    return table_TC


def by_torch(model, tokens_BT):
    c, length = model.config, tokens_BT.shape[1]
    x_BTC = model.embedding(tokens_BT) * c.width**0.5 + sines(length, c.width)
    mask_TT = torch.ones(length, length).triu(1).bool()
    for block in model.blocks:
        x_BTC = layer_of(block, c)(x_BTC, src_mask=mask_TT)
    return model.norm(x_BTC) @ model.embedding.weight.T


@pytest.fixture(params=CASES)
def model(request):
    return build(**CASES[request.param])


def test_logits_and_gradients_equal_torch(model):
    tokens_BT = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))
    ours, theirs = model(tokens_BT), by_torch(model, tokens_BT)
    assert theirs.std() >= 1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2)).double()
    wanted = torch.autograd.grad(
        (by_torch(model, tokens_BT) * weight).sum(), model.embedding.weight
    )
    found = torch.autograd.grad((model(tokens_BT) * weight).sum(), model.embedding.weight)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_residual_of_two_streams_equals_its_recurrence(depth):
    """arXiv:2304.14802, equations 4 to 6, sublayer by sublayer."""
    model = build(width=18, depth=depth, num_heads=3, norms="dual")
    tokens_BT = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    context = Context()
    kept = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: kept.append(inputs[1]))
    logits = model(tokens_BT)
    context = kept[0]
    x_BTC = model.embedding(tokens_BT) * 18**0.5 + sines(7, 18)
    dual_BTC = x_BTC
    for block in model.blocks:
        pairs = ((block.attention_norm, block.attention), (block.mlp_norm, block.mlp))
        for norm, layer in pairs:
            update_BTC = layer(x_BTC, context)[0]
            dual_BTC, x_BTC = dual_BTC + update_BTC, norm(x_BTC + update_BTC)
    expected = (x_BTC + model.norm(dual_BTC)) @ model.embedding.weight.T
    assert expected.std() >= 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_place_of_norms_matters():
    numbers = CASES["post"]
    tokens_BT = torch.arange(9)[None]
    logits = [build(**{**numbers, "norms": norms})(tokens_BT) for norms in ("post", "pre", "dual")]
    assert all((logits[0] - other).abs().max() > 0.1 for other in logits[1:])
    assert (logits[1] - logits[2]).abs().max() > 0.1
