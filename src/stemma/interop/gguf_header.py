"""GGUF files: everything before the tensors' values, read by us and believed only where it fits.

The format (version 3) is a magic, counts, typed keys and values, a table of tensors, padding, and
the tensors' bytes. Each length is compared with a limit and with what is left of the file before
one byte is read by its word, and the tensors' ranges must lie inside the file and apart, so a file
that lies costs no memory and no part of another tensor ends up in a weight. The file is read, not
mapped: one that shrinks meanwhile is a short read, not a signal.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stemma.core.errors import ModelError
from stemma.core.files import resource_error
from stemma.interop.json_file import DAMAGED

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # they differ in the byte order that they allow, of which we read one
MAX_HEADER = 100_000_000  # bytes before the tensors
MAX_KEYS = 65_536
MAX_TENSORS = 100_000
MAX_NAME = 65_535  # bytes of a key or of a tensor's name
MAX_STRING = 16 << 20  # bytes
MAX_ARRAY = 64 << 20  # entries
MAX_STRINGS = 4 << 20  # entries of all arrays of strings together: each becomes an object
MAX_AXES = 4
LEAST_KEY = 13  # bytes of the shortest entry: a name's length, a type, one byte of value
LEAST_TENSOR = 32

SCALARS: Mapping[int, np.dtype[Any]] = {  # the format's number of a type, how it is stored
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
FLOAT, BOOL, STRING, ARRAY = 6, 7, 8, 9
KINDS = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K"  # kinds of values we read
).split()


@dataclass(frozen=True)
class StoredTensor:
    """A line of the table of tensors.

    Attributes:
        kind: how the values are stored, by its name in the format ("Q4_1").
        shape: rows first, the fastest axis last, as everywhere outside the format.
        start, size: place in the file and length, in bytes.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """Metadata by key, and the tensors by name. Arrays of numbers are numpy arrays."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key, `default` where it is missing.

        A list is asked for by `list` for strings and by `np.ndarray` for numbers. Raises ModelError
        where the value is of another kind.
        """
        value = self.values.get(key, default)
        if value is not default and type(value) is not kind:
            what = f"wanted {kind.__name__}, got {type(value).__name__}"
            raise ModelError(what, place=f"{self.path}: {key}", fix=DAMAGED)
        return value

    def fault(self, key: str, what: str, fix: str = DAMAGED) -> ModelError:
        """The error about a key or a tensor."""
        return ModelError(what, place=f"{self.path}: {key}", fix=fix)

    def one(self, key: str, default: Any = None) -> Any:
        """The single value of a key; ModelError where it is a list."""
        value = self.values.get(key, default)
        if isinstance(value, list | np.ndarray):
            what = f"wanted one value, got {len(value)}"
            raise ModelError(what, place=f"{self.path}: {key}", fix="use another model")
        return value


class Cursor:
    """Reads on through a file, never past its end or past the limit of a header."""

    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self.file, self.size, self.path = file, size, path
        self.position = self.strings = 0
        self.entry = ""  # the key or tensor that an error is about

    def fail(self, what: str, fix: str = DAMAGED) -> NoReturn:
        raise ModelError(what, place=f"{self.path}{self.entry and f': {self.entry}'}", fix=fix)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        left = self.size - self.position
        if count > left:
            self.fail(f"truncated: wanted {count} bytes at {self.position}, got {left}")
        if self.position + count > MAX_HEADER:
            self.fail(f"more than {MAX_HEADER} bytes before the tensors")
        raw = self.file.read(count)
        if len(raw) != count:
            self.fail(f"truncated: wanted {count} bytes at {self.position}, got {len(raw)}")
        self.position += count
        return raw

    def number(self, form: str) -> int:
        """The next whole number, by struct's letter for it."""
        (value,) = struct.unpack("<" + form, self.take(struct.calcsize(form)))
        return int(value)

    def text(self, limit: int = MAX_STRING) -> str:
        """The next string."""
        length = self.number("Q")
        if length > limit:
            self.fail(f"text of {length} bytes, more than the {limit} that are read")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8 at byte {error.start} of a text")

    def at_most(self, count: int, limit: int, what: str, each: int) -> None:
        """Refuse a count that is above its limit, or that the rest of the file cannot hold."""
        if count > limit:
            self.fail(f"{count} {what}, more than the {limit} that are read")
        if count * each > self.size - self.position:
            left = self.size - self.position
            self.fail(f"truncated: {count} {what} do not fit into the {left} bytes that are left")


def read_header(path: Path) -> Header:
    """Read and check all of a GGUF file but the tensors' values.

    Raises ModelError that names the file, the key or tensor, and what was wanted and found.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _read(Cursor(file, size, path))
    except FileNotFoundError as error:
        raise ModelError("no such file", place=path, fix=DAMAGED) from error
    except OSError as error:
        raise resource_error(error, path) from error


def _read(cursor: Cursor) -> Header:
    _magic(cursor)
    num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
    cursor.at_most(num_tensors, MAX_TENSORS, "tensors", LEAST_TENSOR)
    cursor.at_most(num_keys, MAX_KEYS, "keys", LEAST_KEY)
    values: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text(MAX_NAME)
        cursor.entry = key
        if key in values:
            cursor.fail("the key stands there twice")
        values[key] = _value(cursor, cursor.number("I"))
        cursor.entry = ""
    alignment = _alignment(cursor, values)
    found = _table(cursor, num_tensors, alignment)
    begin = -(-cursor.position // alignment) * alignment
    tensors = {name: _placed(tensor, begin) for name, tensor in found.items()}
    _apart(cursor, tensors)
    return Header(cursor.path, values, tensors)


def _magic(cursor: Cursor) -> None:
    magic = cursor.take(min(4, cursor.size))
    if magic != MAGIC:
        cursor.fail(f"not a GGUF file: it begins with {magic!r}")
    version = cursor.number("I")
    if version & 0xFFFF == 0 and version:
        cursor.fail("numbers of the other byte order", "use the little-endian file of the model")
    if version not in VERSIONS:
        fix = "use a file of version 3; newer programs of llama.cpp rewrite old files"
        cursor.fail(f"GGUF of version {version}, wanted {' or '.join(map(str, VERSIONS))}", fix)


def _value(cursor: Cursor, kind: int) -> Any:
    if kind == ARRAY:
        return _array(cursor)
    if kind == STRING:
        return cursor.text()
    if kind == BOOL:
        return bool(_booleans(cursor, 1)[0])
    if kind == FLOAT:  # the shortest decimal of a float32 is what its writer meant: 1e-05
        return float(str(_numbers(cursor, kind, 1)[0]))
    if kind in SCALARS:
        return _numbers(cursor, kind, 1)[0].item()
    cursor.fail(f"a value of the unknown type {kind}")


def _array(cursor: Cursor) -> Any:
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == ARRAY:
        cursor.fail("an array of arrays, which no key of a model needs")
    if kind not in SCALARS and kind not in (BOOL, STRING):
        cursor.fail(f"an array of the unknown type {kind}")
    smallest = 8 if kind == STRING else 1 if kind == BOOL else SCALARS[kind].itemsize
    cursor.at_most(count, MAX_ARRAY, "entries", smallest)
    if kind == STRING:
        cursor.strings += count
        if cursor.strings > MAX_STRINGS:
            cursor.fail(f"{cursor.strings} strings, more than the {MAX_STRINGS} that are read")
        return [cursor.text() for _ in range(count)]
    return _booleans(cursor, count) if kind == BOOL else _numbers(cursor, kind, count)


def _numbers(cursor: Cursor, kind: int, count: int) -> np.ndarray[Any, Any]:
    return np.frombuffer(cursor.take(count * SCALARS[kind].itemsize), SCALARS[kind])


def _booleans(cursor: Cursor, count: int) -> np.ndarray[Any, Any]:
    raw = np.frombuffer(cursor.take(count), np.uint8)
    if (raw > 1).any():
        cursor.fail("a truth value that is neither 0 nor 1")
    return raw.astype(bool)


def _alignment(cursor: Cursor, values: Mapping[str, Any]) -> int:
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        cursor.entry = "general.alignment"
        cursor.fail(f"{alignment!r:.60} is no power of two")
    return alignment


def _table(cursor: Cursor, count: int, alignment: int) -> dict[str, StoredTensor]:
    """The lines of the table; `start` still counts from the first byte of the tensors."""
    tensors: dict[str, StoredTensor] = {}
    for _ in range(count):
        name = cursor.text(MAX_NAME)
        cursor.entry = name
        if name in tensors:
            cursor.fail("the name stands there twice")
        tensors[name] = _line(cursor, alignment)
        cursor.entry = ""
    return tensors


def _line(cursor: Cursor, alignment: int) -> StoredTensor:
    axes = cursor.number("I")
    if not 1 <= axes <= MAX_AXES:
        cursor.fail(f"{axes} axes, wanted 1 to {MAX_AXES}")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    number, start = cursor.number("I"), cursor.number("Q")
    if min(shape) < 1 or prod(shape) >= 2**63:
        cursor.fail(f"shape {list(shape)} is none of a tensor")
    kind = _kind(cursor, number)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if shape[-1] % block:
        cursor.fail(f"{kind} stores {block} values at once, a row has {shape[-1]}")
    if start % alignment:
        cursor.fail(f"begins at {start}, no multiple of the alignment {alignment}")
    return StoredTensor(kind, shape, start, prod(shape) // block * size)


def _kind(cursor: Cursor, number: int) -> str:
    try:
        kind = GGMLQuantizationType(number).name
    except ValueError:
        cursor.fail(f"values of the unknown type {number}")
    if kind not in KINDS:
        fix = f"use a file with values of {', '.join(KINDS)}"
        cursor.fail(f"values of type {kind} cannot be read", fix)
    return kind


def _placed(tensor: StoredTensor, begin: int) -> StoredTensor:
    return StoredTensor(tensor.kind, tensor.shape, begin + tensor.start, tensor.size)


def _apart(cursor: Cursor, tensors: Mapping[str, StoredTensor]) -> None:
    """No tensor may reach past the file's end, or into another one."""
    reached, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].start):
        cursor.entry, end = name, tensor.start + tensor.size
        if end > cursor.size:
            cursor.fail(f"truncated: it ends at byte {end} of a file of {cursor.size}")
        if tensor.start < reached:
            cursor.fail(f"overlaps with {before}: begins at {tensor.start}, wanted {reached}")
        reached, before = end, name
