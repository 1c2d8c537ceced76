"""Baselines: the figures follow from the text, on one scale, and rank as they must."""

import lzma
import math

import numpy as np
import pytest

from stemma.core.errors import DataError
from stemma.eval import baselines as module
from stemma.eval.baselines import baselines, thin, xz_bits
from stemma.eval.ngram import NgramModel

VERSE = "When {} do count the {} that tells the time,\nAnd see the brave {} sunk in hideous {};\n"
WORDS = "clock day night violet prime curls silver trees leaves herd summer green".split()


class WordTokenizer:
    """One id for each word and for each other character, known beforehand: a fixed vocabulary."""

    bos_id = 0

    def __init__(self):
        pieces = sorted({*WORDS, *map(chr, range(256))})
        self.ids = {piece: index + 1 for index, piece in enumerate(pieces)}
        self.vocab_size = len(pieces) + 1

    def encode(self, text):
        ids, rest = [], text
        while rest:
            word = next((w for w in WORDS if rest.startswith(w)), rest[0])
            ids.append(self.ids[word])
            rest = rest[len(word) :]
        return ids


def sample_texts(seed, count, verses=12):
    random = np.random.default_rng(seed)
    return [
        "".join(VERSE.format(*random.choice(WORDS, 4)) for _ in range(verses)) for _ in range(count)
    ]


TRAIN, HELDOUT = sample_texts(0, 6), sample_texts(1, 2)


def rows(train=TRAIN, heldout=HELDOUT):
    tokenizer = WordTokenizer()
    total = sum(len(text.encode()) for text in train)
    found = baselines(iter(train), heldout, tokenizer, tokenizer.vocab_size, train_bytes=total)
    return {row.name: row for row in found}


def test_names_and_order():
    assert list(rows()) == [
        "byte unigram",
        "byte 5-gram",
        "token unigram",
        "token 3-gram",
        "xz -9",
        "xz -9 after the training text",
    ]


def test_figures_are_bits_over_held_out_bytes():
    """Recomputed: the n-gram rows from the model, the xz rows from the files' lengths."""
    found, tokenizer = rows(), WordTokenizer()
    num_bytes = sum(len(t.encode()) for t in HELDOUT)
    words, num_words = tokenizer.encode, tokenizer.vocab_size
    for name, symbols, order, num_symbols in (
        ("byte unigram", lambda t: list(t.encode()), 1, 256),
        ("byte 5-gram", lambda t: list(t.encode()), 5, 256),
        ("token unigram", words, 1, num_words),
        ("token 3-gram", words, 3, num_words),
    ):
        model = NgramModel.fit([symbols(t) for t in TRAIN], order, num_symbols)
        bits = -sum(model.log2_probabilities(symbols(t)).sum() for t in HELDOUT)
        assert found[name].bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-12)
    file = lzma.compress("".join(HELDOUT).encode(), preset=9)
    assert found["xz -9"].bits_per_byte == 8 * len(file) / num_bytes
    assert lzma.decompress(file).decode() == "".join(HELDOUT)


def test_knowing_more_costs_fewer_bits():
    b = {name: row.bits_per_byte for name, row in rows().items()}
    assert b["byte 5-gram"] < b["token unigram"] < b["byte unigram"] < 8
    assert b["token 3-gram"] < b["token unigram"]
    assert b["xz -9 after the training text"] < b["xz -9"]
    # The text is free only in its words: four of twelve a verse, which is a floor for all.
    floor = 4 * math.log2(12) * len(HELDOUT) * 12 / sum(len(t) for t in HELDOUT)
    assert min(b.values()) > floor


def test_empty_documents_change_nothing():
    assert rows([*TRAIN, ""], ["", *HELDOUT]) == rows()


def test_non_ascii_text_is_counted_in_bytes():
    """One character of three bytes: 8 bits per byte at the very most for a uniform byte model."""
    found = rows(["xy"], ["ÿ" * 50])
    assert found["byte unigram"].bits_per_byte > 6  # bytes that training never had
    assert found["xz -9"].bits_per_byte == 8 * len(lzma.compress(b"\xc3\xbf" * 50, preset=9)) / 100


def test_a_primer_that_holds_the_text_makes_it_almost_free():
    noise = "".join(chr(c) for c in np.random.default_rng(0).integers(32, 127, size=4000))
    alone, after = xz_bits([noise], [noise])
    assert alone > 4000 * 6 and after < 100 * 8


def test_large_training_text_is_thinned_evenly_and_the_notes_say_so(monkeypatch):
    monkeypatch.setattr(module, "MAX_TRAIN_BYTES", sum(map(len, TRAIN)) // 3)
    thinned = rows()
    total = sum(map(len, TRAIN))
    used = sum(map(len, thin(TRAIN, module.MAX_TRAIN_BYTES, total=total)))
    assert 0 < used <= total // 3
    for name in ("byte 5-gram", "token unigram", "xz -9 after the training text"):
        assert f"on {used} of the {sum(map(len, TRAIN))} training bytes" in thinned[name].note
    assert "training bytes" not in thinned["xz -9"].note
    monkeypatch.undo()
    assert all("training bytes" not in row.note for row in rows().values())


def test_thinning_keeps_the_limit_and_whole_characters():
    assert thin(["a", "", "b"], 10, total=2) == ["a", "b"]
    assert thin(list("abcdef"), 3, total=6) == ["a", "c", "e"]
    assert thin(["é" * 10], 5, total=20) == ["éé"]
    assert thin(["aaaaaaaa", "b", "cc", "d"], 8, total=12) == ["aaaaaaaa"]


def test_thinning_holds_only_what_it_takes():
    """A stream far above the limit: no text is alive beside those taken and the one at hand."""

    class Text(str):
        alive = most = 0

        def __init__(self, *_):
            Text.alive += 1
            Text.most = max(Text.most, Text.alive)

        def __del__(self):
            Text.alive -= 1

    stream = (Text(f"{number:04}") for number in range(1000))
    assert thin(stream, 40, total=4000) == [f"{number:04}" for number in range(0, 1000, 100)]
    assert Text.most <= 4


def test_bad_input_is_named():
    for train, heldout in (([], HELDOUT), (TRAIN, []), ([""], HELDOUT), (TRAIN, [""])):
        with pytest.raises(DataError, match="both sides"):
            rows(train, heldout)
    with pytest.raises(DataError, match="vocabulary size"):
        baselines(TRAIN, HELDOUT, WordTokenizer(), 10, train_bytes=1000)
