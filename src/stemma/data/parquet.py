"""Parquet: the one text column of a table, a few rows at a time.

Only the text column is read, in small batches, so memory follows the size of a row group's
pages and not of the file. Values are checked as bytes: the format says UTF-8, but neither
writers nor pyarrow enforce it. The footer's sizes are held against the expansion limit before a
row group is unpacked.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from stemma.data.flaws import Flaw
from stemma.data.jsonl import missing_key, too_long
from stemma.data.streams import HARMLESS, open_unchanged, sniff

ROWS = 256  # rows in one batch


def read_rows(
    path: Path, text_key: str, *, limit: int, max_expansion: int, name: str
) -> Iterator[tuple[int, str | Flaw]]:
    """Row number (from 1) and text of every row, or the row's flaw.

    Raises Flaw where the file is no Parquet, is damaged, or has no such text column.
    """
    with open_unchanged(path, name) as file:
        _check_ends(file)
        row = 0
        try:
            table = pq.ParquetFile(file)
            _check_column(table.schema_arrow, text_key)
            for group in range(table.num_row_groups):
                _check_expansion(table.metadata.row_group(group), text_key, max_expansion)
                batches = table.iter_batches(ROWS, row_groups=[group], columns=[text_key])
                for batch in batches:
                    for value in _as_bytes(batch.column(0)):
                        row += 1
                        yield row, _text(value, text_key, row, limit)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise _damaged(str(error)) from error


def _check_ends(file: BinaryIO) -> None:
    """A Parquet file begins and ends with four fixed bytes; its index is at the end."""
    head = file.read(64)
    size = file.seek(0, 2)
    file.seek(max(0, size - 4))
    tail = file.read(4)
    file.seek(0)
    if tail == b"PARE":
        raise Flaw("is encrypted Parquet", fix="decrypt it first", ends_file=True)
    if sniff(head) != "Parquet":
        found = sniff(head) if head else "empty"
        fix = "rename it to what it is"
        raise Flaw(f"is not Parquet (it is {found})", fix=fix, ends_file=True)
    if tail != b"PAR1" or size < 12:
        raise _damaged("it ends early, without its footer")


def _check_column(schema: pa.Schema, text_key: str) -> None:
    count = schema.names.count(text_key)
    if count == 0:
        flaw = missing_key(text_key, schema.names, "column")
        flaw.ends_file = True
        raise flaw
    if count > 1:
        raise Flaw(f"{count} columns have this name", key=text_key, ends_file=True)
    found = schema.field(text_key).type
    if not _is_text(found.value_type if types.is_dictionary(found) else found):
        columns = ", ".join(schema.names[:8])
        what = f"expected a column of strings, got {found} (columns: {columns})"
        fix = "set text_key to a column of strings"
        raise Flaw(what, key=text_key, fix=fix, ends_file=True)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
        )
    )


def _check_expansion(group: Any, text_key: str, max_expansion: int) -> None:
    for index in range(group.num_columns):
        column = group.column(index)
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        if column.path_in_schema == text_key and unpacked > max(HARMLESS, max_expansion * packed):
            what = f"unpacks to more than {max_expansion} times its size ({packed} to {unpacked})"
            raise Flaw(what, fix="raise max_expansion if you trust the file", ends_file=True)


def _as_bytes(column: pa.Array) -> Iterator[bytes | None]:
    """The values as raw bytes, one at a time, whatever string type the column has."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    for value in column.cast(pa.large_binary()):
        yield value.as_py()


def _text(value: bytes | None, text_key: str, row: int, limit: int) -> str | Flaw:
    if value is None:
        return Flaw("expected a string, got null", line=row, key=text_key)
    if len(value) > limit:
        return too_long(limit, line=row, key=text_key, size=len(value))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8 (byte 0x{value[error.start]:02x} at byte {error.start} of the text)"
        return Flaw(what, line=row, key=text_key)


def _damaged(what: str) -> Flaw:
    first = re.split(r"[\r\n]", what, maxsplit=1)[0][:120]
    return Flaw(f"is damaged Parquet ({first})", fix="fetch or write it again", ends_file=True)
