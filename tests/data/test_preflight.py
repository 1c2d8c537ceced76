"""The look before training: what fits, what is cut at a turn's end, and a count of every token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.core.errors import DataError
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import with_chatml
from stemma.data.conversations import Example
from stemma.data.messages import Conversation, Message
from stemma.data.preflight import Preflight, checked, ends_trained, fitted
from stemma.data.renderer import Renderer, Sample

TEXT = "the cat sat on the mat and the dog ran to the tree and saw a blue moon"


def sample_of(flags, end_ids=(9,), **notes):
    """A sample whose trained stretches each close with the end token 9."""
    trained = tuple(flag == "1" for flag in flags)
    ids = tuple(
        9 if on and not after else 1
        for on, after in zip(trained, (*trained[1:], False), strict=True)
    )
    given = {"seam": False, "doubled_bos": False, "unrolled": False} | notes
    return Sample(ids, trained, frozenset(end_ids), **given)


@pytest.mark.parametrize(
    ("flags", "context", "length"),
    [
        ("00110", 4, 5),  # five tokens take four places
        ("00110", 3, 4),  # what follows the answer's end is cut off
        ("00110", 2, 0),  # the answer itself does not fit
        ("0011001110", 9, 10),
        ("0011001110", 8, 9),
        ("0011001110", 7, 4),  # the second answer does not fit: it is left out whole
        ("0011001110", 3, 4),
    ],
)
def test_conversation_ends_after_its_last_whole_answer_that_fits(flags, context, length):
    assert fitted(sample_of(flags), context) == length


def test_answer_that_lost_its_end_is_noticed():
    assert ends_trained(sample_of("0011001110"), 10)
    assert not ends_trained(sample_of("0011001110"), 8)
    assert not ends_trained(sample_of("00110", end_ids=(8,)), 5)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(with_chatml(train_tokenizer([TEXT], vocab_size=280)))


def example(*texts):
    roles = ("user", "assistant")
    said = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return Example(Conversation(said), "talk.jsonl", 3, "messages")


@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=6), min_size=1, max_size=6),
    context=st.integers(8, 120),
)
def test_every_rendered_token_is_trained_masked_or_cropped(renderer, lengths, context):
    words = TEXT.split()
    examples = [
        example(*(" ".join((words * 3)[:n]) for n in turns[: len(turns) // 2 * 2]))
        for turns in lengths
    ]
    seen = Preflight()
    rows = list(checked(examples, renderer, context, seen))
    assert seen.balanced() and seen.to_json()["balanced"]
    assert seen.conversations == len(examples)
    assert seen.samples == len(rows) == len(examples) - seen.dropped.total()
    assert seen.trained == sum(sum(row.counted) for row in rows)
    assert all(len(row.ids) <= context + 1 and row.counted[-2:] != (False, False) for row in rows)
    assert seen.untrained_end == 0


def test_ends_are_trained_and_told(renderer):
    seen = Preflight()
    row = next(checked([example("the cat", "sat", "on", "the mat")], renderer, 64, seen))
    end = renderer.tokenizer.eos_id
    assert seen.end_ids == {end}
    ends = [place for place, token in enumerate(row.ids) if token == end]
    assert [row.counted[place] for place in ends] == [False, True, False, True]
    assert [row.counted[place + 1] for place in ends] == [False] * 4  # the line end behind it


def test_what_does_not_fit_is_left_out_by_reason(renderer):
    seen = Preflight()
    rows = list(checked([example(TEXT * 3, "yes"), example("a", "b")], renderer, 24, seen))
    assert len(rows) == 1
    assert dict(seen.dropped) == {"no answer fits the context": 1}
    assert "1 left out: no answer fits the context" in seen.words()


REFUSING = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}"
REFUSING += "{% endif %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
REFUSING += "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"


def test_conversation_that_the_template_refuses_is_named_or_left_out(renderer):
    strict = Renderer(renderer.tokenizer, REFUSING)
    examples = [example("no", "yes"), example("a", "b")]
    with pytest.raises(DataError, match=r"^talk\.jsonl:3: the chat template refuses it: not "):
        list(checked(examples, strict, 64, Preflight()))
    seen = Preflight()
    assert len(list(checked(examples, strict, 64, seen, skip=True))) == 1
    assert dict(seen.dropped) == {"refused by the template": 1}
