"""Streamed text: whole characters, the right cut, and constant work for each token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from stemma.infer.text import Cutter, Detokenizer


def shown(detokenizer, ids):
    return [detokenizer.add(token) for token in ids] + [detokenizer.end()]


class Pieces:
    """A tokenizer whose tokens are given byte strings."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[token] for token in ids).decode("utf-8", errors="replace")


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=40))
def test_any_bytes_concatenate_to_the_decoded_text(make_tokenizer, data, prompt):
    """Also for bytes that are no text at all; the prompt ends on a whole character."""
    prompt = prompt.decode("utf-8", errors="ignore").encode() + b"."
    detokenizer = Detokenizer(make_tokenizer(), list(prompt))
    assert "".join(shown(detokenizer, list(data))) == data.decode("utf-8", errors="replace")


@settings(deadline=None)
@given(st.text(max_size=80), st.data())
def test_characters_are_never_split(text, data):
    """Tokens of any length in bytes: no piece has a replacement character the text has not."""
    raw, pieces = text.encode(), []
    while raw:
        size = data.draw(st.integers(1, 6))
        pieces.append(raw[:size])
        raw = raw[size:]
    parts = shown(Detokenizer(Pieces(pieces), []), range(len(pieces)))
    assert "".join(parts) == text
    assert text.count("\ufffd") == "".join(parts).count("\ufffd")


def test_a_character_is_shown_with_its_last_byte():
    parts = shown(Detokenizer(Pieces([b"a\xf0", b"\x9f\x98", b"\x80", b"!"]), []), range(4))
    assert parts == ["a", "", "\U0001f600", "!", ""]


def test_a_prompt_that_ends_inside_a_character_is_completed():
    assert shown(Detokenizer(Pieces([b"\xe2", b"\x82\xac!"]), [0]), [1]) == ["€!", ""]


@pytest.mark.parametrize("data", ["é€😀 plain ".encode() * 200, b"\x80" * 3000, b"\xf0\x9f" * 1500])
def test_work_for_a_token_does_not_grow_with_the_text(make_tokenizer, data):
    tokenizer, sizes = make_tokenizer(), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids: sizes.append(len(ids)) or decode(ids)
    assert "".join(shown(Detokenizer(tokenizer, []), list(data))) == data.decode(errors="replace")
    assert max(sizes) <= 40
    assert len(sizes) <= 2.1 * len(data)


def test_a_decoder_that_strips_the_first_blank_keeps_it_inside_a_text():
    """Llama's tokenizer drops a leading blank and decodes runs of byte tokens together."""
    words = ["▁one", "▁two", "▁three", "s", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, words[0]))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    ids = [1, 2, 3, 4, 5, 6, 4, 5, 6, 1] * 20
    text = "".join(shown(Detokenizer(tokenizer, [0]), ids))
    assert text == " two threes€€ two" * 20


def cut(text, stops):
    """By definition: the stop string that is complete first, the longest of those, is cut."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(st.lists(LETTERS, max_size=8), STOPS)
def test_stop_strings_cut_wherever_pieces_end(pieces, stops):
    cutter = Cutter(stops)
    parts = [cutter.add(piece) for piece in pieces] + [cutter.end()]
    assert ("".join(parts), cutter.found) == cut("".join(pieces), stops)


@settings(deadline=None)
@given(st.lists(LETTERS, max_size=8), STOPS)
def test_all_that_is_certain_is_shown_at_once(pieces, stops):
    """What is held back is an end of the text that begins a stop string, and the longest."""
    cutter, text = Cutter(stops), ""
    for piece in pieces:
        text += piece
        cutter.add(piece)
        if cutter.found:
            return
        begun = [n for s in stops for n in range(len(s)) if text.endswith(s[:n])]
        assert len(cutter.held) == max(begun, default=0)
