"""Fewer labels after foretelling: the experiment in a much smaller form."""

import json
import random

from experiments.bert import (
    ARMS,
    CLASSES,
    PLAIN,
    claims,
    draw,
    language,
    sweep,
    table,
    write_inputs,
)

TINY = {"labels": [8], "steps": 2, "tune": 1, "sentences": 300}


def test_words_are_of_one_class_and_of_one_kind():
    nouns, verbs = language(random.Random(0))
    every = [word for words in (nouns, verbs) for name in CLASSES for word in words[name]]
    assert len(set(every)) == len(every) == 4 * 60


def test_no_labelled_noun_is_scored_and_nothing_around_it_tells_its_class(tmp_path):
    write_inputs(tmp_path, 100, 0)
    sides = []
    for name in ("labelled", "unseen"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        found = {row["text"].split()[-1]: row["label"] for row in rows}
        assert {text for text in (row["text"].rsplit(" ", 1)[0] for row in rows)} <= {
            plain.removesuffix(" {}") for plain in PLAIN
        }
        assert sorted(set(found.values())) == sorted(CLASSES)
        sides.append(found)
    assert not sides[0].keys() & sides[1].keys()
    assert len(sides[0]) == len(sides[1]) == 100
    nouns, verbs = language(random.Random(0))
    told = {noun: name for name in CLASSES for noun in nouns[name]}
    assert told == sides[0] | sides[1]
    lines = (tmp_path / "sentences.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    doing = [text.split() for text in texts if text.split()[-1] not in told]
    assert len(doing) > 50
    assert all(words[2] in verbs[told[words[1]]] for words in doing)


def test_the_stages_run_and_the_numbers_make_a_table_and_a_picture():
    numbers = sweep([0], TINY, say=lambda line: None)
    assert not claims(numbers)["pretrained tells at least 0.2 more of the unseen nouns right, "
                               "at every number of labels"]  # fmt: skip
    assert len(table(numbers).splitlines()) == 2 and len(draw(numbers).axes) == 1
    json.dumps(numbers, allow_nan=False)


def made(pretrained, scratch, model=0.5):
    accuracy = {arm: {"8": share} for arm, share in zip(ARMS, (pretrained, scratch), strict=True)}
    hidden = {"model": model, "unigram": 0.2}
    runs = [{"seed": 0, "hidden_tokens": hidden, "accuracy": accuracy}]
    return {"settings": {"labels": [8]}, "guess": 0.25, "runs": runs}


def test_claims_fail_where_nothing_was_learned_or_the_labels_leak():
    assert all(claims(made(0.8, 0.25)).values())
    assert list(claims(made(0.4, 0.25)).values()) == [True, False, True]
    assert list(claims(made(0.9, 0.5)).values()) == [True, True, False]
    assert list(claims(made(0.8, 0.25, model=0.1)).values()) == [False, True, True]
