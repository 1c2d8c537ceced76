"""What simple methods reach on the same held-out text, in bits per byte: the bar for a network.

n-gram models see exactly the training text that the network sees. `xz -9` sees nothing before it
starts, which is how the figure is usually quoted; "after the training text" is the fair
comparison: by how much the file grows when the held-out text is appended to the training text.
"""

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stemma.core.errors import DataError
from stemma.eval.bits_per_byte import Encoder
from stemma.eval.ngram import NgramModel

BYTE_ORDER = 5
TOKEN_ORDER = 3
MAX_TRAIN_BYTES = 16 * 2**20  # counting takes about 90 bytes of memory for each byte of text

Symbols = NDArray[np.int64]


@dataclass(frozen=True)
class Baseline:
    """One method's bits per byte of the held-out text; `note` says what the method is."""

    name: str
    bits_per_byte: float
    note: str


def baselines(
    train_texts: Iterable[str],
    heldout_texts: Sequence[str],
    tokenizer: Encoder,
    vocab_size: int,
    *,
    train_bytes: int,
) -> list[Baseline]:
    """Fit the simple methods on the training texts and score the held-out ones.

    `train_bytes` is the size of all training texts. What is above 16 MiB is thinned while the
    texts stream by, so memory does not grow with them, and the notes say so. Every figure is
    divided by the UTF-8 bytes of the held-out text. Raises DataError where a side has no text.
    """
    train = thin(train_texts, MAX_TRAIN_BYTES, total=train_bytes)
    heldout = [text for text in heldout_texts if text]
    if not train or not heldout:
        raise DataError(
            f"baselines need text on both sides: {len(train)} training documents and "
            f"{len(heldout)} held-out documents have any",
            fix="keep at least one document that is not empty on each side",
        )
    used = size(train)
    thinned = "" if used == train_bytes else f", on {used} of the {train_bytes} training bytes"
    num_bytes = size(heldout)
    rows = [
        Baseline(name, bits / num_bytes, "modified Kneser-Ney smoothing" + thinned)
        for name, bits in _ngram_bits(train, heldout, tokenizer, vocab_size)
    ]
    alone, after = xz_bits(train, heldout)
    return [
        *rows,
        Baseline("xz -9", alone / num_bytes, "the held-out text alone"),
        Baseline(
            "xz -9 after the training text",
            after / num_bytes,
            "growth of the file when the held-out text is appended" + thinned,
        ),
    ]


def size(texts: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)


def thin(texts: Iterable[str], limit: int, *, total: int) -> list[str]:
    """Documents spread evenly over a stream of `total` bytes, at most `limit` bytes of them.

    All are taken if they fit; else every second, third, and so on. The last one taken may be cut
    short. Empty documents are left out.
    """
    step = max(1, -(-total // limit))
    taken, room = [], limit
    for text in islice(texts, 0, None, step):
        if not room:
            break
        data = text.encode()[:room]
        room -= len(data)
        taken.append(data.decode(errors="ignore"))  # a cut may split a character
    return [text for text in taken if text]


def xz_bits(train: Sequence[str], heldout: Sequence[str]) -> tuple[int, int]:
    """Bits of the held-out documents in one .xz file: alone, and after the training documents."""
    before, text = "".join(train).encode(), "".join(heldout).encode()
    alone, primer, both = (_xz_size(data) for data in (text, before, before + text))
    return 8 * alone, 8 * (both - primer)


def _xz_size(data: bytes) -> int:
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, preset=9))


def _ngram_bits(
    train: Sequence[str], heldout: Sequence[str], tokenizer: Encoder, vocab_size: int
) -> Iterator[tuple[str, float]]:
    """Name and bits of the held-out documents for each n-gram model."""

    def token_symbols(text: str) -> Symbols:
        return np.array(tokenizer.encode(text), np.int64)

    for unit, symbols, num_symbols, top in (
        ("byte", byte_symbols, 256, BYTE_ORDER),
        ("token", token_symbols, vocab_size, TOKEN_ORDER),
    ):
        learned, scored = [symbols(t) for t in train], [symbols(t) for t in heldout]
        for order, name in ((1, "unigram"), (top, f"{top}-gram")):
            model = NgramModel.fit(learned, order, num_symbols)
            bits = -math.fsum(model.log2_probabilities(s).sum() for s in scored)
            yield f"{unit} {name}", bits


def byte_symbols(text: str) -> Symbols:
    """The bytes of the text's UTF-8, as symbols 0 to 255."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
