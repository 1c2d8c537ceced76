"""Curation: the books balance, no text is on both sides, and the share comes out near."""

import json
import logging
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stemma.core.errors import DataError, ResourceError
from stemma.data.curate import CurateOptions, curate, read_jsonl_documents, read_sizes
from stemma.data.documents import Document, ReadOptions, RejectFile, read_documents
from stemma.data.heldout import Holdout, choose, cut_text

PLAYS = r"([^/]+?)_gut(_f)?\.txt$"


def run(folder, documents, *, drop_duplicates=True, **holdout):
    """Curate documents; the ledger and the lines of the three files."""
    options = CurateOptions(holdout=Holdout(**holdout), drop_duplicates=drop_duplicates)
    paths = [folder / f"{name}.jsonl" for name in ("train", "heldout", "dropped")]
    ledger = curate(iter(documents), options, *paths)
    lines = [list(read_jsonl_documents(path)) if path.exists() else [] for path in paths]
    return ledger, *lines


def works(*sizes, name="work{}.txt"):
    """One document a size, each with its own letter and lines of ten bytes."""
    return [
        Document((f"{index:03d} {'x' * 5}\n" * size)[: size * 10], name.format(index), None)
        for index, size in enumerate(sizes)
    ]


@st.composite
def corpora(draw):
    """Few distinct texts, sources and works, so that copies, blanks and editions are common."""
    alphabet = st.text(alphabet="aé \n", max_size=12)
    entries = draw(st.lists(st.tuples(alphabet, st.sampled_from("PQRST")), min_size=1, max_size=25))
    return [Document(text, f"{work}/{i}.txt", i) for i, (text, work) in enumerate(entries)]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    documents=corpora(),
    fraction=st.sampled_from([0.0, 0.1, 0.3, 0.49]),
    group=st.sampled_from([None, "^(.)/"]),
    drop_duplicates=st.booleans(),
    seed=st.integers(0, 3),
)
def test_every_document_and_byte_is_accounted_for_and_on_one_side(
    tmp_path_factory, documents, fraction, group, drop_duplicates, seed
):
    folder = tmp_path_factory.mktemp("curated")
    chosen = {"fraction": fraction, "group": group, "seed": seed}
    try:
        ledger, train, heldout, dropped = run(
            folder, documents, drop_duplicates=drop_duplicates, **chosen
        )
    except DataError:  # nothing but blanks, or one text too short to be cut
        solid = {document.text for document in documents if document.text.strip()}
        assert not solid or fraction > 0
        assert not (folder / "train.jsonl").exists()
        return
    assert ledger.balanced() and ledger.to_json()["balanced"]

    # The files agree with the ledger ...
    kept = train + heldout
    assert ledger.train.documents == len(train) and ledger.dropped.total() == len(dropped)
    assert ledger.heldout.documents == len(heldout) - ledger.cut.documents
    assert ledger.train.bytes == sum(len(line["text"].encode()) for line in train)
    assert ledger.heldout.bytes == sum(len(line["text"].encode()) for line in heldout)
    assert all(line["bytes"] == len(line["text"].encode()) for line in kept)

    # ... and hold every document read: the parts of a cut one, put together, are its text.
    parts = defaultdict(str)
    for line in kept:
        parts[line["id"]] += line["text"]
    reasons = {line["id"]: line["reason"] for line in dropped}
    assert sorted(parts.keys() | reasons.keys()) == list(range(len(documents)))
    assert not parts.keys() & reasons.keys()
    assert all(documents[number].text == text for number, text in parts.items())
    for line in dropped:
        text = documents[line["id"]].text
        copy = documents[line["duplicate_of"]].text if line["reason"] == "duplicate" else None
        assert text == copy if copy is not None else not text.strip()

    # No text and no work straddles the split, except where the one that is cut must.
    whole = [[line for line in side if not line.get("split")] for side in (train, heldout)]
    assert not {line["text"] for line in whole[0]} & {line["text"] for line in whole[1]}
    if group:
        train_works, heldout_works = ({line["source"][0] for line in side} for side in whole)
        assert not train_works & heldout_works
    assert bool(heldout) == (fraction > 0) and train


def test_two_editions_of_a_play_stay_together(tmp_path):
    names = [f"{play}_gut{end}.txt" for play in "abcdefghij" for end in ("", "_f")]
    documents = [Document(f"{name}\n" * 100, f"plays/{name}", None) for name in names]
    ledger, train, heldout, _ = run(tmp_path, documents, fraction=0.3, group=PLAYS)
    count = Counter(line["source"][:7] for line in heldout)
    assert sorted(count.values()) == [2, 2, 2] and len(train) == 14
    assert (ledger.groups, ledger.heldout_groups) == (10, 3)


def test_choice_depends_on_seed_and_names_and_not_on_the_order_of_reading(tmp_path):
    documents = works(*[10] * 20)

    def heldout_of(documents, seed):
        return {line["source"] for line in run(tmp_path, documents, fraction=0.2, seed=seed)[2]}

    first = heldout_of(documents, 0)
    assert len(first) == 4 and heldout_of(documents[::-1], 0) == first
    assert len({frozenset(heldout_of(documents, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("sizes", "fraction", "held"),
    [
        ([10, 900, 90], 0.1, [0, 2]),  # the huge one would overshoot
        ([900, 10, 90], 0.1, [1, 2]),
        ([100, 100, 100, 100, 100], 0.1, [0]),  # half a work is wanted: one is as near as none
        ([500, 500], 0.1, [0]),  # at least one, though it is far too much
        ([700, 500, 600], 0.05, [1]),  # then the smallest
        ([10] * 10, 0.3, [0, 1, 2]),
        ([100] * 5, 0.3, [0, 1]),  # 100 and 200 are as near to 150: the larger is taken
    ],
)
def test_whole_groups_come_as_near_to_the_share_as_their_order_allows(sizes, fraction, held):
    assert choose(sizes, fraction) == (held, None, 0.0)


def test_one_document_is_cut_at_a_line_end(tmp_path):
    (document,) = works(1000)
    ledger, (train,), (heldout,), _ = run(tmp_path, [document], fraction=0.1)
    assert train["text"] + heldout["text"] == document.text
    assert train["text"].endswith("\n") and len(heldout["text"]) == 1000
    assert train["split"] and heldout["split"] and train["id"] == heldout["id"]
    report = ledger.to_json()
    assert report["split"] and report["balanced"]
    assert report["read"] == {"documents": 1, "bytes": 10000}
    assert report["train"] == {"documents": 1, "bytes": 9000}
    assert report["heldout"] == {"documents": 0, "bytes": 1000}
    assert report["cut"] == {"documents": 1, "bytes": 1000}


def test_both_editions_of_the_only_work_are_cut(tmp_path):
    documents = [
        Document("line\n" * 100, "a_gut.txt", None),
        Document("Line\n" * 200, "a_gut_f.txt", 1),
    ]
    ledger, train, heldout, _ = run(tmp_path, documents, fraction=0.2, group=PLAYS)
    assert [len(line["text"]) for line in train] == [400, 800]
    assert [len(line["text"]) for line in heldout] == [100, 200]
    assert ledger.cut.documents == 2


def test_a_document_that_dwarfs_the_rest_is_cut_so_that_the_share_comes_out(tmp_path):
    ledger, _, heldout, _ = run(tmp_path, works(5000, 3), fraction=0.1)
    assert ledger.heldout.bytes / ledger.read.bytes == pytest.approx(0.1, rel=0.01)
    assert [line.get("split", False) for line in heldout] == [True, False]


def test_share_that_whole_works_cannot_reach_is_said_aloud(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "stemma"):
        run(tmp_path, works(100, 100), fraction=0.1, group="^(nothing)")
    assert "held out 1000 of 2000 bytes" in caplog.text
    assert "matches no source" in caplog.text


@pytest.mark.parametrize(
    ("text", "share", "parts"),
    [
        ("one\ntwo\nthree\n", 0.4, ("one\ntwo\n", "three\n")),
        ("a" * 50 + "\n" + "b" * 49, 0.5, ("a" * 50 + "\n", "b" * 49)),
        ("\n" + "word " * 20, 0.1, ("\n" + "word " * 18, "word " * 2)),  # no line end is near
        ("x" * 100, 0.1, ("x" * 90, "x" * 10)),
        ("ab", 0.01, ("a", "b")),
        ("a", 0.5, None),
        ("a \n", 0.4, None),
    ],
)
def test_cut_is_at_the_nearest_line_end_else_space_else_anywhere(text, share, parts):
    assert cut_text(text, share) == parts


def test_copies_that_are_kept_stay_on_one_side(tmp_path):
    documents = works(*[10] * 10)
    copies = [Document(document.text, f"copy/{document.source}", 1) for document in documents]
    ledger, train, heldout, _ = run(
        tmp_path, documents + copies, fraction=0.2, drop_duplicates=False
    )
    assert (len(train), len(heldout), ledger.groups) == (16, 4, 10)
    assert not {line["text"] for line in train} & {line["text"] for line in heldout}


@pytest.mark.parametrize(
    "documents",
    [
        works(*[10] * 9) + works(10, name="copy.txt") * 11,
        works(*[10] * 11, 500) + works(10, name="b0/y.txt") + works(300, name="b0/{}.txt"),
    ],
    ids=["many copies of one text", "a copy joins two works, and one of them goes on"],
)
def test_joined_works_count_with_all_their_bytes(tmp_path, documents):
    total = sum(len(document.text) for document in documents)
    for seed in range(12):
        ledger = run(
            tmp_path, documents, drop_duplicates=False, fraction=0.1, seed=seed, group="^(b.)/"
        )[0]
        assert abs(ledger.heldout.bytes - 0.1 * total) <= 50  # half of a small work


def test_what_is_dropped_is_listed_with_its_reason(tmp_path):
    texts = ["first\nsecond\n", "", "first\nsecond\n", " \n\t", "third"]
    documents = [Document(text, "a.jsonl", line) for line, text in enumerate(texts, 1)]
    ledger, _, _, dropped = run(tmp_path, documents, fraction=0)
    assert [(line["line"], line["reason"], line.get("duplicate_of")) for line in dropped] == [
        (2, "empty", None),
        (3, "duplicate", 0),
        (4, "empty", None),
    ]
    assert ledger.to_json()["dropped"] == {"duplicate": 1, "empty": 2}
    assert ledger.dropped_bytes == 13 + 3 and not (tmp_path / "heldout.jsonl").exists()


def test_rejected_lines_are_in_the_ledger(tmp_path):
    source = tmp_path / "in" / "a.jsonl"
    source.parent.mkdir()
    source.write_bytes(b'{"text": "one"}\n{\n{"text": "two"}\n[]\n')
    paths = [tmp_path / name for name in ("train.jsonl", "heldout.jsonl", "dropped.jsonl")]
    with RejectFile(tmp_path / "rejects.jsonl") as rejects:
        documents = read_documents([source], ReadOptions(bad_lines="skip"), rejects, tmp_path)
        ledger = curate(documents, CurateOptions(), *paths, rejects=rejects)
    assert (ledger.rejected, ledger.read.documents) == (2, 2)
    assert [line["source"] for line in read_jsonl_documents(paths[0])] == ["in/a.jsonl"]


def test_nothing_left_and_nothing_to_hold_out_are_errors(tmp_path):
    with pytest.raises(DataError, match="no documents left: 2 read, 0 rejected, dropped: empty 2"):
        run(tmp_path, [Document(" ", "a", None), Document("", "b", None)])
    with pytest.raises(DataError, match="no documents left: 0 read"):
        run(tmp_path, [])
    with pytest.raises(DataError, match=r"too little text .*; .*holdout\.fraction: 0"):
        run(tmp_path, [Document("x", "a", None)])
    assert not (tmp_path / "train.jsonl").exists() and not (tmp_path / "heldout.jsonl").exists()


def test_an_error_while_reading_leaves_the_old_files(tmp_path):
    run(tmp_path, works(5, 5))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken():
        yield from works(7, 7)
        raise DataError("bad line", place="a.jsonl:3")

    with pytest.raises(DataError, match="a.jsonl:3: bad line"):
        run(tmp_path, broken())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_output_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        run(tmp_path / "file", works(5))


def test_curation_is_repeatable_to_the_byte(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, works(5, 50, 5, 5), fraction=0.2)
    for name in ("train.jsonl", "heldout.jsonl", "dropped.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0.5}, {"fraction": -0.1}, {"group": "("}, {"group": "abc"}]
)
def test_impossible_holdouts_are_refused(wrong):
    with pytest.raises(ValidationError):
        Holdout(**wrong)


def test_sizes_read_back_are_those_of_the_texts(tmp_path):
    documents = [Document("ä" * 9, "a", None), Document("b" * 7, "b", None)]
    run(tmp_path, documents, fraction=0.0)
    assert list(read_sizes(tmp_path / "train.jsonl")) == [18, 7]
    assert list(read_sizes(tmp_path / "heldout.jsonl")) == []


def test_reading_back_names_a_damaged_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": 0}) + "\n{")
    lines = read_jsonl_documents(path)
    assert next(lines) == {"id": 0}
    with pytest.raises(DataError, match=r"train\.jsonl:2: is damaged"):
        next(lines)
    with pytest.raises(DataError, match="does not exist"):
        list(read_jsonl_documents(tmp_path / "none.jsonl"))
