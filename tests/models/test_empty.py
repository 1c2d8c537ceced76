"""Nothing to read is no error: a batch of no rows, or of no tokens, has logits of that shape.

A pass over nothing must leave a cache as it is, and be allowed anywhere between two others.

Axes: B batch, S source, T tokens, V vocabulary
"""

from dataclasses import replace

import pytest
import torch

import stemma
from stemma import api
from stemma.nn.context import Context

V = 11
DECODERS = {
    "rnn": {},
    "lstm": {},
    "gru": {},
    "gpt1": {"num_heads": 2},
    "gpt2": {"num_heads": 2},
    "gpt3": {"num_heads": 2, "windows": (None, 3)},
    "decoder": {"num_heads": 2},
    "neox": {"num_heads": 2, "rotary_fraction": 0.5},
    "bloom": {"num_heads": 2},
    "llama": {"num_heads": 4, "num_kv_heads": 2},
    "mistral": {"num_heads": 4, "num_kv_heads": 2, "hidden": 12, "window": 3},
    "mixtral": {"num_heads": 4, "hidden": 12, "window": 3, "num_experts": 3},
    "qwen": {"num_heads": 4, "hidden": 12},
    "qwen2": {"num_heads": 4, "hidden": 12, "window": 3, "windowed": (1,)},
    "qwen3": {"num_heads": 4, "hidden": 12, "window": 3, "windowed": (0,)},
    "baichuan": {"num_heads": 4, "hidden": 12, "position": {"kind": "alibi"}},
    "chatglm2": {"num_heads": 4, "hidden": 12},
    "gemma3": {"num_heads": 4, "hidden": 12, "window": 3},
    "linear": {"num_heads": 2},
    "performer": {"num_heads": 2, "features": 8},
    "delta": {"num_heads": 2},
    "fast_weight": {"num_heads": 2},
}
PAIRS = {
    "transformer": {"num_heads": 2, "depth": 1},
    "t5": {"num_heads": 2, "head_dim": 4, "hidden": 12, "depth": 1},
    "switch": {"num_heads": 2, "head_dim": 4, "hidden": 12, "depth": 2, "num_experts": 3},
    "seq2seq": {"source_vocab_size": V, "depth": 2},
    "bahdanau": {"source_vocab_size": V, "embedding_width": 6, "hidden": 5, "maxout": 7},
}


def build(family, numbers):
    sizes = {"width": 8 * 2, "vocab_size": V, "initial_std": 0.4}
    depth = {} if "depth" in numbers or family == "bahdanau" else {"depth": 2}
    return stemma.build(family, **{**sizes, **depth, **numbers}).eval().requires_grad_(False)


@pytest.fixture(params=DECODERS)
def decoder(request):
    return build(request.param, DECODERS[request.param])


@pytest.fixture(params=PAIRS)
def pair(request):
    return build(request.param, PAIRS[request.param])


def tokens(rows, length):
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))


def test_every_family_that_reads_one_text_or_two_is_here():
    with_one = set(api.families()) - PAIRS.keys() - {"bert"}
    assert with_one == DECODERS.keys()


@pytest.mark.parametrize(("rows", "length"), [(3, 0), (0, 5), (0, 20), (0, 0)])
def test_nothing_to_read_has_logits_of_its_shape(decoder, rows, length):
    tokens_BT = tokens(rows, length)
    real_BT = torch.ones(rows, length, dtype=torch.bool)
    ids_BT = torch.zeros(rows, length, dtype=torch.long)
    contexts = [
        Context(),
        Context(padding_BT=real_BT),
        Context(document_ids_BT=ids_BT),
        Context(document_ids_BT=ids_BT, padding_BT=real_BT),
        Context(caches=decoder.new_cache(24)),
    ]
    for context in contexts:
        assert decoder(tokens_BT, context).shape == (rows, length, V)


def test_a_pass_over_nothing_leaves_the_cache_as_it_is(decoder):
    tokens_BT, cache = tokens(2, 9), decoder.new_cache(9)
    chunks = tokens_BT.split((0, 4, 0, 1, 0, 4, 0), dim=1)
    found = torch.cat([decoder(part, Context(caches=cache)) for part in chunks], dim=1)
    torch.testing.assert_close(found, decoder(tokens_BT), rtol=1e-4, atol=1e-4)


def test_nothing_to_read_has_gradients_of_zero(decoder):
    decoder.requires_grad_(True)
    decoder(tokens(3, 0)).sum().backward()
    grads = [p.grad for p in decoder.parameters() if p.grad is not None]
    assert grads and not any(grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("rows", "source", "target"), [(3, 4, 0), (3, 0, 5), (3, 0, 0), (0, 4, 5), (0, 0, 0)]
)
def test_a_source_or_a_target_of_nothing_is_no_error(pair, rows, source, target):
    real_BS = torch.ones(rows, source, dtype=torch.bool)
    for context in (Context(), Context(memory_padding_BM=real_BS)):
        logits_BTV = pair(tokens(rows, source), tokens(rows, target), context)
        assert logits_BTV.shape == (rows, target, V)
        assert logits_BTV.isfinite().all()


def test_a_source_of_nothing_is_a_source_of_padding(pair):
    target_BT = tokens(2, 5)
    padding = Context(memory_padding_BM=torch.zeros(2, 4, dtype=torch.bool))
    found = pair(tokens(2, 0), target_BT)
    torch.testing.assert_close(found, pair(tokens(2, 4), target_BT, padding), rtol=0, atol=1e-6)


def test_an_empty_step_of_decoding_changes_nothing(pair):
    source_BS, target_BT = tokens(2, 6), tokens(2, 5)
    context = replace(pair.encode(source_BS), caches=pair.new_cache(5))
    chunks = target_BT.split((0, 2, 0, 1, 0, 2), dim=1)
    found = torch.cat([pair.decode(part, context) for part in chunks], dim=1)
    whole = torch.cat([pair(source_BS, target_BT)[:, :3], found[:, 3:]], dim=1)
    assert found.shape == whole.shape == (2, 5, V)
    torch.testing.assert_close(found[:, :3], whole[:, :3], rtol=1e-4, atol=1e-4)
