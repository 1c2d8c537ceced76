"""The guess of `stemma init`: which key holds the text."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stemma.data.text_key import likely_text_key

ROWS = [{"id": "a1", "title": "short", "body": "a longer text " * 5, "n": 3}] * 4


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_key_called_text_wins_however_short(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(ROWS) + lines([{"text": "x"}]))
    assert likely_text_key([tmp_path / "a.jsonl"]) == "text"


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_otherwise_the_longest(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        raw = lines(ROWS).encode()
        path.write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    assert likely_text_key([path]) == "body"


def test_what_cannot_be_read_is_passed_over(tmp_path):
    for name, raw in (("a.jsonl", b"{broken\n"), ("b.jsonl.gz", b"plain"), ("c.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "d.md").write_text("# Title")
    assert likely_text_key(sorted(tmp_path.iterdir())) == "text"
