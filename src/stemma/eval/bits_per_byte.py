"""Bits per byte: how many bits a model needs for each byte of a text it has not seen.

Unlike perplexity the figure does not depend on the tokenizer, so models with different
vocabularies, n-gram models and file compressors stand on one scale. Every token of every document
is predicted exactly once, by sliding windows: the first window of a document scores all its
positions, each further one moves on by `stride` and scores only what is new. A small stride gives
each token more context and costs more: about context / stride passes over the text.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stemma.core.errors import DataError, ModelError, UsageError
from stemma.nn.mode import evaluating

# Axes: B window, T time, V vocabulary, N scored positions of a batch

CHUNK_CHARACTERS = 2048  # the unit of text that intervals draw again; documents may be too few

Progress = Callable[[int, int], None]


class Encoder(Protocol):
    """What scoring needs of a tokenizer. `bos_id` starts each document and is not predicted."""

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Score:
    """The bits that a model spent on some documents.

    `per_document` and `per_chunk` split `bits` and `bytes` into pairs of (bits, bytes); a chunk
    is about two kilobytes of one document, the unit for `statistics.bootstrap_interval`.
    """

    bits: float
    bytes: int
    tokens: int
    per_document: list[tuple[float, int]]
    per_chunk: list[tuple[float, int]]

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


def start_id(tokenizer: Encoder) -> int:
    """The id before a document's first token: `bos_id`, else the end of the document before it.

    Some pretrained tokenizers have no start symbol and separate documents by `eos_id`.
    """
    for found in (tokenizer.bos_id, getattr(tokenizer, "eos_id", None)):
        if found is not None:
            return int(found)
    raise ModelError(
        "the tokenizer has no start-of-text symbol, so a first token cannot be predicted",
        fix="name its bos_token in tokenizer_config.json",
    )


@dataclass(frozen=True)
class Window:
    """One pass of the model: it reads `length` ids from `start`, its last `scored` outputs count.

    Output i of a window predicts id start + i + 1 of its document.
    """

    document: int
    start: int
    length: int
    scored: int


def windows(document: int, num_targets: int, context: int, stride: int) -> Iterator[Window]:
    """The windows that score `num_targets` tokens once each, given the ids before them.

    The last window ends with the document and so may move on by less than `stride`: it is as
    long as the others and its tokens see more context, never less than context - stride + 1 ids.

    >>> [(w.start, w.scored) for w in windows(0, num_targets=9, context=4, stride=3)]
    [(0, 4), (3, 3), (5, 2)]
    """
    end = min(context, num_targets)
    if end:
        yield Window(document, 0, end, end)
    while end < num_targets:
        scored = min(stride, num_targets - end)
        end += scored
        yield Window(document, end - context, context, scored)


def bits_per_byte(
    model: nn.Module,
    tokenizer: Encoder,
    texts: Sequence[str],
    *,
    context: int,
    stride: int,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> Score:
    """Score whole documents: bits of all tokens over bytes of UTF-8. The end of text is free.

    `model(tokens_BT)` must be causal and return logits (B, T, V). `context` is the most ids that
    one pass reads, `stride` how many new tokens each further pass scores. `on_progress` is called
    with the tokens done and the tokens in all. Raises DataError where there is no text to score.
    """
    if isinstance(texts, str):
        raise UsageError("texts is one string", fix="hand in a list of documents")
    sizes = [len(text.encode()) for text in texts]
    if not sum(sizes):
        raise DataError("there is no text to score", fix="hold out at least one document")
    start = start_id(tokenizer)
    ids = [np.array([start, *tokenizer.encode(text)], np.int64) for text in texts]
    bits = token_bits(
        model, ids, context=context, stride=stride, batch_size=batch_size, on_progress=on_progress
    )
    per_document = [(math.fsum(b), size) for b, size in zip(bits, sizes, strict=True)]
    per_chunk = [
        pair for b, text in zip(bits, texts, strict=True) for pair in chunk_bits(tokenizer, text, b)
    ]
    total = math.fsum(b for b, _ in per_document)
    return Score(total, sum(sizes), sum(map(len, bits)), per_document, per_chunk)


def token_bits(
    model: nn.Module,
    ids: Sequence[NDArray[np.int64]],
    *,
    context: int,
    stride: int,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """-log2 p of every id but the first, for each document. The model's mode is left as it was."""
    if context < 1 or batch_size < 1 or not 1 <= stride <= context:
        raise UsageError(
            f"context ({context}) and batch_size ({batch_size}) must be at least 1, "
            f"stride ({stride}) between 1 and context"
        )
    bits = [np.full(max(len(document) - 1, 0), np.nan) for document in ids]
    total, done = sum(map(len, bits)), 0
    with evaluating(model.modules()):
        for batch in _batches(bits, context, stride, batch_size):
            _score(model, ids, batch, bits)
            done += sum(window.scored for window in batch)
            if on_progress is not None:
                on_progress(done, total)
    if any(np.isnan(document).any() for document in bits):
        raise ModelError(
            "the model's outputs are not numbers (NaN)",
            fix="score an earlier checkpoint, or train with a lower learning rate",
        )
    return bits


def _batches(
    bits: Sequence[NDArray[np.float64]], context: int, stride: int, batch_size: int
) -> Iterator[list[Window]]:
    """Windows of equal length together, so that nothing is padded; long ones first."""
    every = (w for d, b in enumerate(bits) for w in windows(d, len(b), context, stride))
    by_length = sorted(every, key=lambda window: -window.length)
    for _, group in groupby(by_length, key=lambda window: window.length):
        same = list(group)
        for first in range(0, len(same), batch_size):
            yield same[first : first + batch_size]


@torch.inference_mode()
def _score(
    model: nn.Module,
    ids: Sequence[NDArray[np.int64]],
    batch: Sequence[Window],
    bits: Sequence[NDArray[np.float64]],
) -> None:
    """Run one batch and write its scored positions into `bits`."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    rows = np.stack([ids[w.document][w.start : w.start + w.length + 1] for w in batch])
    rows_BT = torch.from_numpy(rows).to(device)
    logits_BTV = model(rows_BT[:, :-1])
    # Only scored positions reach the softmax: with a small stride they are the smaller part.
    scored = [logits_BTV[row, w.length - w.scored :] for row, w in enumerate(batch)]
    targets = [rows_BT[row, 1 + w.length - w.scored :] for row, w in enumerate(batch)]
    nats_N = _negative_log_likelihood(torch.cat(scored), torch.cat(targets))
    nats = np.split(nats_N.double().cpu().numpy(), np.cumsum([w.scored for w in batch])[:-1])
    for window, values in zip(batch, nats, strict=True):
        end = window.start + window.length
        bits[window.document][end - window.scored : end] = values / math.log(2)


def _negative_log_likelihood(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-ln p per position, in at least 32 bits: bfloat16 keeps only two or three digits."""
    if logits_NV.dtype in (torch.bfloat16, torch.float16):
        logits_NV = logits_NV.float()
    return F.cross_entropy(logits_NV, targets_N, reduction="none")


def chunk_bits(tokenizer: Encoder, text: str, bits: NDArray[np.float64]) -> list[tuple[float, int]]:
    """Split one document's bits over chunks of its text: pairs of (bits, bytes).

    A chunk's number of tokens is found by encoding it alone, which is exact where no token spans
    the cut (before a line end, for the usual pre-tokenizers). Where the numbers do not add up to
    the document's, the cuts are scaled: a token may then fall on the wrong side of a cut.
    """
    chunks = split_chunks(text)
    if len(chunks) < 2:
        return [(math.fsum(bits), len(text.encode()))]
    counts = np.cumsum([len(tokenizer.encode(chunk)) for chunk in chunks])
    edges = np.rint(counts * (len(bits) / max(counts[-1], 1))).astype(np.int64)
    parts = np.split(bits, edges[:-1])
    return [
        (math.fsum(part), len(chunk.encode())) for part, chunk in zip(parts, chunks, strict=True)
    ]


def split_chunks(text: str) -> list[str]:
    """Cut a text before the last line end of each 2,048 characters, or after them all.

    No chunk of a text that is not empty is empty, and the chunks joined are the text.
    """
    chunks, start = [], 0
    while len(text) - start > CHUNK_CHARACTERS:
        end = text.rfind("\n", start, start + CHUNK_CHARACTERS + 1)
        end = end if end > start else start + CHUNK_CHARACTERS
        chunks.append(text[start:end])
        start = end
    return [*chunks, text[start:]]
