"""The real all-MiniLM-L6-v2: sentence vectors as transformers makes them, and near where meant.

A vector of a sentence is the mean of what leaves the last block over the real tokens, scaled to
length one: what the folder's authors write of its use.
"""

import itertools

import pytest
import torch
import transformers
from torch.nn.functional import normalize

from stemma import api
from stemma.core import assets
from stemma.infer.encoders import rows
from stemma.models.bert import PRESETS, BertConfig

pytestmark = pytest.mark.net  # 84 MB, once

SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays music on a guitar.",
    "The stock market fell by three per cent today.",
    "Shares lost value on Wednesday.",
    "How do I bake bread without yeast?",
    "A recipe for a loaf that needs no yeast.",
]
ODD = ["", "a", "Naïve CAFÉ, 漢字 and 👩‍👩‍👧!", "one [SEP] two [MASK]", "word " * 900]


@pytest.fixture(scope="module")
def folder():
    return assets.pull("all-minilm-l6")


@pytest.fixture(scope="module")
def ours(folder):
    return api.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.BertModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def their_tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def mean_of_real(x_BTC, real_BT):
    """The mean over real tokens, of length one."""
    weights = real_BT[..., None].to(x_BTC.dtype)
    return normalize((x_BTC * weights).sum(1) / weights.sum(1))


@torch.no_grad()
def vectors(ours, texts):
    model, tokenizer = ours
    tokens_BT, context = rows(tokenizer, texts, model.config.context)
    x_BTC, _ = model.hidden(tokens_BT, context)
    return mean_of_real(x_BTC, context.padding_BT)


@torch.no_grad()
def their_vectors(theirs, their_tokenizer, texts):
    fed = their_tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    x_BTC = theirs(**fed).last_hidden_state
    return mean_of_real(x_BTC, fed["attention_mask"].bool())


def test_the_file_is_the_preset_of_its_name(ours, theirs):
    assert ours[0].config == BertConfig(**PRESETS["all-minilm-l6"])
    assert sum(p.numel() for p in ours[0].parameters()) == 22_713_216 == theirs.num_parameters()


@pytest.mark.parametrize("text", [*SENTENCES, *ODD[:3]])
def test_ids_are_those_of_transformers(text, ours, their_tokenizer):
    tokens_BT, _ = rows(ours[1], [text], 512)
    assert tokens_BT[0].tolist() == their_tokenizer(text)["input_ids"]


def test_sentence_vectors_are_those_of_transformers(ours, theirs, their_tokenizer):
    """Sentences of several lengths in one batch: the mean must leave padding out."""
    texts = [*SENTENCES, *ODD[:3], ODD[4]]
    mine, wanted = vectors(ours, texts), their_vectors(theirs, their_tokenizer, texts)
    worst = float((mine - wanted).abs().max())
    print(f"\nlargest difference of {mine.numel()} components: {worst:.1e}")
    assert worst < 1e-5


def test_what_is_written_is_the_same_for_transformers(ours, theirs, their_tokenizer, tmp_path):
    api.save(*ours, tmp_path / "written")
    again = transformers.BertModel.from_pretrained(tmp_path / "written").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    wanted = their_vectors(theirs, their_tokenizer, SENTENCES)
    assert torch.equal(their_vectors(again, tokenizer, SENTENCES), wanted)


def test_a_sentence_alone_has_the_vector_that_it_has_among_others(ours):
    together = vectors(ours, SENTENCES)
    alone = torch.cat([vectors(ours, [text]) for text in SENTENCES])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_sentences_that_mean_the_same_are_nearer_than_others(ours):
    likeness = vectors(ours, SENTENCES) @ vectors(ours, SENTENCES).T
    pairs = list(itertools.combinations(range(len(SENTENCES)), 2))
    same = [float(likeness[a, b]) for a, b in pairs if a // 2 == b // 2]
    other = [float(likeness[a, b]) for a, b in pairs if a // 2 != b // 2]
    print(f"\nsame meaning {min(same):.3f} and more, another {max(other):.3f} and less")
    assert min(same) > max(other) + 0.2


def test_plain_text_never_becomes_a_mark(ours):
    tokens_BT, _ = rows(ours[1], [ODD[3]], 512)
    marks = {ours[1].backend.token_to_id(word) for word in ("[CLS]", "[SEP]", "[MASK]")}
    assert not marks & set(tokens_BT[0, 1:-1].tolist())
