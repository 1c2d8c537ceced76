"""Encoder-decoders: torch's own layers, ResiDual by its equations, and the laws of decoding.

All in double precision.

Axes: B batch, S source, T target, C width
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stemma.models import bert, switch, t5, transformer
from stemma.nn.context import Context
from stemma.nn.encoder_decoder import Tower
from stemma.nn.initial import initialise
from stemma.nn.norm import no_norm
from stemma.nn.position import Buckets
from stemma.nn.relative import RelativeBias
from stemma.nn.residual import ResiDual
from stemma.nn.stack import Block, positions_of

VOCAB = 50
SMALL = {"width": 24, "depth": 2, "num_heads": 4, "vocab_size": VOCAB, "hidden": 37}
CLOSE = {"rtol": 0, "atol": 1e-9}
NETWORKS = {
    "post": (transformer.TransformerConfig, transformer.build, {"norms": "post"}),
    "pre": (transformer.TransformerConfig, transformer.build, {"norms": "pre"}),
    "dual": (transformer.TransformerConfig, transformer.build, {"norms": "dual"}),
    "own source": (
        transformer.TransformerConfig,
        transformer.build,
        {"source_vocab_size": 50, "tied": False, "interleaved": False, "encoder_depth": 3},
    ),
    "t5": (t5.T5Config, t5.build, {"num_buckets": 8, "farthest": 9, "head_dim": 5}),
    "t5 gated": (t5.T5Config, t5.build, {"gated": True, "tied": False, "scaled_head": False}),
    "switch": (
        switch.SwitchConfig,
        switch.build,
        {"num_experts": 3, "capacity_factor": None, "sparse_step": 1, "encoder_sparse_step": 2},
    ),
}


def make(name):
    kind, build, numbers = NETWORKS[name]
    model = build(kind(**{**SMALL, **numbers}))
    initialise(model, seed=1, std=0.3, depth=2)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(params=NETWORKS, ids=lambda name: name.replace(" ", "-"))
def model(request):
    return make(request.param)


def tokens(rows, length, seed=0):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def uneven(lengths, length, *, left):
    real = torch.zeros(len(lengths), length, dtype=torch.bool)
    for row, own in zip(real, lengths, strict=True):
        row[length - own :] = left
        row[:own] |= not left
    return real


def as_torch_layer(block, *, decodes, norm_first):
    """torch's layer with the weights of a block of ours."""
    heads = block.attention.query.out_features // block.attention.head_dim
    kind = nn.TransformerDecoderLayer if decodes else nn.TransformerEncoderLayer
    theirs = kind(24, heads, 37, dropout=0.0, batch_first=True, norm_first=norm_first).double()
    names = {"self_attn": "attention", "multihead_attn": "cross_attention"}
    for name, own in names.items():
        if hasattr(theirs, name):
            layer, ours = getattr(theirs, name), getattr(block, own)
            for part in ("weight", "bias"):
                fused = [getattr(getattr(ours, p), part) for p in ("query", "key", "value")]
                getattr(layer, f"in_proj_{part}").data = torch.cat(fused)
                getattr(layer.out_proj, part).data = getattr(ours.output, part).clone()
    theirs.linear1.load_state_dict(block.mlp.up.state_dict())
    theirs.linear2.load_state_dict(block.mlp.down.state_dict())
    for number, own in enumerate(block.names, start=1):
        norm = getattr(block, f"{own}_norm")
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    return theirs.train()  # without its fast path, which knows no gradient


@pytest.mark.parametrize("norms", ["post", "pre"])
def test_halves_equal_torch_s_own_layers(norms):
    """Values, and gradients of what goes in and of every first matrix, with padding on both."""
    model = make(norms).requires_grad_(True)
    source_BS, target_BT = torch.randn(2, 3, 7, 24, dtype=torch.float64).unbind()
    source_BS.requires_grad_(True)
    target_BT.requires_grad_(True)
    seen_BS, real_BT = uneven((7, 4, 1), 7, left=False), uneven((3, 7, 5), 7, left=False)
    for tower in (model.encoder, model.decoder):
        tower.position = None
    context = Context(padding_BT=seen_BS)
    memory, _ = model.encoder(source_BS, positions_of(seen_BS, context), context)
    context = Context(padding_BT=real_BT, memory_BMC=memory, memory_padding_BM=seen_BS)
    found, _ = model.decoder(target_BT, positions_of(real_BT, context), context)
    ours = found[real_BT].square().sum()
    theirs_in = source_BS.detach().clone().requires_grad_(True)
    x, first = theirs_in, []
    for block in model.encoder.blocks:
        layer = as_torch_layer(block, decodes=False, norm_first=norms == "pre")
        x = layer(x, src_key_padding_mask=~seen_BS)
        first.append(layer.self_attn.in_proj_weight)
    theirs_memory = model.encoder.norm(x)
    x, later = target_BT, torch.ones(7, 7, dtype=torch.bool).triu(1)
    for block in model.decoder.blocks:
        layer = as_torch_layer(block, decodes=True, norm_first=norms == "pre")
        x = layer(x, theirs_memory, tgt_mask=later, memory_key_padding_mask=~seen_BS,
                  tgt_key_padding_mask=~real_BT)  # fmt: skip
        first.append(layer.multihead_attn.in_proj_weight)
    theirs = model.decoder.norm(x)
    torch.testing.assert_close(memory[seen_BS], theirs_memory[seen_BS], **CLOSE)
    torch.testing.assert_close(found[real_BT], theirs[real_BT], **CLOSE)
    expected = torch.autograd.grad(theirs[real_BT].square().sum(), [theirs_in, *first])
    blocks = [b.attention for b in model.encoder.blocks]
    blocks += [b.cross_attention for b in model.decoder.blocks]
    own = [getattr(b, p).weight for b in blocks for p in ("query", "key", "value")]
    got = torch.autograd.grad(ours, [source_BS, *own])
    fused = [torch.cat(got[1 + 3 * i : 4 + 3 * i]) for i in range(len(blocks))]
    for mine, wanted in zip([got[0], *fused], expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


class Change(nn.Module):
    """A sublayer that is one matrix."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x_BTC, context):
        return x_BTC @ self.weight, {}


def test_residual_streams_follow_the_recurrences():
    """arXiv:2304.14802, section 2.2: x = norm(x + f(x)), dual = dual + f(x), y = x + norm(dual)."""
    weights = 0.3 * torch.randn(3, 2, 6, 6, dtype=torch.float64)
    x_BTC = torch.randn(2, 5, 6, dtype=torch.float64)

    def through(norm):
        blocks = [
            Block(6, {"attention": Change(a), "mlp": Change(b)}, norm=norm, residual=ResiDual())
            for a, b in weights
        ]
        tower = Tower(6, blocks, norm=norm, embedding_norm=no_norm)
        return tower(x_BTC, torch.arange(5)[None], Context())[0]

    def normed(x):
        return (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True, unbiased=False).sqrt()

    x = dual = x_BTC
    for weight in weights.flatten(0, 1):
        change = x @ weight
        dual, x = dual + change, normed(x + change)
    plain = through(lambda width: nn.LayerNorm(width, eps=0, elementwise_affine=False))
    torch.testing.assert_close(plain, x + normed(dual), **CLOSE)
    x = x_BTC
    for weight in weights.flatten(0, 1):
        x = x + x @ weight
    torch.testing.assert_close(through(no_norm), 2 * x, **CLOSE)  # both streams are one then


@pytest.mark.parametrize("chunks", [(8,), (1,) * 8, (3, 1, 4), (7, 1), (1, 7)], ids=str)
def test_cached_equals_full(model, chunks):
    source_BS, target_BT = tokens(3, 7), tokens(3, 8, seed=1)
    context = replace(model.encode(source_BS), caches=model.new_cache(8))
    parts = [model.decode(part, context) for part in target_BT.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(source_BS, target_BT), **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_of_source_and_target_is_as_if_it_were_not_there(model, left):
    source_BS, target_BT = tokens(3, 7), tokens(3, 6, seed=1)
    seen_BS, real_BT = uneven((7, 1, 4), 7, left=left), uneven((2, 6, 5), 6, left=left)
    found = model(source_BS, target_BT, Context(memory_padding_BM=seen_BS, padding_BT=real_BT))
    for n in range(3):
        alone = model(source_BS[n, seen_BS[n]][None], target_BT[n, real_BT[n]][None])
        torch.testing.assert_close(found[n, real_BT[n]], alone[0], **CLOSE)


def test_padding_changes_nothing_whatever_it_is(model):
    source_BS, target_BT = tokens(2, 7), tokens(2, 6, seed=1)
    seen_BS, real_BT = uneven((5, 3), 7, left=False), uneven((6, 2), 6, left=True)
    context = Context(memory_padding_BM=seen_BS, padding_BT=real_BT)
    found = model(source_BS, target_BT, context)
    other_BS = torch.where(seen_BS, source_BS, (source_BS + 9) % VOCAB)
    other_BT = torch.where(real_BT, target_BT, (target_BT + 9) % VOCAB)
    again = model(other_BS, other_BT, context)
    torch.testing.assert_close(again[real_BT], found[real_BT], **CLOSE)


@pytest.mark.parametrize("kept", [[0, 2], [2, 0, 1], [1, 1, 1, 0]], ids=str)
def test_selected_rows_go_on_as_if_alone(model, kept):
    """A beam copies rows: the cache, and what the context says of the memory, are chosen alike."""
    source_BS, target_BT = tokens(3, 7), tokens(3, 8, seed=1)
    seen_BS = uneven((7, 2, 5), 7, left=False)
    memory = model.encode(source_BS, Context(memory_padding_BM=seen_BS))
    context = replace(memory, caches=model.new_cache(8))
    model.decode(target_BT[:, :5], context)
    context.caches.select(torch.tensor(kept))
    context = replace(context, memory_BMC=None, memory_padding_BM=seen_BS[kept])
    found = model.decode(target_BT[kept, 5:], context)
    full = model(source_BS, target_BT, Context(memory_padding_BM=seen_BS))
    torch.testing.assert_close(found, full[kept, 5:], **CLOSE)


def test_a_later_target_token_changes_nothing_earlier_and_every_source_token_all(model):
    source_BS, target_BT = tokens(1, 6), tokens(1, 6, seed=1)
    found = model(source_BS, target_BT)
    for at in range(6):
        changed = target_BT.clone()
        changed[0, at] = (changed[0, at] + 1) % VOCAB
        other = model(source_BS, changed)
        torch.testing.assert_close(other[:, :at], found[:, :at], **CLOSE)
        assert not torch.allclose(other[:, at], found[:, at], rtol=0, atol=1e-6)
        changed = source_BS.clone()
        changed[0, at] = (changed[0, at] + 1) % VOCAB
        other = model(changed, target_BT)
        assert ((other - found).abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_rows_of_nothing_but_padding_give_numbers(model, dtype):
    """Softmax over no key is 0/0, in all three kinds of attention: gradients must stay finite."""
    model = model.to(dtype).requires_grad_(True)
    seen_BS, real_BT = uneven((0, 5, 0), 5, left=True), uneven((4, 0, 0), 4, left=True)
    context = Context(memory_padding_BM=seen_BS, padding_BT=real_BT)
    found = model(tokens(3, 5), tokens(3, 4, seed=1), context)
    assert found.isfinite().all()
    found.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_memory_is_read_once_and_then_kept():
    model = make("post")
    layer, context = model.decoder.blocks[0].cross_attention, model.encode(tokens(2, 5))
    calls = []
    layer.key.register_forward_hook(lambda *_: calls.append(1))
    context = replace(context, caches=model.new_cache(3))
    for step in range(3):
        model.decode(tokens(2, 1, seed=step), context)
    assert len(calls) == 1


def test_what_cannot_be_computed_is_said():
    model = make("post")
    with pytest.raises(ValueError, match="encode the source first"):
        model.decode(tokens(1, 2), Context())
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="one row has one source"):
        model(tokens(1, 4), tokens(1, 4), Context(document_ids_BT=ids))
    with pytest.raises(LookupError, match="belongs to the stack"):
        Buckets(8, 16, both_directions=True).bias(ids, ids)


def test_a_half_drops_what_leaves_it_in_training_alone():
    model = make("t5")
    model.encoder.output_dropout.p = 0.5
    x, places = torch.randn(1, 50, 24, dtype=torch.float64), torch.arange(50)[None]
    assert (model.encoder(x, places, Context())[0] != 0).all()
    model.train()
    dropped = model.encoder(x, places, Context())[0] == 0
    assert 0.4 < dropped.double().mean() < 0.6


@pytest.mark.parametrize("count, farthest", [(32, 128), (8, 9), (7, 6), (4, 30), (9, 100)])
@pytest.mark.parametrize("both", [True, False], ids=["both ways", "back"])
def test_buckets_hold_near_distances_alone_and_far_ones_in_growing_bins(count, farthest, both):
    place = torch.arange(301)[None]
    index = Buckets(count, farthest, both).index(torch.tensor([[150]]), place)[0, 0].tolist()
    after, before = index[151:], index[150::-1]  # by distance
    half = count // 2 if both else count
    near = half // 2
    assert before[:near] == list(range(near))
    for walk in (before, after):
        assert walk == sorted(walk)
    assert before[farthest:] == [half - 1] * (151 - farthest)
    sizes = [before.count(number) for number in range(near, half - 1)]
    assert all(later >= size - 1 for size, later in zip(sizes, sizes[1:], strict=False))
    if both:
        assert after == [half + number for number in before[1:]]
    else:
        assert set(after) == {0}


def test_buckets_of_the_released_t5():
    """By hand: 16 to a side, 8 near; then 8 + int(8 log(d/8) / log(16))."""
    index = Buckets(32, 128, both_directions=True).index(
        torch.tensor([[0]]), torch.tensor([[0, -1, -7, -8, -11, -12, -127, 1, 7, 8, 40, 500]])
    )
    assert index.tolist() == [[[0, 1, 7, 8, 8, 9, 15, 17, 23, 24, 28, 31]]]


@pytest.mark.parametrize(
    "numbers, what",
    [
        ((3, 9, True), "3 buckets do not part near from far; at least 4"),
        ((1, 9, False), "1 buckets do not part near from far; at least 2"),
        ((32, 8, True), r"farthest distance \(8\) must be above the 8 distances"),
        ((9, 4, False), r"farthest distance \(4\) must be above the 4 distances"),
    ],
)
def test_buckets_that_tell_no_distances_are_refused(numbers, what):
    with pytest.raises(ValueError, match=what):
        Buckets(*numbers)


def test_one_table_serves_all_layers_and_learns_from_all():
    distance = Buckets(8, 9, both_directions=False)
    table = RelativeBias(distance, 3)
    nn.init.normal_(table.weight)
    bias = table.bias(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2]]))
    assert bias.shape == (1, 3, 3, 3)
    torch.testing.assert_close(bias[0, :, 2, 0], table.weight[2])
    torch.testing.assert_close(bias[0, :, 0, 2], table.weight[0])  # ahead: bucket 0, masked later
    model = make("t5").requires_grad_(True)
    model(tokens(2, 6), tokens(2, 6, seed=1)).square().sum().backward()
    for tower in (model.encoder, model.decoder):
        assert tower.relative.weight.grad.abs().sum() > 0
        assert sum("relative" in name for name, _ in tower.named_parameters()) == 1


def encoder(**numbers):
    model = bert.build(bert.BertConfig(**{**SMALL, "context": 12, **numbers}))
    initialise(model, seed=1, std=0.3, depth=2)
    return model.double().eval().requires_grad_(False)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_every_head_of_an_encoder_reads_a_padded_text_as_if_alone(left):
    model = encoder(num_labels=3)
    tokens_BT, segments_BT = tokens(3, 9), tokens(3, 9, seed=1) % 2
    real_BT = uneven((9, 1, 5), 9, left=left)
    context = Context(padding_BT=real_BT, segments_BT=segments_BT)
    x_BTC, _ = model.hidden(tokens_BT, context)
    for n, real in enumerate(real_BT):
        own = Context(segments_BT=segments_BT[n, real][None])
        alone, _ = model.hidden(tokens_BT[n, real][None], own)
        torch.testing.assert_close(x_BTC[n, real], alone[0], **CLOSE)
        for head in (model.pooled, model.next_sentence, model.classify):
            torch.testing.assert_close(head(x_BTC, real_BT)[n], head(alone)[0], **CLOSE)


def test_packed_texts_of_an_encoder_equal_texts_alone():
    model, lengths = encoder(), (3, 1, 5)
    texts = [tokens(2, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])
    context = Context(positions_BT=positions, document_ids_BT=ids[None].expand(2, -1))
    packed = model(torch.cat(texts, 1), context).split(lengths, dim=1)
    for alone, found in zip(texts, packed, strict=True):
        torch.testing.assert_close(found, model(alone), **CLOSE)


def test_an_encoder_sees_both_ways_and_no_further_than_its_table():
    model, tokens_BT = encoder(), tokens(1, 12)
    found = model(tokens_BT)
    for at in range(12):
        changed = tokens_BT.clone()
        changed[0, at] = (changed[0, at] + 1) % VOCAB
        assert ((model(changed) - found).abs().amax(-1) > 1e-9).all()
    with pytest.raises(ValueError, match="13 tokens do not fit the model's 12 positions"):
        model(tokens(1, 13))
