"""Bits per byte: every token once, each on its own window, whatever the lengths and strides."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stemma.core.errors import DataError, ModelError, UsageError
from stemma.eval.bits_per_byte import (
    CHUNK_CHARACTERS,
    bits_per_byte,
    chunk_bits,
    split_chunks,
    start_id,
    token_bits,
    windows,
)


class ByteTokenizer:
    """Bytes folded into 16 symbols, and 16 itself to start; two bytes of UTF-8 are two tokens."""

    bos_id = 16

    def encode(self, text):
        return [byte % 16 for byte in text.encode()]


class PairTokenizer:
    """Two bytes to a token, so tokens straddle cuts; an odd byte at the end stands alone."""

    bos_id = 16

    def encode(self, text):
        data = text.encode()
        return [sum(data[i : i + 2]) % 16 for i in range(0, len(data), 2)]


class Causal(nn.Module):
    """A prediction from a decaying sum of the past and the absolute position, in fp64."""

    def __init__(self, vocab_size=17, width=8):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, dtype=torch.float64)
        self.head = nn.Linear(width, vocab_size, dtype=torch.float64)
        self.dropout = nn.Dropout(0.5)
        self.shapes = []

    def forward(self, tokens_BT):
        self.shapes.append(tuple(tokens_BT.shape))
        steps = torch.arange(tokens_BT.shape[1])
        decay = (0.7 ** (steps[:, None] - steps).clamp(min=0).double()).tril()
        past_BTC = decay @ self.embedding(tokens_BT) + 0.1 * steps[:, None]
        return self.head(self.dropout(torch.tanh(past_BTC))) * 3


class Uniform(nn.Module):
    """Knows nothing: all logits are zero. It has no parameters."""

    def forward(self, tokens_BT):
        return torch.zeros(*tokens_BT.shape, 32, dtype=torch.float64)


TEXT = "It was the best of times, it was the worst of times;\n" * 2


def brute_force(model, tokenizer, text, context, stride):
    """One forward for each token, on the window that the definition gives it."""
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    last, total = len(ids) - 1, 0.0
    for target in range(1, len(ids)):
        moves = max(0, -(-(target - context) // stride))
        end = min(context + moves * stride, last)  # ids before `end` are the window's inputs
        window = torch.tensor([ids[max(0, end - context) : target]])
        logits = model(window)[0, -1]
        total -= torch.log_softmax(logits, -1)[ids[target]].item() / math.log(2)
    return total


@pytest.mark.parametrize(
    ("context", "stride"), [(8, 1), (8, 3), (8, 8), (16, 5), (1, 1), (106, 50), (107, 50), (500, 9)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
@torch.no_grad()
def test_equals_one_forward_per_token(context, stride, batch_size):
    model = Causal().eval()
    texts = [TEXT, "x", "", TEXT[:31], TEXT[3:43]]
    score = bits_per_byte(
        model, ByteTokenizer(), texts, context=context, stride=stride, batch_size=batch_size
    )
    expected = [brute_force(model, ByteTokenizer(), text, context, stride) for text in texts]
    assert score.bits == pytest.approx(sum(expected), abs=1e-9)
    assert [b for b, _ in score.per_document] == pytest.approx(expected, abs=1e-9)
    assert [n for _, n in score.per_document] == [len(t) for t in texts]
    assert max(length for _, length in model.shapes) <= context


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_windows_score_every_token_once_with_enough_context(data):
    num_targets = data.draw(st.integers(0, 60))
    context = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, context))
    scored = []
    for window in windows(0, num_targets, context, stride):
        assert 0 < window.length <= context and window.start >= 0
        end = window.start + window.length
        new = list(range(end - window.scored + 1, end + 1))  # the ids it predicts
        for target in new:
            assert target - window.start >= min(target, context - stride + 1)
        scored += new
    assert scored == list(range(1, num_targets + 1))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    context=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    data=st.data(),
)
def test_batches_are_full_windows_and_count_every_token(lengths, context, batch_size, data):
    stride = data.draw(st.integers(1, context))
    ids = [np.arange(length + 1) % 17 for length in lengths]
    calls = []
    bits = token_bits(
        Uniform(),
        ids,
        context=context,
        stride=stride,
        batch_size=batch_size,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert [len(b) for b in bits] == lengths
    assert all(abs(b - 5.0) < 1e-14 for document in bits for b in document)
    assert all(total == sum(lengths) for _, total in calls)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert not calls or calls[-1][0] == sum(lengths)


def test_uniform_model_costs_the_logarithm_of_the_vocabulary():
    """Five bits a token; 'é' is two bytes, so bytes and characters cannot be confused."""
    text = "é" * 10 + "ab"
    score = bits_per_byte(Uniform(), PairTokenizer(), [text], context=4, stride=2)
    assert (score.tokens, score.bytes) == (11, 22)
    assert score.bits_per_byte == pytest.approx(math.log2(32) * 11 / 22, rel=1e-15)


def test_small_strides_never_lose_context():
    """A model that repeats what it saw 6 ids ago is certain exactly where it can see that far."""

    class Echo(nn.Module):
        def forward(self, tokens_BT):
            letters_BTV = nn.functional.one_hot(tokens_BT, 17).double()
            letters_BTV[..., 16] = 0  # the start symbol is never predicted
            old_BTV = torch.zeros_like(letters_BTV)
            old_BTV[:, 5:] = 50 * letters_BTV[:, :-5]
            return old_BTV

    text = "abcdef" * 8
    wide = bits_per_byte(Echo(), ByteTokenizer(), [text], context=8, stride=3)
    narrow = bits_per_byte(Echo(), ByteTokenizer(), [text], context=8, stride=4)
    blind = 6 * math.log2(17)  # the first six letters cannot be known
    assert wide.bits == pytest.approx(blind, abs=1e-9)
    assert narrow.bits > wide.bits + 1


def test_half_precision_logits_are_summed_in_full():
    """The logarithm of 1,000 is 6.9078; in bfloat16 it is 6.90625."""

    class Half(nn.Module):
        def forward(self, tokens_BT):
            return torch.zeros(*tokens_BT.shape, 1000, dtype=torch.bfloat16)

    score = bits_per_byte(Half(), ByteTokenizer(), ["abcdefgh"], context=4, stride=4)
    assert score.bits_per_byte == pytest.approx(math.log2(1000), rel=1e-6)


def test_modes_come_back_as_they_were_and_dropout_is_off():
    """A module frozen in evaluation mode inside a training model stays frozen, errors or not."""
    model = Causal().train()
    model.dropout.eval()
    first = bits_per_byte(model, ByteTokenizer(), [TEXT], context=9, stride=4)
    assert (model.training, model.head.training, model.dropout.training) == (True, True, False)
    model.dropout.train()
    second = bits_per_byte(model, ByteTokenizer(), [TEXT], context=9, stride=4)
    assert first == second
    with pytest.raises(IndexError):
        token_bits(model, [np.array([16, 99, 1])], context=4, stride=4)
    assert model.training and model.dropout.training
    model(torch.tensor([[1, 2]])).sum().backward()  # inference mode has ended
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), PairTokenizer()])
def test_chunks_and_documents_both_add_up(tokenizer):
    long = "".join(f"line {i} of a longer play, é\n" for i in range(400))
    texts = [long, "short", "", "no line end " * 400]
    score = bits_per_byte(Causal(), tokenizer, texts, context=64, stride=64)
    for pairs in (score.per_document, score.per_chunk):
        assert math.fsum(b for b, _ in pairs) == pytest.approx(score.bits, rel=1e-12)
        assert sum(n for _, n in pairs) == score.bytes == sum(len(t.encode()) for t in texts)
    assert len(score.per_chunk) > 8 and len(score.per_document) == 4


def test_a_chunk_holds_the_bits_of_its_own_tokens():
    """Tokens that are bytes: the bits of a chunk are those of exactly its bytes."""
    text = "".join(f"verse {i}\n" for i in range(900))
    bits = np.random.default_rng(0).random(len(text))
    position = 0
    for chunk, (b, size) in zip(
        split_chunks(text), chunk_bits(ByteTokenizer(), text, bits), strict=True
    ):
        assert size == len(chunk)
        assert b == pytest.approx(bits[position : position + size].sum(), rel=1e-12)
        position += size


def test_chunks_keep_their_place_when_their_tokens_do_not_add_up():
    """A tokenizer that puts a mark before every text counts one token too many for each chunk."""

    class Marking(ByteTokenizer):
        def encode(self, text):
            return [15, *super().encode(text)]

    text = "".join(f"verse {i}\n" for i in range(5000))
    bits = np.ones(len(Marking().encode(text)))
    pairs = chunk_bits(Marking(), text, bits)
    assert len(pairs) > 20
    assert all(abs(b - size) <= 2 for b, size in pairs)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(["\n", "word ", "é" * 700, "\n\n", "x" * 2047]), max_size=9))
def test_chunks_joined_are_the_text(pieces):
    text = "".join(pieces)
    chunks = split_chunks(text)
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= CHUNK_CHARACTERS for chunk in chunks) or not text


def test_a_cut_falls_before_a_line_end_where_there_is_one():
    chunks = split_chunks("\n".join(["a line of verse"] * 1000))
    assert len(chunks) > 5
    assert all(chunk.startswith("\n") for chunk in chunks[1:])
    assert all(len(chunk) > CHUNK_CHARACTERS - 20 for chunk in chunks[:-1])


def test_a_tokenizer_without_a_start_symbol_uses_its_separator():
    class Separated(ByteTokenizer):
        bos_id, eos_id = None, 7

    class Neither(ByteTokenizer):
        bos_id = None

    assert start_id(ByteTokenizer()) == 16
    assert start_id(Separated()) == 7
    with pytest.raises(ModelError, match="start-of-text"):
        start_id(Neither())


def test_bad_input_is_named():
    model, tokenizer = Uniform(), ByteTokenizer()
    for nothing in ([], [""], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            bits_per_byte(model, tokenizer, nothing, context=4, stride=2)
    with pytest.raises(UsageError, match="list of documents"):
        bits_per_byte(model, tokenizer, "one text", context=4, stride=2)
    for context, stride in ((4, 5), (4, 0), (0, 0)):
        with pytest.raises(UsageError, match=rf"context \({context}\)"):
            bits_per_byte(model, tokenizer, ["text"], context=context, stride=stride)
    broken = Causal()
    nn.init.constant_(broken.head.bias, math.nan)
    with pytest.raises(ModelError, match="NaN"):
        bits_per_byte(broken, tokenizer, ["text"], context=4, stride=2)
