"""Labelled texts: read strictly, split so that nothing leaks, and counted to the last."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stemma.core.errors import DataError
from stemma.data.labelled import (
    Example,
    ExampleOptions,
    Passages,
    Split,
    cut,
    prepare,
    read_examples,
    read_passages,
    read_prepared,
)


def example(text, label, *, second=None, group=None, line=1):
    return Example(text, label, "a.jsonl", line, group or f"{text} {second}", second)


def many(count, labels="abc"):
    return [example(f"text {n}", labels[n % len(labels)], line=n) for n in range(count)]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, bad_lines="error"):
    rejects = []
    options = ExampleOptions(bad_lines=bad_lines)
    return list(read_examples([path], options, rejects.append, path.parent)), rejects


def sides(folder):
    return [list(read_prepared(folder / f"{name}.jsonl")) for name in ("train", "heldout")]


def test_lines_become_examples(tmp_path):
    rows = [
        {"text": "a cat", "label": " pet "},
        {"text": "a cat", "second": "sat", "label": "pet", "id": 7},
        {"text": "a", "second": None, "label": "b"},
    ]
    found, rejects = read(write(tmp_path / "a.jsonl", *rows))
    assert [(e.text, e.second, e.label, e.line) for e in found] == [
        ("a cat", None, "pet", 1),
        ("a cat", "sat", "pet", 2),
        ("a", None, "b", 3),
    ]
    assert not rejects and len({e.group for e in found}) == 3


BAD = {
    "no-label": ({"text": "a", "labels": "b"}, r"no key 'label' \(keys: text, labels\)"),
    "no-text": ({"label": "b"}, r"no key 'text' \(keys: label\)"),
    "number": ({"text": "a", "label": 3}, "expected a string, got a number"),
    "empty-text": ({"text": " \n", "label": "b"}, "a text that is empty"),
    "empty-second": ({"text": "a", "second": "", "label": "b"}, "a text that is empty"),
    "empty-label": ({"text": "a", "label": ""}, "a label that is empty"),
    "list": (["a", "b"], "expected an object with text and label, got a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_or_left_out(tmp_path, name):
    row, what = BAD[name]
    good = [{"text": text, "label": "y"} for text in "xz"]
    path = write(tmp_path / "a.jsonl", good[0], row, good[1])
    with pytest.raises(DataError, match=what) as refused:
        read(path)
    assert refused.value.place.startswith("a.jsonl:2")
    found, rejects = read(path, "skip")
    assert [e.text for e in found] == ["x", "z"] and [reject.line for reject in rejects] == [2]


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(DataError, match="no labelled texts in a.jsonl"):
        read(write(tmp_path / "a.jsonl", {"text": "a"}), "skip")


def test_every_example_is_on_one_side_and_counted(tmp_path):
    given = [*many(60), example("text 0", "a"), example("text 1", "c")]
    ledger = prepare(given, Split(fraction=0.25, seed=1), tmp_path)
    train, heldout = sides(tmp_path)
    assert ledger.balanced() and (ledger.read, len(train) + len(heldout)) == (62, 61)
    assert ledger.dropped == {"duplicate": 1} and ledger.disagreeing == 1
    assert not {e.text for e in train} & {e.text for e in heldout}
    counts = Counter(e.label for e in heldout)
    assert all(abs(counts[label] - 5) <= 1 for label in "abc")
    assert list(ledger.labels) == ["a", "b", "c"]
    assert sum(one["train"] for one in ledger.labels.values()) == len(train)


def test_more_examples_do_not_move_the_others(tmp_path):
    prepare(many(60), Split(fraction=0.25, seed=1), tmp_path / "few")
    prepare(many(72), Split(fraction=0.25, seed=1), tmp_path / "more")
    few, more = ({e.text for e in sides(tmp_path / n)[1]} for n in ("few", "more"))
    assert len(few - more) <= 3  # the share grows by whole texts; order is by hash


def test_groups_stay_together(tmp_path):
    given = [example(f"{n}", "ab"[n % 2], group=f"work {n % 8}") for n in range(80)]
    prepare(given, Split(fraction=0.25), tmp_path)
    train, heldout = sides(tmp_path)
    assert len(heldout) == 20 and not {e.group for e in train} & {e.group for e in heldout}


def test_a_rare_label_stays_in_training(tmp_path):
    given = [*many(20, "ab"), example("only one", "rare")]
    prepare(given, Split(fraction=0.5), tmp_path)
    train, heldout = sides(tmp_path)
    assert "rare" in {e.label for e in train} and "rare" not in {e.label for e in heldout}


def test_so_many_examples_of_all_labels_alike_and_the_same_held_out(tmp_path):
    given = [*many(90, "aab"), example("once", "c")]
    prepare(given, Split(fraction=0.2), tmp_path / "all")
    prepare(given, Split(fraction=0.2, examples=7), tmp_path / "few")
    prepare(given, Split(fraction=0.2, examples=9), tmp_path / "more")
    whole, few, more = (sides(tmp_path / name) for name in ("all", "few", "more"))
    assert whole[1] == few[1] == more[1]
    assert Counter(e.label for e in few[0]) == {"a": 3, "b": 3, "c": 1}
    assert {e.text for e in few[0]} < {e.text for e in more[0]} < {e.text for e in whole[0]}


def test_without_holdout_there_is_no_file(tmp_path):
    prepare(many(9), Split(fraction=0.3), tmp_path)
    assert (tmp_path / "heldout.jsonl").exists()
    prepare(many(9), Split(fraction=0), tmp_path)
    assert not (tmp_path / "heldout.jsonl").exists() and len(sides(tmp_path)[0]) == 9


def test_given_heldout_texts_that_are_trained_on_are_left_out(tmp_path):
    given = [example("text 0", "a"), example("new", "b")]
    ledger = prepare(many(9), Split(fraction=0.1), tmp_path, heldout=given)
    assert [e.text for e in sides(tmp_path)[1]] == ["new"] and ledger.balanced()
    assert ledger.dropped == {"held out, but in training": 1}


REFUSED = {
    "one-label": (many(8, "a"), None, "8|7 texts for training have only the label 'a'"),
    "too-few": (many(3), None, r"too few texts to hold out a part \(3, no two with one label\)"),
    "unknown-label": (many(9), [example("new", "d")], "the label 'd' is held out, and no training"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_and_writes_nothing(tmp_path, name):
    given, heldout, what = REFUSED[name]
    with pytest.raises(DataError, match=what):
        prepare(given, Split(fraction=0.1), tmp_path, heldout=heldout)
    assert not list(tmp_path.glob("*.jsonl"))


PLAY = "A\nfirst line\n\nB\nsecond\n\n\n\nC\nthird line of it\n\nD\nend\n"


def test_passages_are_whole_paragraphs_with_their_first_lines():
    found = list(cut(PLAY, 16))
    assert found == [(1, "A\nfirst line\n\nB\nsecond"), (9, "C\nthird line of it")]
    lines = PLAY.split("\n")
    assert all(lines[line - 1] == text.split("\n")[0] for line, text in found)


def test_passages_of_windows_files_are_the_same():
    plain, windows = (list(cut(text, 16)) for text in (PLAY, PLAY.replace("\n", "\r\n")))
    assert [(line, text.replace("\r", "")) for line, text in windows] == plain


def passages_of(folder: Path, **labels: str):
    files = sorted(folder.glob("*.txt"))
    chosen = Passages(labels=labels, characters=20)
    return list(read_passages(files, chosen, ExampleOptions(), lambda reject: None, folder))


def test_labels_stand_in_the_names_of_files(tmp_path, caplog):
    for name in ("king_john", "king_lear", "twelfth_night", "sonnets"):
        (tmp_path / f"{name}.txt").write_text(f"the {name} is a long text\n\n" * 2)
    found = passages_of(tmp_path, history="john", play="king|night")
    assert Counter((e.source, e.label) for e in found) == {
        ("king_john.txt", "history"): 2,
        ("king_lear.txt", "play"): 2,
        ("twelfth_night.txt", "play"): 2,
    }
    assert {e.group for e in found} == {e.source for e in found}
    assert "1 files fit no label" in caplog.text


def test_a_label_that_fits_no_file_is_refused(tmp_path):
    (tmp_path / "king_john.txt").write_text("some text that is long enough\n")
    with pytest.raises(DataError, match=r"no file's name fits the label 'comedy'"):
        passages_of(tmp_path, history="john", comedy="night")


def test_a_label_that_is_no_expression_is_refused():
    with pytest.raises(ValueError, match=r"a: '\(' is no regular expression"):
        Passages(labels={"a": "(", "b": "x"})


def test_passages_can_be_held_out_apart_from_their_files(tmp_path):
    for name in "ab":
        text = "\n\n".join(f"passage {number} of the text {name}" for number in range(8))
        (tmp_path / f"{name}.txt").write_text(text)
    chosen = Passages(labels={"a": "^a", "b": "^b"}, characters=20, apart="passages")
    files = sorted(tmp_path.glob("*.txt"))
    found = list(read_passages(files, chosen, ExampleOptions(), lambda reject: None, tmp_path))
    assert len({e.group for e in found}) == 16
    ledger = prepare(found, Split(fraction=0.25), tmp_path / "out")
    assert (ledger.train, ledger.heldout) == (12, 4)
