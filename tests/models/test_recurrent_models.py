"""Recurrent language models and encoder-decoders: equal to torch's layers, and the house's laws.

Axes: B batch, S source, T target, V vocabulary, M memory
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from stemma.models import bahdanau, gru, lstm, rnn, seq2seq
from stemma.nn.context import Context
from stemma.nn.initial import initialise

CLOSE = {"rtol": 0, "atol": 1e-9}
V, SOURCE_V = 17, 13
LANGUAGE = {
    "rnn": (rnn.RNNConfig, rnn.build, nn.RNN),
    "lstm": (lstm.LSTMConfig, lstm.build, nn.LSTM),
    "gru": (gru.GRUConfig, gru.build, nn.GRU),
}
SIZES = [
    {"width": 7, "depth": 1, "tied": False},
    {"width": 10, "depth": 3, "tied": True},
    {"width": 5, "depth": 2, "tied": False},
]
PAIRS = {
    "lstm reversed": ("seq2seq", {"width": 7, "depth": 2, "cell": "lstm"}),
    "gru as written": (
        "seq2seq",
        {"width": 6, "depth": 1, "cell": "gru", "reverse_source": False, "tied": True},
    ),
    "lstm deep": ("seq2seq", {"width": 5, "depth": 3, "cell": "lstm", "reverse_source": False}),
    "aligned": ("bahdanau", {"width": 6, "embedding_width": 5, "hidden": 7, "maxout": 4}),
    "aligned deep": (
        "bahdanau",
        {"width": 5, "embedding_width": 8, "hidden": 3, "maxout": 6, "depth": 2},
    ),
}
ALIGNED = [name for name in PAIRS if name.startswith("aligned")]


@torch.no_grad()
def scatter(model, seed=7):
    """Wide weights: small ones make many mistakes invisible."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        outside = name.endswith(("embedding.weight", "head.weight"))
        parameter.copy_((0.3 if name.endswith("bias") else 1.8 if outside else 0.7) * noise)
    return model.double().eval()


def language(family, **numbers):
    config, build, _ = LANGUAGE[family]
    return scatter(build(config(vocab_size=V, **{"width": 8, "depth": 2, **numbers})))


def pair(name, **numbers):
    family, own = PAIRS[name]
    given = {"vocab_size": V, "source_vocab_size": SOURCE_V, **own, **numbers}
    if family == "seq2seq":
        return scatter(seq2seq.build(seq2seq.Seq2SeqConfig(**given)))
    return scatter(bahdanau.build(bahdanau.BahdanauConfig(**given)))


def tokens(rows, length, seed=0, top=V):
    return torch.randint(0, top, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows, length, left, fill):
    """Rows of different lengths in one tensor, and where they are real."""
    found = torch.full((len(rows), length), fill)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for n, row in enumerate(rows):
        span = slice(length - len(row), length) if left else slice(0, len(row))
        found[n, span], real[n, span] = row, True
    return found, real


@pytest.fixture(params=LANGUAGE)
def model(request):
    return language(request.param)


@pytest.fixture(params=PAIRS, ids=lambda name: name.replace(" ", "-"))
def both(request):
    return pair(request.param)


def torch_layers(theirs, blocks):
    """Our weights in a stack of torch's layers."""
    for layer, block in enumerate(blocks):
        for part, short in (("input", "ih"), ("hidden", "hh")):
            linear = getattr(block.recurrence, part)
            getattr(theirs, f"weight_{short}_l{layer}").data.copy_(linear.weight)
            getattr(theirs, f"bias_{short}_l{layer}").data.copy_(linear.bias)
    return theirs


@pytest.mark.parametrize("numbers", SIZES, ids=str)
@pytest.mark.parametrize("family", LANGUAGE)
def test_a_language_model_is_torchs_layers_between_embedding_and_head(family, numbers):
    """Scores, and the gradient of every parameter."""
    ours = language(family, **numbers)
    width, depth = numbers["width"], numbers["depth"]
    theirs = LANGUAGE[family][2](width, width, depth, batch_first=True).double()
    torch_layers(theirs, ours.blocks)
    embedding = ours.embedding.weight.detach().clone().requires_grad_()
    head = embedding
    if not numbers["tied"]:
        head = ours.head.weight.detach().clone().requires_grad_()
    text, weights = tokens(3, 9), torch.randn(3, 9, V).double()
    expected = theirs(embedding[text])[0] @ head.T
    found = ours(text)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.std() > 1
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(ours.embedding.weight.grad, embedding.grad, **CLOSE)
    if not numbers["tied"]:
        torch.testing.assert_close(ours.head.weight.grad, head.grad, **CLOSE)
    for layer, block in enumerate(ours.blocks):
        for part, short in (("input", "ih"), ("hidden", "hh")):
            for kind in ("weight", "bias"):
                a = getattr(getattr(block.recurrence, part), kind).grad
                b = getattr(theirs, f"{kind}_{short}_l{layer}").grad
                torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names_of_language_models(model, tied):
    model = language(model.config.family, tied=tied)
    parts = [
        f"recurrence.{part}.{kind}" for part in ("input", "hidden") for kind in ("weight", "bias")
    ]
    golden = [f"blocks.{i}.{part}" for i in range(2) for part in parts]
    golden += ["embedding.weight"] + ([] if tied else ["head.weight"])
    assert sorted(model.state_dict()) == sorted(golden)


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 5), (8, 1), (2, 3, 4)], ids=str)
@torch.no_grad()
def test_cached_equals_full(model, chunks):
    text, cache = tokens(2, 9), model.new_cache(9)
    parts = [model(part, Context(caches=cache)) for part in text.split(chunks, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(text), **CLOSE)
    assert cache.length == 9


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_ragged_rows_equal_each_row_alone(model, left):
    """Prompts of three lengths, then steps in which a row may pause, then rows chosen."""
    lengths, rows = (2, 5, 6), tokens(3, 12)
    first, real = padded([row[:n] for row, n in zip(rows, lengths, strict=True)], 6, left, 3)
    cache = model.new_cache(12)
    logits = model(first, Context(caches=cache, padding_BT=real))
    alone = model(rows)
    for n, length in enumerate(lengths):
        torch.testing.assert_close(logits[n, real[n]], alone[n, :length], **CLOSE)
    for positions in ([2, 5, 6], [3, -1, 7], [-1, 6, -1]):
        slot = torch.tensor(positions)[:, None]
        step = rows.gather(1, slot.clamp(min=0))
        logits = model(step, Context(caches=cache, positions_BT=slot))
        for n, place in enumerate(positions):
            if place >= 0:
                torch.testing.assert_close(logits[n, 0], alone[n, place], **CLOSE)
    cache.select(torch.tensor([2, 0, 2]))
    slot = torch.tensor([[8], [4], [8]])
    logits = model(rows[[2, 0, 2]].gather(1, slot), Context(caches=cache, positions_BT=slot))
    expected = torch.stack((alone[2, 8], alone[0, 4], alone[2, 8]))
    torch.testing.assert_close(logits[:, 0], expected, **CLOSE)


@pytest.mark.parametrize("lengths", [(4, 5), (1, 7, 1), (3, 3, 3), (9,)], ids=str)
@torch.no_grad()
def test_packed_documents_equal_documents_alone(model, lengths):
    documents = [tokens(2, length, seed) for seed, length in enumerate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])
    context = Context(positions_BT=positions, document_ids_BT=ids[None].expand(2, -1))
    packed = model(torch.cat(documents, 1), context).split(lengths, 1)
    for alone, found in zip(documents, packed, strict=True):
        torch.testing.assert_close(found, model(alone), **CLOSE)


@pytest.mark.parametrize("fill", [0, V - 1])
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_padding_is_as_if_it_were_not_there(model, left, fill):
    rows = [tokens(1, length, seed=length)[0] for length in (1, 4, 8)]
    text, real = padded(rows, 8, left, fill)
    logits = model(text, Context(padding_BT=real))
    for n, row in enumerate(rows):
        torch.testing.assert_close(logits[n, real[n]], model(row[None])[0], **CLOSE)


@torch.no_grad()
def test_a_later_token_changes_nothing_earlier_and_all_that_follows(model):
    text = tokens(2, 9)
    logits = model(text)
    for at in range(9):
        changed = text.clone()
        changed[:, at] = (text[:, at] + 1) % V
        other = model(changed)
        torch.testing.assert_close(other[:, :at], logits[:, :at], **CLOSE)
        assert ((other - logits)[:, at:].abs().amax(-1) > 1e-9).all()


@pytest.mark.parametrize("name", ["lstm reversed", "gru as written", "lstm deep"])
def test_seq2seq_is_two_of_torchs_networks_one_after_the_other(name):
    ours = pair(name)
    c = ours.config
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[c.cell]
    encoder, decoder = (
        torch_layers(kind(c.width, c.width, c.depth, batch_first=True).double(), tower.blocks)
        for tower in (ours.encoder, ours.decoder)
    )
    source, target = tokens(3, 6, 1, SOURCE_V), tokens(3, 5, 2)
    read = source.flip(1) if c.reverse_source else source
    _, last = encoder(ours.source_embedding.weight[read])
    states, _ = decoder(ours.embedding.weight[target], last)
    head = ours.embedding.weight if c.tied else ours.head.weight
    expected = states @ head.T + ours.head.bias
    found, weights = ours(source, target), torch.randn(3, 5, V).double()
    torch.testing.assert_close(found, expected, **CLOSE)
    parameters = [ours.source_embedding.weight, ours.embedding.weight, head, ours.head.bias]
    mine = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def cho_row(layer, x):
    """One direction of the encoder, gate by gate, arXiv:1406.1078, equations 5 to 8."""
    width = layer.hidden.in_features
    h, found = torch.zeros(width, dtype=torch.float64), []
    u = layer.hidden.weight.chunk(3)
    for vector in x:
        part = (layer.input.weight @ vector + layer.input.bias).chunk(3)
        r, z = torch.sigmoid(part[0] + u[0] @ h), torch.sigmoid(part[1] + u[1] @ h)
        h = z * h + (1 - z) * torch.tanh(part[2] + u[2] @ (r * h))
        found.append(h)
    return torch.stack(found)


def bahdanau_row(model, source, target):
    """Scores and alignments of one pair by the paper's equations, in plain loops."""
    h = model.source_embedding.weight[source]
    for block in model.encoder.blocks:
        layer = block.recurrence
        back = cho_row(layer.backwards, h.flip(0)).flip(0)
        h = torch.cat((cho_row(layer.forwards, h), back), dim=1)
    cell, score = model.decoder.blocks[0].recurrence, model.decoder.blocks[0].recurrence.alignment
    s = torch.tanh(cell.begin.weight @ h[0, model.config.width :] + cell.begin.bias)
    u, logits, alphas = cell.hidden.weight.chunk(3), [], []
    for y in model.embedding.weight[target]:
        compared = torch.tanh(score.query.weight @ s + h @ score.key.weight.T)
        alpha = (compared @ score.score.weight[0]).softmax(-1)
        c = alpha @ h
        part = (cell.input.weight @ y + cell.input.bias + cell.context.weight @ c).chunk(3)
        r, z = torch.sigmoid(part[0] + u[0] @ s), torch.sigmoid(part[1] + u[1] @ s)
        s = z * s + (1 - z) * torch.tanh(part[2] + u[2] @ (r * s))
        pairs = model.readout.pair.weight @ torch.cat((s, c, y)) + model.readout.pair.bias
        t = torch.stack([max(pairs[2 * j], pairs[2 * j + 1]) for j in range(len(pairs) // 2)])
        logits.append(model.head.weight @ t + model.head.bias)
        alphas.append(alpha)
    return torch.stack(logits), torch.stack(alphas)


@pytest.mark.parametrize("name", ALIGNED)
@torch.no_grad()
def test_bahdanau_is_the_papers_equations(name):
    model = pair(name)
    source, target = tokens(2, 6, 1, SOURCE_V), tokens(2, 5, 2)
    logits, weights = model(source, target), model.alignments(source, target)
    for n in range(2):
        expected, alphas = bahdanau_row(model, source[n], target[n])
        torch.testing.assert_close(logits[n], expected, **CLOSE)
        torch.testing.assert_close(weights[n], alphas, **CLOSE)
    assert logits.std() > 1


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_a_padded_source_and_target_equal_the_pair_alone(both, left):
    """On either side, whatever fills the padding; a memory's padding may hold anything."""
    sources = [tokens(1, n, n, SOURCE_V)[0] for n in (1, 6, 4)]
    targets = [tokens(1, n, n + 9)[0] for n in (5, 2, 7)]
    source, real = padded(sources, 6, left, 3)
    target, target_real = padded(targets, 7, left, 2)
    context = Context(memory_padding_BM=real, padding_BT=target_real)
    logits = both(source, target, context)
    memory = both.encode(source, context)
    spoilt = torch.where(memory.memory_padding_BM[..., None], memory.memory_BMC, 1e3)
    again = both.decode(target, replace(memory, memory_BMC=spoilt))
    for n, row in enumerate(targets):
        alone = both(sources[n][None], row[None])[0]
        torch.testing.assert_close(logits[n, target_real[n]], alone, **CLOSE)
        torch.testing.assert_close(again[n, target_real[n]], alone, **CLOSE)


@pytest.mark.parametrize("chunks", [(1,) * 7, (3, 4), (6, 1)], ids=str)
@torch.no_grad()
def test_decoding_in_pieces_equals_the_target_at_once(both, chunks):
    source, target = tokens(3, 6, 1, SOURCE_V), tokens(3, 7, 2)
    real = torch.arange(6)[None] < torch.tensor([[6], [2], [4]])
    context = both.encode(source, Context(memory_padding_BM=real))
    context = replace(context, caches=both.new_cache(7))
    parts = [both.decode(part, context) for part in target.split(chunks, 1)]
    full = both(source, target, Context(memory_padding_BM=real))
    torch.testing.assert_close(torch.cat(parts, 1), full, **CLOSE)


@torch.no_grad()
def test_rows_of_a_beam_go_on_as_if_alone(both):
    """Chosen, doubled and at different lengths; the caller's memory may stay as it was."""
    source, target = tokens(3, 6, 1, SOURCE_V), tokens(3, 8, 2)
    real = torch.arange(6)[None] < torch.tensor([[6], [2], [4]])
    full = both(source, target, Context(memory_padding_BM=real))
    context = both.encode(source, Context(memory_padding_BM=real))
    cache = both.new_cache(8)
    both.decode(target[:, :4], replace(context, caches=cache))
    kept = torch.tensor([2, 0, 0, 1])
    cache.select(kept)
    slots = [[4, 4, -1, 4], [5, 5, 4, -1], [6, -1, 5, 5]]
    for slot in slots:
        places = torch.tensor(slot)[:, None]
        step = target[kept].gather(1, places.clamp(min=0))
        logits = both.decode(step, replace(context, caches=cache, positions_BT=places))
        for row, (n, place) in enumerate(zip(kept.tolist(), slot, strict=True)):
            if place >= 0:
                torch.testing.assert_close(logits[row, 0], full[n, place], **CLOSE)


def test_every_parameter_learns_even_beside_a_source_of_padding(both):
    """A source of which nothing is real: no NaN, and the other rows' gradients are whole."""
    source, target = tokens(2, 4, 1, SOURCE_V), tokens(2, 5, 2)
    real = torch.tensor([[True] * 4, [False] * 4])
    logits = both(source, target, Context(memory_padding_BM=real))
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for name, parameter in both.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_reversing_the_source_is_another_reading_of_the_same_weights():
    ours, other = pair("lstm reversed"), pair("lstm reversed", reverse_source=False)
    source, target = tokens(2, 6, 1, SOURCE_V), tokens(2, 5, 2)
    torch.testing.assert_close(ours(source, target), other(source.flip(1), target), **CLOSE)
    assert not torch.allclose(ours(source, target), other(source, target), atol=1e-3)


@pytest.mark.parametrize("name", ALIGNED)
@torch.no_grad()
def test_alignments_sum_to_one_over_real_source_tokens(name):
    source, target = tokens(2, 6, 1, SOURCE_V), tokens(2, 5, 2)
    real = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    weights = pair(name).alignments(source, target, Context(memory_padding_BM=real))
    assert weights.shape == (2, 5, 6)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(5).double(), **CLOSE)
    assert (weights[0, :, 3:] == 0).all() and (weights[1] == 0).all()


@pytest.mark.parametrize("name", ALIGNED)
@torch.no_grad()
def test_alignments_of_a_padded_target_are_those_of_the_target_alone(name):
    model, source, row = pair(name), tokens(1, 6, 1, SOURCE_V), tokens(1, 4, 2)[0]
    for left in (True, False):
        target, real = padded([row], 7, left, 3)
        weights = model.alignments(source, target, Context(padding_BT=real))
        expected = model.alignments(source, row[None])
        torch.testing.assert_close(weights[:, real[0]], expected, **CLOSE)


def dropouts(model):
    """The names of what drops three in ten."""
    kinds = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Dropout))
    return sorted(name for name, module in kinds if module.p == 0.3)


@pytest.mark.parametrize("name", PAIRS)
def test_dropout_of_an_encoder_decoder_falls_between_layers(name):
    """On the embeddings and on what leaves every layer; in no direction of its own."""
    model, expected = pair(name, dropout=0.3), []
    for tower, blocks in (("encoder", model.encoder.blocks), ("decoder", model.decoder.blocks)):
        expected += [f"{tower}.dropout"]
        expected += [f"{tower}.blocks.{i}.recurrence.dropout" for i in range(len(blocks))]
    assert dropouts(model) == sorted(expected)


@pytest.mark.parametrize("family", LANGUAGE)
def test_dropout_of_a_language_model_falls_between_layers(family):
    expected = ["blocks.0.recurrence.dropout", "blocks.1.recurrence.dropout", "dropout"]
    assert dropouts(language(family, dropout=0.3)) == expected


def test_a_decoder_without_a_memory_is_refused(both):
    with pytest.raises(ValueError, match="encode the source first"):
        both.decode(tokens(1, 2), Context())


@pytest.mark.parametrize("module", [rnn, lstm, gru, seq2seq, bahdanau])
def test_presets_are_sizes_that_build(module):
    kind = next(k for k in vars(module).values() if getattr(k, "family", None))
    for name, numbers in module.PRESETS.items():
        with torch.device("meta"):
            model = module.build(kind(**numbers))
        assert sum(p.numel() for p in model.parameters()) > 1e6, name


def loss_after(name, steps, **numbers):
    """What is left of the loss after some training on one task: to reverse the source."""
    model = pair(name, width=24, depth=1, **numbers).float()
    initialise(model, seed=1, std=model.config.initial_std, depth=1)
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    generator, loss = torch.Generator().manual_seed(0), torch.tensor(0.0)
    for _ in range(steps):
        source = torch.randint(1, SOURCE_V, (16, 8), generator=generator)
        target = source.flip(1)
        given = nn.functional.pad(target[:, :-1], (1, 0))
        loss = nn.functional.cross_entropy(model(source, given).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_alignment_learns_soon_what_one_state_learns_late():
    """From fresh weights; nothing learnt is ln 12 = 2.48, one state learns slowly."""
    aligned = loss_after("aligned", 100, embedding_width=16, hidden=24, maxout=16)
    plain = loss_after("gru as written", 60, tied=False)
    assert aligned < 0.6 < 1.5 < plain < 2.3
