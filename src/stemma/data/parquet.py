"""Parquet: the text column of a table, or some columns as objects, a few rows at a time.

Only the wanted columns are read, in small batches, so memory follows the size of a row group's
pages and not of the file. Values are checked as bytes: the format says UTF-8, but neither
writers nor pyarrow enforce it. The footer's sizes are held against the expansion limit before a
row group is unpacked.
"""

import re
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from stemma.core.errors import printable
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
    row = 0
    with closing(_batches(path, _the_text_column(text_key), max_expansion, name)) as batches:
        for batch in batches:
            for value in _as_bytes(batch.column(0)):
                row += 1
                yield row, _text(value, text_key, row, limit)


def read_objects(
    path: Path, columns: Collection[str], *, max_expansion: int, name: str
) -> Iterator[tuple[int, dict[str, Any] | Flaw]]:
    """Row number (from 1) and values of every row, those of the named columns that exist.

    Raises Flaw where the file is no Parquet, is damaged, or has none of the columns.
    """
    row = 0
    with closing(_batches(path, _some_columns(columns), max_expansion, name)) as batches:
        for batch in batches:
            for index in range(batch.num_rows):
                row += 1
                yield row, _object(batch, index, row)


def _batches(
    path: Path, choose: Callable[[pa.Schema], list[str]], max_expansion: int, name: str
) -> Generator[pa.RecordBatch]:
    """The chosen columns of a table, `ROWS` rows at a time."""
    with open_unchanged(path, name) as file:
        _check_ends(file)
        try:
            table = pq.ParquetFile(file)
            columns = choose(table.schema_arrow)
            for group in range(table.num_row_groups):
                _check_expansion(table.metadata.row_group(group), columns, max_expansion)
                yield from table.iter_batches(ROWS, row_groups=[group], columns=columns)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise _damaged(str(error)) from error


def _the_text_column(text_key: str) -> Callable[[pa.Schema], list[str]]:
    def choose(schema: pa.Schema) -> list[str]:
        _check_column(schema, text_key)
        return [text_key]

    return choose


def _some_columns(wanted: Collection[str]) -> Callable[[pa.Schema], list[str]]:
    def choose(schema: pa.Schema) -> list[str]:
        found = [name for name in schema.names if name in wanted]
        if not found:
            columns = ", ".join(schema.names[:8])
            raise Flaw(
                f"no column of a known format (columns: {columns or 'none'})",
                fix=f"known columns: {', '.join(sorted(wanted))}",
                ends_file=True,
            )
        return found

    return choose


def _object(batch: pa.RecordBatch, index: int, row: int) -> dict[str, Any] | Flaw:
    try:
        return {name: batch.column(name)[index].as_py() for name in batch.schema.names}
    except ValueError as error:  # strings that are no UTF-8, dates that Python cannot hold
        return Flaw(f"is not readable: {printable(error)[:80]}", line=row)


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


def _check_expansion(group: Any, columns: Collection[str], max_expansion: int) -> None:
    for index in range(group.num_columns):
        column = group.column(index)
        unpacked, packed = column.total_uncompressed_size, column.total_compressed_size
        wanted = column.path_in_schema.split(".")[0] in columns or column.path_in_schema in columns
        if wanted and unpacked > max(HARMLESS, max_expansion * packed):
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
