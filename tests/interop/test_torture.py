"""Texts that break tokenizers: ids as transformers and llama.cpp give them, and back to the text.

Every splitting rule is tried as it comes out of training, after a save and a load, and read from a
GGUF file. SmolLM2's real tokenizer is the one of its GGUF file, beside llama.cpp's own reading.
"""

import importlib
import json
from typing import get_args

import pytest
import transformers

from stemma import api
from stemma.core import assets
from stemma.data.bpe import Splitting, pre_tokenizer, train_tokenizer
from stemma.data.tokenizer import Tokenizer
from stemma.interop.folder import read_tokenizer
from stemma.interop.gguf_model import open_model
from tests.data.torture import TEXTS, control_texts, random_texts, torture
from tests.interop.gguf_writing import write_gguf

RULES = get_args(Splitting)
FORMS = ("trained", "reloaded", "from-gguf")
TURNS = ("<|im_start|>", "<|im_end|>")
CORPUS = [  # whatever merges are learned, some of them join what is hard
    "The cat's mat, it'll do.\n\n  12345 67890 !!! <|im_start|>user <|im_end|> " * 20,
    *(text * 3 for texts in TEXTS.values() for text in texts),
]


def write(tokenizer, folder):
    """The files of a tokenizer, as a Hugging Face folder has them."""
    for name, text in tokenizer.files().items():
        (folder / name).write_text(text, "utf-8")
    return folder


def packed(tokenizer, rule, folder):
    """The tokenizer through a GGUF file of a tiny network."""
    model = api.build("llama", width=8, depth=1, num_heads=2, vocab_size=tokenizer.vocab_size)
    more = {"tokenizer__ggml__pre": rule}
    return open_model(write_gguf(folder / "m.gguf", model, tokenizer, **more)).tokenizer


@pytest.fixture(scope="module", params=RULES)
def rule(request):
    return request.param


@pytest.fixture(scope="module")
def trained(rule):
    """A trained tokenizer with the two control tokens of a chat."""
    made = train_tokenizer(CORPUS, vocab_size=700, splitting=rule)
    # the reference of the rule takes whole words before merges, and so does its GGUF form
    made.backend.model.ignore_merges = rule == "llama-bpe"
    made.backend.add_special_tokens(list(TURNS))
    return made


@pytest.fixture(scope="module", params=FORMS)
def tokenizer(request, rule, trained, tmp_path_factory):
    if request.param == "trained":
        return trained
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "reloaded":
        return read_tokenizer(write(trained, folder))
    return packed(trained, rule, folder)


@pytest.fixture(scope="module")
def texts(tokenizer):
    return torture(specials(tokenizer).values())


def specials(tokenizer: Tokenizer) -> dict[int, str]:
    """The control tokens by their ids."""
    added = tokenizer.backend.get_added_tokens_decoder()
    return {number: token.content for number, token in added.items() if token.special}


def test_ids_equal_those_of_transformers(tokenizer, texts, tmp_path):
    """Text is what a person wrote: `split_special_tokens` is transformers' name for that."""
    folder = write(tokenizer, tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    wanted = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    found = tokenizer.encode_batch(texts)
    different = [text for text, a, b in zip(texts, found, wanted, strict=True) if a != b]
    assert not different, f"{len(different)} of {len(texts)}, the first {different[0]!r}"
    assert len(texts) > 2500


def test_text_comes_back_to_the_last_character(tokenizer, texts):
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, (text, ids)


def test_no_text_holds_a_control_token(tokenizer, texts):
    control = specials(tokenizer)
    assert len(control) == 1 + len(TURNS)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert control.keys().isdisjoint(ids), text


def test_forms_agree(tokenizer, trained, texts):
    """A save, a load and a GGUF file change no id."""
    assert tokenizer.encode_batch(texts) == trained.encode_batch(texts)


def test_rules_differ_on_these_texts():
    """The set is worth something: no rule passes for another one."""
    model = json.loads(train_tokenizer(CORPUS, vocab_size=700).backend.to_str())["model"]
    fixed = [text for texts in TEXTS.values() for text in texts]
    found = set()
    for rule in RULES:
        other = train_tokenizer(["a"], vocab_size=257, splitting=rule)
        content = json.loads(other.backend.to_str()) | {"model": model}
        files = other.files()
        again = Tokenizer.from_files(
            json.dumps(content), json.loads(files["tokenizer_config.json"]), place="test"
        )
        found.add(str(again.encode_batch(fixed)))
    assert len(found) == len(RULES)


def test_set_is_the_same_each_time():
    assert random_texts() == random_texts() != random_texts(seed=1)
    assert {ord(letter) >> 16 for text in random_texts() for letter in text} == set(range(17))
    assert len(set(torture())) > 2500
    assert not any("\ud800" <= letter <= "\udfff" for text in torture() for letter in text)
    assert "<|im_start|" in control_texts() and "<|my_own|" in control_texts(["<|my_own|>"])


# The real one: its vocabulary lacks some bytes, and what lacks is left out of the ids


@pytest.fixture(scope="module")
def file():
    (path,) = assets.pull("smollm2-135m").glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def smollm2(file):
    return open_model(file).tokenizer


@pytest.fixture(scope="module")
def hard(smollm2):
    return torture(specials(smollm2).values())


def lacking(tokenizer: Tokenizer, texts: list[str]) -> set[int]:
    """Bytes of the texts that have no token: their letter in the byte alphabet is no word."""
    letters: dict[str, int] = {}
    for text in texts:
        words = pre_tokenizer("gpt-2").pre_tokenize_str(text)
        spelled = "".join(word for word, _ in words)
        letters |= dict(zip(spelled, text.encode(), strict=True))
    known = tokenizer.backend.get_vocab()
    return {byte for letter, byte in letters.items() if letter not in known}


@pytest.mark.net
def test_smollm2_gives_the_ids_of_transformers(smollm2, hard, tmp_path):
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(write(smollm2, tmp_path))
    wanted = theirs(hard, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert smollm2.encode_batch(hard) == wanted


@pytest.mark.net
def test_smollm2_gives_back_all_but_the_bytes_that_it_lacks(smollm2, hard):
    lost = lacking(smollm2, hard)
    assert {0x04, 0x1D, 0xF1, 0xF2} <= lost and len(lost) == 8 and 0xF0 not in lost
    for text in hard:
        kept = bytes(byte for byte in text.encode() if byte not in lost)
        assert smollm2.decode(smollm2.encode(text)) == kept.decode(errors="replace"), text


@pytest.mark.slow
def test_smollm2_gives_the_ids_of_llama_cpp(file, smollm2, hard):
    """The other reader of the same file, and the one that gave the rule its name.

    Where a byte has no token, transformers and we leave it out before merging, llama.cpp
    afterwards, so what stood on its two sides may merge here and not there.
    """
    theirs = llama_cpp().Llama(str(file), vocab_only=True, verbose=False)
    wanted = [theirs.tokenize(text.encode(), add_bos=False, special=False) for text in hard]
    pairs = zip(hard, smollm2.encode_batch(hard), wanted, strict=True)
    different = [text for text, mine, ids in pairs if mine != ids]
    lost = lacking(smollm2, hard)
    whole = [text for text in hard if lost.isdisjoint(text.encode())]
    print(f"\nSmolLM2 and llama.cpp: {len(hard) - len(different)} of {len(hard)} texts equal,")
    unequal = [text for text in different if lost.isdisjoint(text.encode())]
    print(f"{len(whole) - len(unequal)} of the {len(whole)} whose every byte has a token")
    assert not unequal, f"{len(unequal)} differ, the first {unequal[0]!r}"
    assert len(different) <= 5 and len(whole) > 2300


def llama_cpp():
    """The package, which the suite does not install; its absence is a failure, not a skip."""
    try:
        return importlib.import_module("llama_cpp")
    except ImportError as error:
        pytest.fail(f"{error}: run `make bench-setup` first (compiles llama-cpp-python)")
