"""Texts with marks around them, as encoders read them: `[CLS] text [SEP]`, `[CLS] a [SEP] b [SEP]`.

BERT's four tokens (arXiv:1810.04805, section 3 and appendix A.2) are found by the roles that
`tokenizer_config.json` gives them, so RoBERTa's `<s>` and `</s>` do as well. A tokenizer that lacks
some gets them after its vocabulary. Text that a person wrote never becomes a mark.

A document longer than the context is cut into windows, each with its own marks; short windows are
packed whole, and each sees only itself. Here a place is a token, not a pair of tokens as where the
next one is foretold, and padding stands at position -1.

Axes: B samples, T places of a sample
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import processors

from stemma.core.errors import ModelError
from stemma.data.batches import IGNORED, Batch
from stemma.data.packing import Plan, plan_whole
from stemma.data.store import Row, TokenStore, batched
from stemma.data.tokenizer import Tokenizer, special_text

ROLES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Marks:
    """The ids of the tokens that begin a text, end one, hide a token, and fill places."""

    begin: int
    end: int
    mask: int
    padding: int


def words_of(tokenizer: Tokenizer) -> dict[str, str]:
    """The marks by role: what the tokenizer calls them, else BERT's own words."""
    return {role: special_text(tokenizer.config.get(role)) or ROLES[role] for role in ROLES}


def marks_of(tokenizer: Tokenizer) -> Marks:
    """The marks of a tokenizer. Raises ModelError where one is not in its vocabulary."""
    ids: list[int] = []
    for word in words_of(tokenizer).values():
        number = tokenizer.backend.token_to_id(word)
        if number is None:
            what = f"the tokenizer has no {word}"
            raise ModelError(what, place="tokenizer", fix="use the tokenizer of an encoder")
        ids.append(number)
    return Marks(*ids)


def with_marks(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that has all marks: itself where it does, else a new one.

    New marks come after the vocabulary, so that a model's embedding may have to grow. Other
    programs that read the new tokenizer's files put the marks around a text, as BERT's does.
    """
    words = words_of(tokenizer)
    if all(tokenizer.backend.token_to_id(word) is not None for word in words.values()):
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    # what is hidden was learned with the space before it, so the mask takes that space in
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(word, special=True, lstrip=role == "mask_token")
            for role, word in words.items()
        ]
    )
    begin, end = words["cls_token"], words["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(word, backend.token_to_id(word)) for word in (begin, end)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]  # else they leave out the segments
    config = deepcopy(tokenizer.config) | words | {"model_input_names": names}
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), config)


def around(marks: Marks, first: Sequence[int], second: Sequence[int] | None = None) -> list[int]:
    """A text, or a pair of texts, with its marks."""
    ids = [marks.begin, *first, marks.end]
    return ids if second is None else [*ids, *second, marks.end]


def fitted(first: Sequence[int], second: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """Two texts cut at their ends to `room` tokens together, always the longer one.

    >>> fitted([1, 2, 3, 4], [5, 6], room=4)
    ([1, 2], [5, 6])
    """
    longer = max(len(first), len(second))
    over = len(first) + len(second) - room
    apart = abs(len(first) - len(second))
    if over <= 0:
        return list(first), list(second)
    if over <= apart:
        keep = longer - over
        return list(first[:keep]), list(second[:keep])
    return list(first[: room - room // 2]), list(second[: room // 2])


def window_rows(texts: Iterable[str], tokenizer: Tokenizer, context: int) -> Iterator[Row]:
    """Documents cut into windows of at most `context` tokens, marks included.

    The bytes of a document stand with its first window.
    """
    marks, room = marks_of(tokenizer), context - 2
    for batch in batched(texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            for start in range(0, len(ids), room):
                size = 0 if start else len(text.encode())
                yield Row(around(marks, ids[start : start + room]), size)


def plan_windows(offsets: Integers, context: int) -> Plan:
    """Pack windows whole. Every token takes a place: none is only there to be foretold from.

    >>> plan_windows(np.array([0, 4, 7]), context=8).length  # windows of 4 and 3 tokens
    array([4, 3])
    """
    return plan_whole(offsets + np.arange(len(offsets)), context)


@dataclass(frozen=True)
class Piece:
    """Where a stored document stands in a row, from place `start` to `stop`."""

    row: int
    number: int
    document: int
    start: int
    stop: int


def pieces(plan: Plan, samples_B: Integers) -> Iterator[Piece]:
    """The pieces of some samples, row by row; `number` counts those of a row."""
    for row, sample in enumerate(samples_B):
        first, last = plan.first_piece[sample], plan.first_piece[sample + 1]
        stops = np.cumsum(plan.length[first:last])
        for number, (piece, stop) in enumerate(zip(range(first, last), stops, strict=True)):
            start = int(stop - plan.length[piece])
            yield Piece(row, number, int(plan.document[piece]), start, int(stop))


def window_batch(store: TokenStore, plan: Plan, samples_B: Integers, *, padding: int) -> Batch:
    """Rows of windows, every token where it stands; nothing is a target yet."""
    return _laid_out(store, plan, samples_B, padding=padding, before=0)


def labelled_batch(
    store: TokenStore, plan: Plan, samples_B: Integers, marks: Marks
) -> tuple[Batch, Integers]:
    """Rows of labelled texts, and the segment of every place: 1 in the second text of a pair.

    A stored document begins with the number of its label, which is the target of its first place.
    """
    batch = _laid_out(store, plan, samples_B, padding=marks.padding, before=1)
    segments_BT = np.zeros_like(batch.tokens_BT)
    for piece in pieces(plan, samples_B):
        batch.targets_BT[piece.row, piece.start] = store.document(piece.document)[0]
        tokens = batch.tokens_BT[piece.row, piece.start : piece.stop]
        ended = np.cumsum(tokens == marks.end) - (tokens == marks.end)
        segments_BT[piece.row, piece.start : piece.stop] = ended > 0
    return batch, segments_BT


def _laid_out(
    store: TokenStore, plan: Plan, samples_B: Integers, *, padding: int, before: int
) -> Batch:
    """Rows filled from the plan's pieces; `before` numbers of every document are no tokens."""
    shape = (len(samples_B), plan.context)
    tokens, targets = np.full(shape, padding, np.int64), np.full(shape, IGNORED, np.int64)
    positions, documents = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    for piece in pieces(plan, samples_B):
        cut = slice(piece.start, piece.stop)
        tokens[piece.row, cut] = store.document(piece.document)[before:]
        positions[piece.row, cut] = np.arange(piece.stop - piece.start)
        documents[piece.row, cut] = piece.number
    if (documents == 0).all():  # each row is one window and full: everyone sees everyone
        return Batch(tokens, targets, None, None, samples_B)
    return Batch(tokens, targets, positions, documents, samples_B)
