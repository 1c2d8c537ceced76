"""The tokenizer: exact round trips, no control token out of plain text, the store around it."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stemma.core.errors import DataError, ModelError, UsageError
from stemma.data import store
from stemma.data.bpe import END_OF_TEXT, Splitting, train_tokenizer
from stemma.data.store import open_store, write_store
from stemma.data.tokenizer import Tokenizer

TEXTS = ["The cat sat on the mat. " * 30, "Ünïcode 漢字 and 12345 numbers.\n\n" * 20]
HARD = [
    "",
    " ",
    "\n\n\t ",
    "12345678901234567890",
    "e\u0301\u0302",
    "👩‍👩‍👧",
    "\x00\x01",
    f"a{END_OF_TEXT}b",
]


@pytest.fixture(scope="module", params=get_args(Splitting))
def tokenizer(request):
    return train_tokenizer(TEXTS, vocab_size=400, splitting=request.param)


def reload(tokenizer):
    files = tokenizer.files()
    config = json.loads(files["tokenizer_config.json"])
    return Tokenizer.from_files(files["tokenizer.json"], config, place="test")


@given(text=st.text())
def test_text_comes_back_exactly(text):
    tokenizer = SHARED
    assert tokenizer.decode(tokenizer.encode(text)) == text


SHARED = train_tokenizer(TEXTS, vocab_size=400)


@pytest.mark.parametrize("text", HARD)
def test_hard_text_comes_back_and_batches_agree(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids


def test_plain_text_never_becomes_a_control_token_also_after_a_reload(tokenizer):
    text = f"before {END_OF_TEXT} after"
    for one in (tokenizer, reload(tokenizer)):
        assert one.eos_id not in one.encode(text)
        assert one.decode(one.encode(text)) == text


def test_reload_is_the_same_tokenizer(tokenizer):
    again = reload(tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.bos_id, again.eos_id, again.vocab_size) == (0, 0, tokenizer.vocab_size)
    assert [again.encode(t) for t in HARD] == [tokenizer.encode(t) for t in HARD]


def test_ids_equal_those_of_transformers(tokenizer, tmp_path):
    for name, text in tokenizer.files().items():
        (tmp_path / name).write_text(text)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in [*TEXTS, *HARD[:-1]]:
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


def test_training_is_deterministic():
    first, second = (train_tokenizer(TEXTS, vocab_size=350) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_vocabulary_too_small_for_bytes_says_how_many():
    with pytest.raises(UsageError, match="at least 257"):
        train_tokenizer(TEXTS, vocab_size=256)


def test_no_text_is_an_error_not_an_empty_vocabulary():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], vocab_size=300)


def test_damaged_file_names_its_place():
    with pytest.raises(ModelError, match=r"model/tokenizer\.json"):
        Tokenizer.from_files('{"model"', {}, place="model/tokenizer.json")


def test_unknown_special_token_is_refused(tokenizer):
    text = tokenizer.files()["tokenizer.json"]
    with pytest.raises(ModelError, match="eos_token '<nope>'"):
        Tokenizer.from_files(text, {"eos_token": "<nope>"}, place="x")


def test_store_holds_each_document_between_bos_and_eos(tokenizer, tmp_path):
    texts = ["first document", "zweites: ä", "第三"]
    made = write_store(tmp_path, iter(texts), tokenizer)
    assert made.num_documents == 3 and made.tokens.dtype == np.uint16
    for number, text in enumerate(texts):
        ids = made.document(number)
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids[1:-1]) == text
        assert made.text_bytes[number] == len(text.encode())
    again = open_store(tmp_path)
    np.testing.assert_array_equal(again.tokens, made.tokens)


def test_long_documents_are_encoded_by_fewer(monkeypatch):
    monkeypatch.setattr(store, "BATCH_CHARACTERS", 10)
    texts = ["a" * 4, "b" * 6, "c", "d" * 11, "", *["e"] * 70]
    batches = list(store.batched(iter(texts)))
    assert [text for batch in batches for text in batch] == texts
    assert [len(batch) for batch in batches[:3]] == [2, 1, 1]
    assert all(sum(map(len, batch)) <= 10 or len(batch) == 1 for batch in batches)
    monkeypatch.undo()
    assert [len(batch) for batch in store.batched(texts)] == [64, 11]
    assert list(store.batched([])) == []


def test_store_that_was_cut_is_noticed(tokenizer, tmp_path):
    write_store(tmp_path, ["some text"], tokenizer)
    path = tmp_path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens\.bin: .* wanted, .* found"):
        open_store(tmp_path)


def test_store_without_documents_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no documents"):
        write_store(tmp_path, [], tokenizer)
