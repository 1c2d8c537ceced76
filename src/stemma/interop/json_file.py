"""JSON from strangers: bounded before it is parsed, strict while it is.

A file is refused by its size before it is read, and by its number of items before Python objects
are made of it: a hundred megabytes of "[],[]," would take gigabytes as lists. Repeated keys and
NaN, which Python's parser lets pass, are errors here, because two readers may then disagree.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from stemma.core.errors import ModelError
from stemma.core.files import resource_error

MAX_BYTES = 100_000_000
MAX_ITEMS = 5_000_000  # brackets, braces and commas; 100,000 tensors need about a million
DAMAGED = "download or export the model again"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} stands there twice")
        found[key] = value
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def parse_object(raw: bytes, *, place: object) -> dict[str, Any]:
    """Parse one JSON object from UTF-8 bytes.

    Raises ModelError, naming `place`, for bytes that are not UTF-8, text that is not JSON, nesting
    too deep for the parser, repeated names, too many items, or a value that is not an object.
    """
    items = sum(raw.count(sign) for sign in (b"[", b"{", b","))
    if items > MAX_ITEMS:
        what = f"JSON of {items} items, more than the {MAX_ITEMS} that are read"
        raise ModelError(what, place=place, fix=DAMAGED)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 at byte {error.start}"
        raise ModelError(what, place=place, fix=DAMAGED) from error
    try:
        value = json.loads(text, object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except RecursionError as error:
        raise ModelError("JSON nested too deep", place=place, fix=DAMAGED) from error
    except ValueError as error:  # JSONDecodeError, or one of the two above
        raise ModelError(f"not usable JSON ({error})", place=place, fix=DAMAGED) from error
    if not isinstance(value, dict):
        what = f"expected a JSON object, got {type(value).__name__}"
        raise ModelError(what, place=place, fix=DAMAGED)
    return value


def read_bounded(path: Path) -> bytes:
    """The bytes of a small file; ModelError above `MAX_BYTES` or where it is missing."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            what = f"{size} bytes, more than the {MAX_BYTES} that are read"
            raise ModelError(what, place=path, fix=DAMAGED)
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelError("no such file", place=path, fix=DAMAGED) from error
    except OSError as error:
        raise resource_error(error, path) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object, within the bounds of this module."""
    return parse_object(read_bounded(path), place=path)


def read_words(path: Path) -> str:
    """Read a small UTF-8 text file, within the bounds of this module."""
    try:
        return read_bounded(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"not UTF-8 at byte {error.start}", place=path, fix=DAMAGED) from error
