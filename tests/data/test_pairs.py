"""Sentence pairs: line n belongs to line n, or it is said which file is short."""

import gzip

import pytest

from stemma.core.errors import DataError
from stemma.data.pairs import PairCounts, read_lines, read_pairs


def read(folder, sources=("a.en",), targets=("a.de",)):
    counts = PairCounts()
    pairs = list(
        read_pairs([folder / s for s in sources], [folder / t for t in targets], folder, counts)
    )
    return pairs, counts


def test_lines_pair_up_and_empty_sides_are_counted(tmp_path):
    (tmp_path / "a.en").write_bytes("\ufeffone\n two \n\nfour\r\nfive".encode())
    (tmp_path / "a.de").write_bytes("eins\nzwei\ndrei\n\nfünf\n".encode())
    pairs, counts = read(tmp_path)
    assert [(p.source, p.target, p.line) for p in pairs] == [
        ("one", "eins", 1),
        ("two", "zwei", 2),
        ("five", "fünf", 5),
    ]
    assert (counts.lines, counts.pairs, counts.empty) == (5, 3, 2)


def test_every_line_can_be_read_with_its_place_also_the_empty_ones(tmp_path):
    (tmp_path / "a.en").write_text("one\n\nthree\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n\n")
    (tmp_path / "b.en").write_text("four\n")
    (tmp_path / "b.de").write_text("vier\n")
    sides = [[tmp_path / f"{name}.{side}" for name in "ab"] for side in ("en", "de")]
    lines = list(read_lines(*sides, tmp_path))
    assert [(p.source, p.target, p.place, p.whole) for p in lines] == [
        ("one", "eins", "a.en:1", True),
        ("", "zwei", "a.en:2", False),
        ("three", "", "a.en:3", False),
        ("four", "vier", "b.en:1", True),
    ]


def test_packed_files_and_several_files_are_read_in_turn(tmp_path):
    (tmp_path / "a.en.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "b.en").write_text("three\n")
    (tmp_path / "b.de").write_text("drei\n")
    pairs, _ = read(tmp_path, ("a.en.gz", "b.en"), ("a.de", "b.de"))
    assert [p.target for p in pairs] == ["eins", "zwei", "drei"]


@pytest.mark.parametrize(
    ("english", "german", "words"),
    [
        (b"one\ntwo\n", b"eins\n", "a.en: 2 lines, but a.de has 1"),
        (b"one\n", b"eins\nzwei\ndrei\n", "a.en: 1 lines, but a.de has 3"),
        (b"one\ntw\xffo\n", b"eins\nzwei\n", "a.en:2:byte 2: not UTF-8"),
        (b"one\n", b"\x1f\x8b rest", "a.de: is gzip, not plain text"),
        (b"x" * (1 << 20) + b"y", b"eins\n", "a.en:1: longer than 1048576 bytes"),
    ],
    ids=["target short", "source short", "bytes", "packed", "long"],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, english, german, words):
    (tmp_path / "a.en").write_bytes(english)
    (tmp_path / "a.de").write_bytes(german)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert words in str(caught.value)


def test_another_number_of_files_is_refused(tmp_path):
    (tmp_path / "a.en").write_text("one\n")
    (tmp_path / "a.de").write_text("eins\n")
    with pytest.raises(DataError, match="1 source files but 2 target files"):
        read(tmp_path, ("a.en",), ("a.de", "a.de"))
