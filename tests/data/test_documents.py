"""Reading documents: every bad input names its place, and nothing good is lost.

The numbers in brackets are the rows of the table of bad inputs that drives these tests.
"""

import gzip
import json
import logging
import os
import tracemalloc
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stemma.core.errors import DataError, StemmaError, UsageError
from stemma.data.documents import (
    Document,
    ReadOptions,
    Reject,
    RejectFile,
    read_documents,
)
from stemma.data.jsonl import split_lines
from stemma.data.sources import find_files, format_of

GOOD = [b'{"text": "one"}', b'{"text": "two"}', b'{"text": "three"}']


def read(folder, *names, skip=False, **options):
    """Documents and rejects of some files, or of all files in name order."""
    files = [folder / name for name in names] or sorted(folder.iterdir())
    rejects: list[Reject] = []
    settings = ReadOptions(bad_lines="skip" if skip else "error", **options)
    return list(read_documents(files, settings, rejects.append, folder)), rejects


def texts(documents):
    return [document.text for document in documents]


def refusal(folder, *names, kind=DataError, **options):
    """The one-line message of the error that reading raises."""
    with pytest.raises(kind) as caught:
        read(folder, *names, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 300
    return message


# One bad line between good ones: (case, the line, what the error must say after file:line).
BAD_LINES = {
    "cut brace (1)": (b'{"text": "x"', ":2:13: not JSON"),
    "no comma (1)": (b'{"text": "x" "b": 1}', ":2:14: not JSON"),
    "control character (1)": (b'{"text": "a\tb"}', ":2:12: not JSON"),
    "two objects (1)": (b'{"text": "a"} {"text": "b"}', ":2:15: not JSON"),
    "array (2)": (b"[]", ":2: expected an object with the key 'text', got a list"),
    "number (2)": (b"42", ":2: expected an object with the key 'text', got a number"),
    "null (2)": (b"null", ":2: expected an object with the key 'text', got null"),
    "string (2)": (b'"text"', ":2: expected an object with the key 'text', got a string"),
    "misspelt key (3)": (b'{"txt": "x", "id": 1}', ":2: no key 'text' (keys: txt, id)"),
    "text is a number (4)": (b'{"text": 5}', ":2:text: expected a string, got a number"),
    "text is a list (4)": (b'{"text": ["x"]}', ":2:text: expected a string, got a list"),
    "text is null (4)": (b'{"text": null}', ":2:text: expected a string, got null"),
    "text is true (4)": (b'{"text": true}', ":2:text: expected a string, got true or false"),
    "text is an object (4)": (b'{"text": {}}', ":2:text: expected a string, got an object"),
    "invalid UTF-8 (5)": (b'{"text": "a\xffb"}', ":2:byte 11: invalid UTF-8 (byte 0xff)"),
    "cut UTF-8 (5)": (b'{"text": "\xe2\x82"}', ":2:byte 10: invalid UTF-8 (byte 0xe2)"),
    "lone surrogate (8)": (b'{"text": "ab\\ud800"}', ":2:text: lone surrogate \\ud800"),
    "nested (14)": (b"[" * 100_000, ":2: nested too deep"),
    "nested objects (14)": (b'{"a":' * 100_000, ":2: nested too deep"),
    "NaN (16)": (b'{"text": "x", "score": NaN}', ":2:score: NaN and infinite"),
    "minus infinity (16)": (b'{"text": "x", "score": -Infinity}', ":2:score: NaN and infinite"),
    "1e999 (16)": (b'{"text": "x", "score": 1e999}', ":2:score: NaN and infinite"),
    "NaN in lists (16)": (b'{"text": "x", "s": [1, [NaN]]}', ":2:s: NaN and infinite"),
    "NaN below (16)": (b'{"text": "x", "m": {"s": NaN}}', ":2:s: NaN and infinite"),
    "bare NaN (16)": (b"NaN", ":2: expected an object"),
    "5000 digits (16)": (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", ":2: not readable as JSON"),
}


@pytest.mark.parametrize(("line", "says"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named_and_skipping_it_keeps_every_other(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD[0], line, *GOOD[1:]]))
    message = refusal(tmp_path, "a.jsonl")
    assert f"a.jsonl{says}" in message and "bad_lines: skip" in message
    documents, rejects = read(tmp_path, "a.jsonl", skip=True)
    assert documents == [
        Document("one", "a.jsonl", 1),
        Document("two", "a.jsonl", 3),
        Document("three", "a.jsonl", 4),
    ]
    assert [(reject.source, reject.line) for reject in rejects] == [("a.jsonl", 2)]


def test_reject_carries_the_column_or_the_byte(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD[0] + b'\n{"text" 1}\n{"\xff": 1}\n')
    _, (column, byte) = read(tmp_path, skip=True)
    assert (column.line, column.column, column.byte) == (2, 9, None)
    assert (byte.line, byte.column, byte.byte) == (3, None, 2)


def test_missing_key_error_offers_the_nearest_key(tmp_path):  # (3)
    (tmp_path / "a.jsonl").write_bytes(b'{"Text": "x", "title": "y"}')
    assert "set text_key: Text" in refusal(tmp_path).replace("'", "")
    documents, _ = read(tmp_path, text_key="title")
    assert texts(documents) == ["y"]


def test_byte_order_mark_is_dropped(tmp_path):  # (6)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD[0])
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone")
    assert texts(read(tmp_path)[0]) == ["one", "one"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.txt.gz"])
def test_wide_encodings_are_named_with_the_way_to_convert(tmp_path, name, encoding):  # (6)
    data = '{"text": "héllo wörld"}\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    message = refusal(tmp_path)
    assert "looks like UTF-" in message and "iconv -f UTF-" in message


def test_nul_bytes_are_kept(tmp_path):  # (7)
    (tmp_path / "a.txt").write_bytes(b"a\0b\0\0c")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a\\u0000b"}')
    assert texts(read(tmp_path)[0]) == ["a\0b\0\0c", "a\0b"]


def test_empty_text_is_a_document(tmp_path):  # (9)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n{"text": "  "}\n')
    assert texts(read(tmp_path)[0]) == ["", "  "]


@pytest.mark.parametrize("data", [b"", b"\n\n \n"])
def test_file_without_documents_is_an_error(tmp_path, data):  # (10)
    (tmp_path / "a.jsonl").write_bytes(data)
    assert "no documents in a.jsonl" in refusal(tmp_path)
    assert "no documents in a.jsonl" in refusal(tmp_path, skip=True)


def test_skipping_everything_is_an_error_that_names_the_first_fault(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{\n[\n")
    message = refusal(tmp_path, skip=True)
    assert "2 rejects, first: a.jsonl:1:2: not JSON" in message


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_lines_end_at_line_feeds_only(block):  # (11, 12)
    data = "a\u2028b\r\n\n\u0085c\rd\nlast".encode()
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    lines = [line.decode() for _, line in split_lines(blocks, 100)]
    assert lines == ["a\u2028b", "", "\u0085c\rd", "last"]


def test_carriage_returns_and_blank_lines_do_not_matter(tmp_path):  # (11, 12)
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join([GOOD[0], b"", *GOOD[1:]]))
    (tmp_path / "b.jsonl").write_text('{"text": "a\u2028b\u0085c"}\n', encoding="utf-8")
    documents, _ = read(tmp_path)
    assert texts(documents) == ["one", "two", "three", "a\u2028b\u0085c"]
    assert [document.line for document in documents] == [1, 3, 4, 1]


@pytest.mark.parametrize("block", [1, 4, 5, 6, 100])
def test_lines_above_the_limit_are_reported_once_and_read_over(block):  # (13)
    data = b"12345\n123456\n\n1234567890123\n12\n123456"
    blocks = [data[start : start + block] for start in range(0, len(data), block)]
    expected = [(1, b"12345"), (2, None), (3, b""), (4, None), (5, b"12"), (6, None)]
    assert list(split_lines(blocks, 5)) == expected


def test_a_huge_line_is_never_held(tmp_path):  # (13)
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(GOOD[0] + b"\n")
        file.truncate(64 << 20)  # a sparse line of NUL bytes
        file.seek(0, 2)
        file.write(b"\n" + GOOD[1])
    tracemalloc.start()
    documents, rejects = read(tmp_path, skip=True, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(documents) == ["one", "two"] and [reject.line for reject in rejects] == [2]
    assert peak < 16 << 20
    message = refusal(tmp_path, max_document_bytes=1 << 20)
    assert "a.jsonl:2: longer than max_document_bytes (1048576)" in message


def test_limit_counts_the_bytes_of_the_text(tmp_path):  # (13)
    (tmp_path / "a.jsonl").write_text('{"text": "ééé"}\n{"text": "éééé"}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("1234567")
    documents, rejects = read(tmp_path, skip=True, max_document_bytes=6)
    assert texts(documents) == ["ééé"]
    assert [(r.source, r.line, r.reason[-7:]) for r in rejects] == [
        ("a.jsonl", 2, "8 bytes"),
        ("b.txt", None, "7 bytes"),
    ]


def test_repeated_key_warns_once_and_the_last_value_counts(tmp_path, caplog):  # (15)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "text": "b"}\n' * 2)
    with caplog.at_level(logging.WARNING, "stemma"):
        assert texts(read(tmp_path)[0]) == ["b", "b"]
    assert [record.getMessage() for record in caplog.records] == [
        "a.jsonl:1: the key text comes twice; its last value counts"
    ]


def test_file_with_another_schema_names_both_files(tmp_path):  # (17)
    (tmp_path / "a.jsonl").write_bytes(GOOD[0])
    (tmp_path / "b.jsonl").write_bytes(b'{"content": "x"}\n')
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    message = refusal(tmp_path, "a.jsonl", "b.jsonl")
    assert "b.jsonl:1: no key 'text' (keys: content), unlike a.jsonl" in message
    message = refusal(tmp_path, "a.jsonl", "c.parquet")
    assert "c.parquet: no column 'text' (columns: body), unlike a.jsonl" in message


def test_only_the_first_line_of_a_file_speaks_of_another_schema(tmp_path):  # (17)
    (tmp_path / "a.jsonl").write_bytes(GOOD[0])
    (tmp_path / "b.jsonl").write_bytes(b'{"content": "x"}\n{"content": "y"}\n')
    (tmp_path / "c.jsonl").write_bytes(GOOD[0] + b'\n{"content": "y"}\n')
    _, rejects = read(tmp_path, skip=True)
    assert ["unlike a.jsonl" in reject.reason for reject in rejects] == [True, False, False]


def many_lines(count):
    """JSON lines that do not pack well, so that a cut falls into the middle of them."""
    noise = [os.urandom(30).hex() for _ in range(count)]
    return b"".join(b'{"text": "%d %s"}\n' % (i, noise[i].encode()) for i in range(count))


def pack(data, name):
    if name.endswith(".gz"):
        return gzip.compress(data, 6)
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("members", [1, 3])
def test_packed_files_read_as_if_unpacked(tmp_path, name, members):
    data = many_lines(1000)
    (tmp_path / "plain.jsonl").write_bytes(data * members)
    (tmp_path / name).write_bytes(pack(data, name) * members)
    plain, packed = read(tmp_path, "plain.jsonl")[0], read(tmp_path, name)[0]
    assert texts(packed) == texts(plain) and len(plain) == 1000 * members


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_archive_that_ends_early_keeps_all_whole_lines_before_its_end(tmp_path, name, keep):  # (18)
    data = many_lines(5000)
    packed = pack(data, name)
    cut = packed[: int(len(packed) * keep)]
    (tmp_path / name).write_bytes(cut)
    documents, rejects = read(tmp_path, skip=True) if keep > 0.4 else ([], [])
    if not documents:  # less than one block of Zstandard holds nothing that can be unpacked
        assert "ends early" in refusal(tmp_path)
        return
    kept = len(documents)
    assert texts(documents) == [json.loads(line)["text"] for line in data.splitlines()[:kept]]
    assert 5000 * keep * 0.6 < kept < 5000
    if name.endswith(".gz"):
        assert kept == zlib.decompressobj(31).decompress(cut).count(b"\n")
    assert [reject.reason for reject in rejects] == [f"ends early after {kept} documents"]
    message = refusal(tmp_path)
    assert f"{name}: ends early after {kept} documents" in message


def test_zstd_cut_after_its_last_byte_but_one_loses_no_unpacked_line(tmp_path):  # (18)
    # Flushed after every 100 lines, a frame without its end mark holds every line complete.
    path = tmp_path / "a.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for _ in range(40):
            file.write(many_lines(100))
            file.flush()
    path.write_bytes(path.read_bytes()[:-3])
    documents, rejects = read(tmp_path, skip=True)
    assert len(documents) == 4000
    assert [reject.reason for reject in rejects] == ["ends early after 4000 documents"]


def test_damage_inside_an_archive_is_found(tmp_path):  # (18)
    data = bytearray(gzip.compress(many_lines(100)))
    data[-6] ^= 1  # the check sum
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    assert "a.jsonl.gz: is damaged (CRC check failed" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.zst", "a.jsonl.gz"])
def test_bomb_is_stopped_by_its_ratio(tmp_path, name):  # (19)
    (tmp_path / "0.txt").write_text("good")
    (tmp_path / name).write_bytes(pack(b" " * (17 << 20), name))
    limits = {"max_document_bytes": 1 << 40, "max_expansion": 500}
    assert f"{name}: unpacks to more than 500 times its size" in refusal(tmp_path, **limits)
    documents, rejects = read(tmp_path, skip=True, **limits)
    assert texts(documents) == ["good"] and rejects[0].source == name


def test_parquet_bomb_is_stopped_before_it_is_unpacked(tmp_path):  # (19)
    table = pa.table({"text": [" " * (17 << 20)], "other": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert "a.parquet: unpacks to more than 1000 times its size" in refusal(tmp_path)


WRONG_CONTENT = {
    "text named gz": ("a.txt.gz", b"hello", "is not gzip (it is text)"),
    "empty gz": ("a.txt.gz", b"", "is not gzip (it is empty)"),
    "text named zst": ("a.jsonl.zst", GOOD[0], "is not Zstandard (it is text)"),
    "zstd named gz": ("a.txt.gz", pack(b"x", ".zst"), "is not gzip (it is Zstandard)"),
    "JSON named parquet": ("a.parquet", GOOD[0], "is not Parquet (it is text)"),
    "empty parquet": ("a.parquet", b"", "is not Parquet (it is empty)"),
    "short parquet": ("a.parquet", b"PAR1", "is damaged Parquet"),
    "gzip named text": ("a.txt", gzip.compress(b"x"), "is gzip, not plain text"),
    "zip named jsonl": ("a.jsonl", b"PK\x03\x04abc", "is a zip archive, not plain text"),
    "parquet named jsonl": ("a.jsonl", b"PAR1\x15\x04\x15\x00", "is Parquet, not plain text"),
}


@pytest.mark.parametrize(("name", "data", "says"), WRONG_CONTENT.values(), ids=WRONG_CONTENT)
def test_content_must_be_what_the_name_promises(tmp_path, name, data, says):  # (20)
    (tmp_path / name).write_bytes(data)
    assert f"{name}: {says}" in refusal(tmp_path)


def test_a_text_may_begin_like_an_archive(tmp_path):
    (tmp_path / "a.txt").write_text("PAR1 and BZh are only letters, as is %PDF-")
    assert len(read(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'[{"text": "x"}]', "a JSON array"),
        (b'{\n "text": "x"\n}', "one JSON object over several lines"),
    ],
)
def test_json_files_are_refused_unless_they_are_lines(tmp_path, data, says):
    (tmp_path / "a.json").write_bytes(data)
    message = refusal(tmp_path)
    assert says in message and "jq -c" in message
    (tmp_path / "a.json").write_bytes(b"\n" + b"\n".join(GOOD))
    assert texts(read(tmp_path)[0]) == ["one", "two", "three"]


def test_parquet_gives_the_texts_of_json_lines(tmp_path):
    words = [f"text {i} é" for i in range(700)]
    columns = {
        "string": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "bytes": pa.array([word.encode() for word in words]),
        "dictionary": pa.array(words).dictionary_encode(),
        "a.b": pa.array(words),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=300)
    for key in columns:
        documents, _ = read(tmp_path, text_key=key)
        assert texts(documents) == words
        assert [document.line for document in documents] == list(range(1, 701))


def test_bad_rows_of_parquet_are_named_and_skipped(tmp_path):  # (4, 5, 13)
    column = pa.array([b"one", None, b"\xff", b"much too long", b"two"])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "a.parquet:2:text: expected a string, got null" in refusal(tmp_path)
    documents, rejects = read(tmp_path, skip=True, max_document_bytes=5)
    assert texts(documents) == ["one", "two"]
    assert [reject.line for reject in rejects] == [2, 3, 4]


def test_parquet_without_a_usable_text_column(tmp_path):  # (21)
    table = pa.table({"txt": ["x"], "nested": [{"a": 1}], "list": [["x"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(tmp_path)
    assert "no column 'text' (columns: txt, nested, list)" in message
    assert "set text_key: txt" in message
    assert "a.parquet:nested: expected a column of strings" in refusal(tmp_path, text_key="nested")
    assert "a.parquet:list: expected a column of strings" in refusal(tmp_path, text_key="list")


def test_parquet_with_a_damaged_footer_or_page(tmp_path):  # (21)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 50] * 9}), path, compression="gzip")
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:-8] + b"\xff\xff\xff\x7fPAR1", whole[:4] + b"\0" * 20):
        path.write_bytes(damaged)
        assert "a.parquet: is damaged Parquet" in refusal(tmp_path)
    path.write_bytes(whole[:30] + b"\xff" * 10 + whole[40:])
    assert "a.parquet: is damaged Parquet" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_invalid_bytes_of_a_text_are_placed_by_line_and_byte(tmp_path, name):  # (5)
    (tmp_path / name).write_bytes(b'{"text": "good"}\nab\xc3(c')
    assert f"{name}:2:byte 2: invalid UTF-8 (byte 0xc3)" in refusal(tmp_path)


def test_file_that_changes_or_goes_while_it_is_read(tmp_path):  # (26)
    for name, change in (
        ("a.jsonl", lambda path: path.write_bytes(GOOD[0])),
        ("b.jsonl", lambda path: path.unlink()),
        ("c.parquet", lambda path: path.unlink()),
    ):
        path = tmp_path / name
        if name.endswith("parquet"):
            pq.write_table(pa.table({"text": ["one", "two"]}), path)
        else:
            path.write_bytes(b"\n".join(GOOD * 3000))
        documents = read_documents([path], ReadOptions(), print, tmp_path)
        assert next(documents).text == "one"
        change(path)
        with pytest.raises(DataError, match=f"{name}: (changed|was removed) while it was read"):
            list(documents)


def test_reading_ends_at_the_consumer_s_will(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(GOOD))
    documents = read_documents([tmp_path / "a.jsonl"], ReadOptions(), print, tmp_path)
    next(documents)
    (tmp_path / "a.jsonl").unlink()
    documents.close()  # no complaint about a file that nobody reads any more


def test_folder_or_pipe_given_as_file_is_refused(tmp_path):  # (22, 25)
    (tmp_path / "a.txt").mkdir()
    os.mkfifo(tmp_path / "b.txt")
    assert "a.txt: not a regular file (is a folder)" in refusal(tmp_path, "a.txt", kind=UsageError)
    assert "b.txt: not a regular file" in refusal(tmp_path, "b.txt", kind=UsageError)


def test_reject_file_holds_one_line_for_each_reject(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD[0] + b"\n{\n" + GOOD[1] + b"\n[]\n")
    options = ReadOptions(bad_lines="skip")
    with RejectFile(tmp_path / "out" / "rejects.jsonl") as rejects:
        list(read_documents([tmp_path / "a.jsonl"], options, rejects, tmp_path))
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    assert rejects.count == len(lines) == 2
    assert json.loads(lines[0])["line"] == 2 and json.loads(lines[0])["column"] == 2
    assert json.loads(lines[1])["reason"].startswith("expected an object")


# Finding files


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names_of(root, *inputs):
    return [path.relative_to(root).as_posix() for path in find_files(inputs, root)]


def test_formats_go_by_the_ending():
    kinds = {name: format_of(Path(name)) for name in ("A.TXT", "a.jsonl.gz", "a.csv", "a", ".txt")}
    assert kinds["A.TXT"].kind == "text" and kinds["A.TXT"].compression == "none"
    assert (kinds["a.jsonl.gz"].kind, kinds["a.jsonl.gz"].compression) == ("jsonl", "gzip")
    assert kinds["a.csv"] is kinds["a"] is kinds[".txt"] is format_of(Path("a.parquet.gz")) is None


def test_folders_are_walked_in_order_and_other_files_are_counted(tmp_path, caplog):
    make(tmp_path, "d/b.txt", "d/a/z.md", "d/a.jsonl", "d/.h.txt", "d/.git/x.txt")
    make(tmp_path, "d/x.csv", "d/y.csv", "d/meta.json", "d/README")
    with caplog.at_level(logging.WARNING, "stemma"):
        assert names_of(tmp_path, "d") == ["d/a.jsonl", "d/a/z.md", "d/b.txt"]
    (record,) = caplog.records
    assert record.getMessage() == "skipped 4 files by their ending (.csv 2, no ending 1, .json 1)"


def test_globs_and_files_together_read_each_file_once(tmp_path, caplog):  # (27)
    make(tmp_path, "d/b.txt", "d/a.txt", "d/e/c.txt", "d/[x].txt", "d/.h.txt", "d/.g/x.txt")
    with caplog.at_level(logging.WARNING, "stemma"):
        assert names_of(tmp_path, "d/*.txt", "d/b.txt") == ["d/[x].txt", "d/a.txt", "d/b.txt"]
    assert "1 files are named more than once and read once; first: d/b.txt" in caplog.text
    assert names_of(tmp_path, "d/[x].txt") == ["d/[x].txt"]
    assert names_of(tmp_path, "d/**/*.txt") == ["d/[x].txt", "d/a.txt", "d/b.txt", "d/e/c.txt"]
    assert names_of(tmp_path, "d/*") == ["d/[x].txt", "d/a.txt", "d/b.txt", "d/e/c.txt"]
    assert names_of(tmp_path, str(tmp_path / "d/e/*")) == ["d/e/c.txt"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("shakspeare", "did you mean shakespeare"),
        ("shakespeare/hamelt.txt", "did you mean shakespeare/hamlet.txt"),
        ("shakspeare/hamlet.txt", "did you mean shakespeare"),
        ("Shakespeare/*.txt", "did you mean shakespeare"),
        ("shakespeare/*.tx", "in shakespeare there is: hamlet.txt"),
        ("shakespeare/hamlet.txt/x", "did you mean shakespeare/hamlet.txt"),
        ("qqqqqqq", "in . there is: shakespeare, notes"),
    ],
)
def test_missing_names_offer_the_nearest(tmp_path, name, near):  # (23)
    make(tmp_path, "shakespeare/hamlet.txt", "notes/n.txt")
    with pytest.raises(UsageError) as caught:
        find_files([name], tmp_path)
    assert str(caught.value).startswith(f"{name}: ") and str(caught.value).endswith(near)


def test_nothing_to_read_is_a_data_error(tmp_path):  # (10)
    (tmp_path / "empty").mkdir()
    make(tmp_path, "tables/a.csv")
    with pytest.raises(DataError, match="no documents in empty; known endings"):
        find_files(["empty"], tmp_path)
    with pytest.raises(DataError, match=r"no documents in tables \(1 other files: \.csv 1\)"):
        find_files(["tables"], tmp_path)
    with pytest.raises(UsageError, match=r"tables/a\.csv: unknown ending '\.csv'"):
        find_files(["tables/a.csv"], tmp_path)


def test_links_neither_loop_nor_leave_the_folder(tmp_path, caplog):  # (24)
    make(tmp_path, "d/a.txt", "d/.store/kept", "outside/secret.txt")
    links = {
        "d/loop": tmp_path / "d",
        "d/self.txt": tmp_path / "d/self.txt",
        "d/out": tmp_path / "outside",
        "d/out.txt": tmp_path / "outside/secret.txt",
        "d/gone.txt": tmp_path / "nowhere",
        "d/again.txt": tmp_path / "d/a.txt",
        "d/stored.txt": tmp_path / "d/.store/kept",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with caplog.at_level(logging.WARNING, "stemma"):
        assert names_of(tmp_path, "d") == ["d/a.txt", "d/stored.txt"]
        assert names_of(tmp_path, "d/**/*.txt")[:2] == ["d/a.txt", "d/out.txt"]
    assert "skipped 5 links" in caplog.text
    with pytest.raises(UsageError, match=r"gone\.txt: is a link to .*nowhere, which does not"):
        find_files(["d/gone.txt"], tmp_path)
    with pytest.raises(UsageError, match=r"self\.txt: is no usable path"):
        find_files(["d/self.txt"], tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/version", "pipe.txt"])
def test_pipes_devices_and_kernel_files_are_refused(tmp_path, name):  # (25)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UsageError, match="not a regular file"):
        find_files([name], tmp_path)


def test_strange_names_work_and_print_on_one_line(tmp_path):  # (28)
    names = [b"-x.txt", b"a\nb.jsonl", b"\xff\xfe.jsonl", b"n" * 251 + b".txt", b"\x1b[31m.jsonl"]
    for name in names:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(b'{"text": "x"}\n{')
    files = find_files(["."], tmp_path)
    assert len(files) == 5
    documents = list(read_documents(files, ReadOptions(bad_lines="skip"), bool, tmp_path))
    assert len(documents) == 5
    for document in documents:
        assert document.source.isprintable()
        document.source.encode()
    for name in names[1:3]:
        with pytest.raises(DataError) as caught:
            list(read_documents([Path(os.fsdecode(name))], ReadOptions(), bool, tmp_path))
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["n" * 300 + ".txt", "a\0b.txt", "a/**b/*.txt"])
def test_impossible_names_are_usage_errors(tmp_path, name):  # (28)
    make(tmp_path, "a/a.txt")
    with pytest.raises(StemmaError) as caught:
        find_files([name], tmp_path)
    assert caught.value.exit_code == 2 and str(caught.value).isprintable()
