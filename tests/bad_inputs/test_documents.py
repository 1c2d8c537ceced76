# ruff: noqa: E501  (tables are read by rows)
"""Bad documents, cases 1 to 14, 17, 18 and 20 to 23: the fault is named, or skipped and listed."""

import gzip
import io
import json
import re
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bad_inputs.command_line import (
    Accepted,
    Refused,
    accept,
    call,
    check_kept,
    check_line,
    names,
    refuse,
    rows,
    snapshot,
)
from tests.bad_inputs.layouts import (
    CORPUS,
    GOOD,
    NOTE,
    SKIP,
    documents,
    good_documents,
    line,
    only,
    put,
)

A, B, C = "first kept text", "second kept text", "third kept text"
WAY = r".*bad_lines: skip.*"  # every fault of a line may be skipped
DEEP = 1_000_000


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none")
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def numbered(count: int) -> str:
    """So many JSON lines, none equal, that do not pack well."""
    return "".join(
        line(f"document {n} of {hash((n, n * n)) & 0xFFFFFFFF:08x}") for n in range(count)
    )


def bad(content: str | bytes, name: str = "bad.jsonl"):
    """Good documents and one bad file."""
    return documents({name: content})


PARQUET = parquet(pa.table({"text": [A, B]}))
GZIP = gzip.compress(numbered(400).encode(), mtime=0)
ZSTD = zstd(numbered(400).encode())

REFUSED = [
    # 1: a corrupt line
    Refused(1, "cut-brace", bad(line(A) + '{"text": "cut"\n'), CORPUS, 3, r"docs/bad\.jsonl:2:15: not JSON.*; " + WAY),
    Refused(1, "cut-string", bad(line(A) + '{"text": "cut\n' + line(B)), CORPUS, 3, r"docs/bad\.jsonl:2:10: not JSON.*; " + WAY),
    # 2: not an object
    Refused(2, "list", bad(line(A) + "[]\n"), CORPUS, 3, r"docs/bad\.jsonl:2: expected an object with the key 'text', got a list; " + WAY),
    Refused(2, "number", bad(line(A) + "42\n"), CORPUS, 3, r"docs/bad\.jsonl:2: expected an object with the key 'text', got a number; " + WAY),
    Refused(2, "null", bad(line(A) + "null\n"), CORPUS, 3, r"docs/bad\.jsonl:2: expected an object with the key 'text', got null; " + WAY),
    # 3: the text key is missing
    Refused(3, "misspelt", bad('{"txet": "x", "id": 7}\n'), CORPUS, 3, r"docs/bad\.jsonl:1: no key 'text' \(keys: txet, id\); set text_key: txet.*"),
    Refused(3, "missing", bad(line(A) + '{"id": 7}\n'), CORPUS, 3, r"docs/bad\.jsonl:2: no key 'text' \(keys: id\); set text_key.*"),
    Refused(3, "no-keys", bad("{}\n"), CORPUS, 3, r"docs/bad\.jsonl:1: no key 'text' \(keys: none\); set text_key.*"),
    # 4: the text is no string
    Refused(4, "number", bad('{"text": 7}\n'), CORPUS, 3, r"docs/bad\.jsonl:1:text: expected a string, got a number; " + WAY),
    Refused(4, "list", bad(line(A) + '{"text": ["x"]}\n'), CORPUS, 3, r"docs/bad\.jsonl:2:text: expected a string, got a list; " + WAY),
    Refused(4, "null", bad('{"text": null}\n'), CORPUS, 3, r"docs/bad\.jsonl:1:text: expected a string, got null; " + WAY),
    # 5: an invalid byte
    Refused(5, "json-line", bad(line(A).encode() + b'{"text": "caf\xe9"}\n'), CORPUS, 3, r"docs/bad\.jsonl:2:byte 13: invalid UTF-8 \(byte 0xe9\); " + WAY),
    Refused(5, "text-file", bad(b"one\ncaf\xe9 au lait\n", "bad.txt"), CORPUS, 3, r"docs/bad\.txt:2:byte 3: invalid UTF-8 \(byte 0xe9\); .*iconv.*"),
    # 6: UTF-16
    Refused(6, "utf16-json", bad(line(A).encode("utf-16")), CORPUS, 3, r"docs/bad\.jsonl: looks like UTF-16, not UTF-8; convert it: iconv.*"),
    Refused(6, "utf16-text", bad("some text".encode("utf-16"), "bad.txt"), CORPUS, 3, r"docs/bad\.txt: looks like UTF-16.*; convert it: iconv.*"),
    Refused(6, "utf16-unmarked", bad(line(A).encode("utf-16-le")), CORPUS, 3, r"docs/bad\.jsonl: looks like UTF-16LE.*; convert it: iconv.*"),
    # 8: half of a surrogate pair
    Refused(8, "lone-surrogate", bad('{"text": "ab\\ud800"}\n'), CORPUS, 3, r"docs/bad\.jsonl:1:text: lone surrogate \\ud800 at character 3.*; " + WAY),
    # 10: nothing there
    Refused(10, "empty-folder", only({}), CORPUS, 3, r".*no documents in \S*docs.*; .+"),
    Refused(10, "empty-file", only({"empty.jsonl": ""}), CORPUS, 3, r".*no documents in empty\.jsonl; .+"),
    Refused(10, "blank-lines", only({"blank.jsonl": "\n \n\n"}), CORPUS, 3, r".*no documents in blank\.jsonl; .+"),
    Refused(10, "empty-text", only({"empty.txt": ""}), CORPUS, 3, r".*no documents left.*empty 1.*; .+"),
    Refused(10, "all-bad", only({"bad.jsonl": "[]\n"}), SKIP, 3, r".*no documents in bad\.jsonl \(1 rejects, first: bad\.jsonl:1: .*; .+"),
    Refused(10, "init-empty", only({}), "init docs", 3, r".*no documents in \S*docs.*; .+"),
    # 13: a line above the limit
    Refused(13, "long-line", bad(line(A) + line("x" * (1 << 20))), f"{CORPUS} corpus.max_document_bytes=1KiB", 3, r"docs/bad\.jsonl:2\S*: longer than max_document_bytes \(1024\).*; raise max_document_bytes or split.*"),
    Refused(13, "long-file", bad("word " * (1 << 18), "bad.txt"), f"{CORPUS} corpus.max_document_bytes=1KiB", 3, r"docs/bad\.txt\S*: longer than max_document_bytes \(1024\).*; raise max_document_bytes or split.*"),
    # 14: deep nesting
    Refused(14, "lists", bad(line(A) + '{"text": ' + "[" * DEEP + "]" * DEEP + "}\n"), CORPUS, 3, r"docs/bad\.jsonl:2: nested too deep; " + WAY),
    Refused(14, "objects", bad('{"a":' * DEEP + "1" + "}" * DEEP + "\n"), CORPUS, 3, r"docs/bad\.jsonl:1: nested too deep; " + WAY),
    Refused(14, "unclosed", bad("[" * DEEP + "\n"), CORPUS, 3, r"docs/bad\.jsonl:1: nested too deep; " + WAY),
    # 17: another key in a later file
    Refused(17, "two-files", bad('{"content": "x"}\n', "later.jsonl"), CORPUS, 3, r"docs/later\.jsonl:1: no key 'text' \(keys: content\), unlike good\.jsonl; set text_key: content.*"),
    Refused(17, "two-kinds", bad(parquet(pa.table({"content": ["x"]})), "later.parquet"), CORPUS, 3, r"docs/later\.parquet: no column 'text' \(columns: content\), unlike good\.jsonl; set text_key.*"),
    # 18: compressed files that end early
    Refused(18, "gzip", bad(GZIP[: len(GZIP) // 2], "bad.jsonl.gz"), CORPUS, 3, r"docs/bad\.jsonl\.gz: ends early after [1-9]\d+ documents; fetch or pack it again.*"),
    Refused(18, "zstd", bad(ZSTD[: len(ZSTD) * 3 // 4], "bad.jsonl.zst"), CORPUS, 3, r"docs/bad\.jsonl\.zst: ends early.*; fetch or pack it again.*"),
    Refused(18, "gzip-text", bad(gzip.compress(b"some words " * 99)[:-9], "bad.txt.gz"), CORPUS, 3, r"docs/bad\.txt\.gz: ends early.*; fetch or pack it again.*"),
    # 20: a name that lies
    Refused(20, "gz-is-text", bad(line(A), "bad.jsonl.gz"), CORPUS, 3, r"docs/bad\.jsonl\.gz: is not gzip \(it is text\); .*rename it.*"),
    Refused(20, "zst-is-gzip", bad(GZIP, "bad.jsonl.zst"), CORPUS, 3, r"docs/bad\.jsonl\.zst: is not Zstandard \(it is gzip\); .*rename it.*"),
    Refused(20, "parquet-is-json", bad(line(A), "bad.parquet"), CORPUS, 3, r"docs/bad\.parquet: is not Parquet \(it is text\); .*rename it.*"),
    Refused(20, "json-is-gzip", bad(GZIP, "bad.jsonl"), CORPUS, 3, r"docs/bad\.jsonl: is gzip, not plain text; rename it.*"),
    Refused(20, "empty-gz", bad(b"", "bad.jsonl.gz"), CORPUS, 3, r"docs/bad\.jsonl\.gz: is not gzip \(it is empty\); .+"),
    # 21: tables
    Refused(21, "missing-column", bad(parquet(pa.table({"title": ["x"], "body": ["y"]})), "a.parquet"), CORPUS, 3, r"docs/a\.parquet: no column 'text' \(columns: title, body\); set text_key.*"),
    Refused(21, "nested-column", bad(parquet(pa.table({"id": [1], "text": [{"en": "x"}]})), "a.parquet"), CORPUS, 3, r"docs/a\.parquet:text: expected a column of strings, got struct<en: string> \(columns: id, text\); set text_key.*"),
    Refused(21, "number-column", bad(parquet(pa.table({"text": [1, 2]})), "a.parquet"), CORPUS, 3, r"docs/a\.parquet:text: expected a column of strings, got int64 \(columns: text\); set text_key.*"),
    Refused(21, "corrupt-footer", bad(PARQUET[:-30] + b"\xff" * 22 + PARQUET[-8:], "a.parquet"), CORPUS, 3, r"docs/a\.parquet: is damaged Parquet .*; fetch or write it again.*"),
    Refused(21, "no-footer", bad(PARQUET[:-4], "a.parquet"), CORPUS, 3, r"docs/a\.parquet: is damaged Parquet .*; fetch or write it again.*"),
    Refused(21, "lying-footer", bad(PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1", "a.parquet"), CORPUS, 3, r"docs/a\.parquet: is damaged Parquet .*; fetch or write it again.*"),
    # 22: a folder for a file and the reverse
    Refused(22, "folder-as-recipe", good_documents, "run docs", 2, r"docs: a folder is not a recipe; .*stemma init docs.*"),
    Refused(22, "file-as-folder", good_documents, "init docs/note.md", 2, r"docs/note\.md: not a folder; name the folder.*"),
    Refused(22, "file-as-out", good_documents, f"{CORPUS} out=tiny.yaml", 2, r"tiny\.yaml: a file, not a folder; choose another.*"),
    Refused(22, "file-as-run", good_documents, "report docs/note.md", 2, r"docs/note\.md: not a run folder; name a folder.*"),
    Refused(22, "out-below-a-file", good_documents, f"{CORPUS} out=tiny.yaml/a/b", 2, r"tiny\.yaml/a/b: a file, not a folder; choose another.*"),
    Refused(22, "below-a-file", good_documents, f"{CORPUS} corpus.inputs=[docs/note.md/more]", 2, r"\S*docs/note\.md/more: no such file or folder; .+"),
    # 23: nothing of this name
    Refused(23, "path", good_documents, f"{CORPUS} corpus.inputs=[docs/god.jsonl]", 2, r"\S*docs/god\.jsonl: no such file or folder; did you mean \S*good\.jsonl"),
    Refused(23, "folder", good_documents, f"{CORPUS} corpus.inputs=[dcos]", 2, r"\S*dcos: no such file or folder; did you mean docs"),
    Refused(23, "glob", good_documents, f"{CORPUS} 'corpus.inputs=[\"docs/*.txt\"]'", 2, r"\S*docs/\*\.txt: matches nothing; in docs there is: .*note\.md.*"),
    Refused(23, "recipe", good_documents, "run tinny.yaml", 2, r"tinny\.yaml: no such recipe; did you mean tiny\.yaml"),
    Refused(23, "endless-name", good_documents, "run " + "x" * 2000, 2, r"…x+: the name is too long; name a file.*"),
    Refused(23, "endless-model", good_documents, "generate --prompt x " + "x" * 2000, 2, r"…x+: the name is too long; name a file.*"),
    Refused(23, "init", good_documents, "init dcos", 2, r"dcos: .*; .*docs.*"),
]  # fmt: skip

ACCEPTED = [
    # every fault of a line, skipped: all other documents are kept, and only this line is listed
    Accepted(1, "skip", bad(line(A) + '{"text": "cut"\n' + line(B)), SKIP, (A, B), (("bad.jsonl", 2, "not JSON"),)),
    Accepted(2, "skip", bad("[]\n" + line(A) + "42\nnull\n"), SKIP, (A,), tuple(("bad.jsonl", n, "expected an object") for n in (1, 3, 4))),
    Accepted(3, "skip", bad('{"txet": "x"}\n' + line(A)), SKIP, (A,), (("bad.jsonl", 1, "no key 'text'"),)),
    Accepted(4, "skip", bad(line(A) + '{"text": 7}\n'), SKIP, (A,), (("bad.jsonl", 2, "expected a string"),)),
    Accepted(5, "skip", bad(line(A).encode() + b'{"text": "\xff"}\n' + line(B).encode()), SKIP, (A, B), (("bad.jsonl", 2, "invalid UTF-8"),)),
    Accepted(6, "skip", bad("text".encode("utf-16"), "bad.txt"), SKIP, (), (("bad.txt", None, "UTF-16"),)),
    Accepted(6, "mark-json", bad(b"\xef\xbb\xbf" + line(A).encode()), CORPUS, (A,)),
    Accepted(6, "mark-text", bad(b"\xef\xbb\xbf" + A.encode(), "bad.txt"), CORPUS, (A,)),
    # 7: NUL is kept as it is
    Accepted(7, "nul-json", bad(line("a\0b\0\0c")), CORPUS, ("a\0b\0\0c",)),
    Accepted(7, "nul-text", bad(b"before\0after\0", "bad.txt"), CORPUS, ("before\0after\0",)),
    Accepted(8, "skip", bad('{"text": "ab\\ud800"}\n' + line(A)), SKIP, (A,), (("bad.jsonl", 1, "lone surrogate"),)),
    Accepted(8, "whole-pair", bad('{"text": "\\ud83d\\ude00"}\n'), CORPUS, ("\U0001f600",)),
    # 9: an empty document is dropped, counted and listed
    Accepted(9, "empty", bad(line("") + line("  \t\n") + line(A)), CORPUS, (A,), dropped=("empty", "empty")),
    Accepted(9, "empty-file", bad("", "bad.txt"), CORPUS, (), dropped=("empty",)),
    Accepted(10, "one-of-many", bad("", "empty.jsonl"), CORPUS, ()),
    # 11 and 12: line ends
    Accepted(11, "no-line-end", bad((line(A) + line(B)).rstrip("\n")), CORPUS, (A, B)),
    Accepted(11, "no-line-end-gz", bad(gzip.compress((line(A) + line(B)).rstrip("\n").encode()), "bad.jsonl.gz"), CORPUS, (A, B)),
    Accepted(12, "carriage-return", bad(line(A).replace("\n", "\r\n") + line(B)), CORPUS, (A, B)),
    Accepted(12, "line-separator", bad('{"text": "a\u2028b\u0085c\u2029d\\r\\n"}\n' + line(B)), CORPUS, ("a\u2028b\u0085c\u2029d\r\n", B)),
    Accepted(12, "text-file", bad(b"a\r\nb\xe2\x80\xa8c\r\n", "bad.txt"), CORPUS, ("a\r\nb\u2028c\r\n",)),
    Accepted(13, "skip", bad(line(A) + line("x" * (1 << 21)) + line(B)), f"{SKIP} corpus.max_document_bytes=1KiB", (A, B), (("bad.jsonl", 2, "longer than"),)),
    Accepted(14, "skip", bad(line(A) + "[" * DEEP + "\n" + line(B)), SKIP, (A, B), (("bad.jsonl", 2, "nested too deep"),)),
    Accepted(17, "skip", bad('{"content": "x"}\n', "later.jsonl"), SKIP, (), (("later.jsonl", 1, "unlike good.jsonl"),)),
    Accepted(20, "skip", bad(line(A), "bad.jsonl.gz"), SKIP, (), (("bad.jsonl.gz", None, "is not gzip"),)),
    Accepted(21, "skip", bad(parquet(pa.table({"title": ["x"]})), "a.parquet"), SKIP, (), (("a.parquet", None, "no column"),)),
    # 22: a folder that is named like a file is a folder
    Accepted(22, "folder-named-file", documents({"deep.jsonl/a.jsonl": line(A)}), CORPUS, (A,)),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=names)
def test_refused(case, tmp_path):
    refuse(case, tmp_path)


@pytest.mark.parametrize("case", ACCEPTED, ids=names)
def test_accepted(case, tmp_path):
    accept(case, tmp_path, [*GOOD, NOTE])


@pytest.mark.parametrize("ending, packed", [("gz", GZIP), ("zst", ZSTD)], ids=["18-gz", "18-zst"])
def test_early_end_keeps_what_came_before(ending, packed, tmp_path):
    """The documents before the cut are kept, to the last whole line; the cut is listed."""
    documents({f"bad.jsonl.{ending}": packed[: len(packed) * 3 // 4]})(tmp_path)
    before = snapshot(tmp_path)
    outcome = call(tmp_path, SKIP)
    assert outcome.code == 0, outcome.err
    assert {k: v for k, v in snapshot(tmp_path).items() if k in before} == before
    corpus = tmp_path / "runs" / "tiny" / "corpus"
    texts = [row["text"] for row in rows(corpus / "train.jsonl")]
    whole = [json.loads(text)["text"] for text in numbered(400).splitlines()]
    count = len(texts) - len(GOOD) - 1
    assert texts[:count] == whole[:count] and texts[count:] == [*GOOD, NOTE]
    (reject,) = rows(corpus / "rejects.jsonl")
    assert reject["source"] == f"bad.jsonl.{ending}"
    assert re.fullmatch(rf"ends early( after {count} documents)?", reject["reason"])
    assert (count > 0) == ("after" in reject["reason"])
    assert any("rejects.jsonl" in text for text in outcome.warnings)


@pytest.mark.parametrize("policy", ["error", "skip"], ids=["13-error", "13-skip"])
def test_endless_line_is_never_held(policy, tmp_path):
    """64 MiB without a line end: the limit counts while reading, so memory stays small."""
    documents({"bad.jsonl": ""})(tmp_path)
    with open(tmp_path / "docs" / "bad.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"x" * 100)
        file.truncate(64 << 20)  # zeros, without room on the disk
    before = snapshot(tmp_path)
    command = f"{CORPUS} corpus.max_document_bytes=1KiB corpus.bad_lines={policy}"
    tracemalloc.start()
    try:
        outcome = call(tmp_path, command)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20
    if policy == "error":
        way = r"raise max_document_bytes or split.*"
        check_line(outcome, 3, r"docs/bad\.jsonl:1: longer than max_document_bytes.*; " + way)
        check_kept(before, tmp_path)
    else:
        assert outcome.code == 0, outcome.err
        (reject,) = rows(tmp_path / "runs" / "tiny" / "corpus" / "rejects.jsonl")
        assert (reject["source"], reject["line"]) == ("bad.jsonl", 1)


def test_init_counts_what_it_cannot_read(tmp_path):
    """`init` of a folder without one readable file says which endings it passed over."""
    put(tmp_path / "docs" / "table.csv", "a,b\n")
    before = snapshot(tmp_path)
    outcome = call(tmp_path, "init docs")
    check_line(outcome, 3, r"no documents in .*\(1 other files: \.csv 1\); known endings.*")
    assert snapshot(tmp_path) == before
