"""Marks around texts: found by their roles, added where missing, and never written by a person."""

import numpy as np
import pytest
from tokenizers import processors

from stemma import api
from stemma.core.errors import ModelError
from stemma.data.bpe import train_tokenizer
from stemma.data.marked import (
    Marks,
    around,
    fitted,
    marks_of,
    pieces,
    plan_windows,
    window_batch,
    window_rows,
    with_marks,
)
from stemma.data.store import Row, in_memory
from stemma.data.tokenizer import Tokenizer
from stemma.interop.folder import read_tokenizer

TEXT = "the cat sat on the mat and the dog ran under the tree"


@pytest.fixture(scope="module")
def plain():
    return train_tokenizer([TEXT], vocab_size=280)


@pytest.fixture(scope="module")
def marked(plain):
    return with_marks(plain)


def test_missing_marks_come_after_the_vocabulary(plain, marked):
    marks, size = marks_of(marked), plain.vocab_size
    assert [marks.begin, marks.end, marks.mask, marks.padding] == list(range(size, size + 4))
    assert marked.vocab_size == size + 4 and marked.pad_id == marks.padding
    assert marked.encode(TEXT) == plain.encode(TEXT)
    assert (marked.bos_id, marked.eos_id) == (plain.bos_id, plain.eos_id)
    assert {*range(size, size + 4)} <= marked.control_ids


def test_a_tokenizer_that_has_them_stays_as_it_is(marked):
    assert with_marks(marked) is marked


def test_a_tokenizer_without_them_is_refused(plain):
    with pytest.raises(ModelError, match=r"has no \[CLS\]"):
        marks_of(plain)


def test_marks_are_found_by_their_roles(plain):
    config = {"cls_token": "<s>", "sep_token": {"content": "</s>"}, "mask_token": "<mask>"}
    named = with_marks(Tokenizer(plain.backend, plain.config | config))
    words = [named.backend.id_to_token(n) for n in vars(marks_of(named)).values()]
    assert words == ["<s>", "</s>", "<mask>", "[PAD]"]


def test_a_mark_that_a_person_writes_is_text(marked):
    written = marked.encode("the [MASK] sat [SEP]")
    assert not {*written} & marked.control_ids
    assert marked.decode(written) == "the [MASK] sat [SEP]"
    assert marks_of(marked).mask in marked.encode_template("the [MASK] sat")


def test_other_programs_put_the_same_marks_around_texts_and_pairs(marked, tmp_path):
    from transformers import AutoTokenizer

    for name, text in marked.files().items():
        (tmp_path / name).write_text(text)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    first, second = marked.encode("the cat"), marked.encode("the dog ran")
    marks = marks_of(marked)
    one, both = theirs("the cat"), theirs("the cat", "the dog ran")
    assert one["input_ids"] == around(marks, first)
    assert both["input_ids"] == around(marks, first, second)
    assert both["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert (theirs.mask_token_id, theirs.pad_token_id) == (marks.mask, marks.padding)


def test_marked_tokenizers_go_through_folders(marked, tmp_path):
    for name, text in marked.files().items():
        (tmp_path / name).write_text(text)
    again = read_tokenizer(tmp_path)
    assert marks_of(again) == marks_of(marked) and again.fingerprint == marked.fingerprint
    assert isinstance(again.backend.post_processor, processors.TemplateProcessing)


@pytest.mark.parametrize(
    ("first", "second", "room", "lengths"),
    [
        (3, 3, 6, (3, 3)),
        (9, 2, 6, (4, 2)),
        (2, 9, 6, (2, 4)),
        (9, 8, 6, (3, 3)),
        (8, 9, 7, (4, 3)),
        (5, 5, 9, (5, 4)),
        (0, 5, 3, (0, 3)),
    ],
)
def test_pairs_are_cut_at_the_longer_side(first, second, room, lengths):
    a, b = list(range(first)), list(range(100, 100 + second))
    kept = fitted(a, b, room)
    assert (len(kept[0]), len(kept[1])) == lengths
    assert kept == (a[: lengths[0]], b[: lengths[1]])


def test_windows_hold_every_token_once_between_marks(marked):
    texts, context = [TEXT, "", TEXT * 7, "cat"], 9
    rows = list(window_rows(texts, marked, context))
    marks = marks_of(marked)
    assert all(row.ids[0] == marks.begin and row.ids[-1] == marks.end for row in rows)
    assert max(len(row.ids) for row in rows) == context
    assert [n for row in rows for n in row.ids[1:-1]] == [
        n for t in texts for n in marked.encode(t)
    ]
    assert sum(row.text_bytes for row in rows) == sum(len(text.encode()) for text in texts)


def test_every_token_takes_a_place_and_windows_stay_whole():
    draw = np.random.default_rng(0)
    marks = Marks(90, 91, 92, 93)
    rows = [
        Row(around(marks, draw.integers(0, 90, n).tolist()), 0) for n in draw.integers(1, 15, 40)
    ]
    store = in_memory(rows)
    plan = plan_windows(store.offsets, 16)
    batch = window_batch(store, plan, np.arange(plan.num_samples), padding=93)
    assert plan.num_pairs == len(store.tokens) == (batch.documents_BT >= 0).sum()
    seen = set()
    for piece in pieces(plan, np.arange(plan.num_samples)):
        cut = slice(piece.start, piece.stop)
        assert batch.tokens_BT[piece.row, cut].tolist() == rows[piece.document].ids
        assert batch.positions_BT[piece.row, cut].tolist() == list(range(piece.stop - piece.start))
        assert (batch.documents_BT[piece.row, cut] == piece.number).all()
        seen.add(piece.document)
    assert seen == set(range(40))
    padding = batch.documents_BT < 0
    assert (batch.tokens_BT[padding] == 93).all() and (batch.positions_BT[padding] == -1).all()


def test_full_rows_of_one_window_need_no_mask():
    store = in_memory([Row([90, 1, 2, 91], 0), Row([90, 3, 4, 91], 0)])
    batch = window_batch(store, plan_windows(store.offsets, 4), np.arange(2), padding=93)
    assert batch.positions_BT is None and batch.documents_BT is None
    short = in_memory([Row([90, 1, 2, 91], 0), Row([90, 3, 91], 0)])
    batch = window_batch(short, plan_windows(short.offsets, 4), np.arange(2), padding=93)
    assert batch.documents_BT is not None  # an encoder would look at the padding


def test_new_rows_of_the_embedding_for_marks_are_the_mean(plain, marked):
    numbers = {"width": 8, "depth": 1, "num_heads": 2, "context": 16}
    model = api.build("bert", vocab_size=plain.vocab_size, **numbers)
    wider = api.with_vocabulary(model, marked.vocab_size)
    old, new = model.embedding.weight, wider.embedding.weight
    assert (new[: len(old)] == old).all()
    np.testing.assert_allclose(new[-1].detach(), old.mean(0).detach(), rtol=1e-5, atol=1e-7)
    assert len(wider.head.bias) == marked.vocab_size
