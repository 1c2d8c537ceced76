"""JSON Lines: one object a line, read strictly and with the exact place of every fault.

Lines end at the byte 0x0A and nowhere else, so U+2028 and U+0085 inside a text stay inside it;
a carriage return before it is dropped. No more than one line is ever held, and never one above
the limit. Python's `json` is laxer than RFC 8259: NaN, infinities (1e999 too) and lone
surrogates are refused here; of repeated keys the last one counts, with one warning.
"""

import json
import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from stemma.core.errors import closest, printable
from stemma.data.flaws import Flaw

_NOT_FINITE = object()  # stands for NaN or an infinity until its key is known
_NAMES = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
}


def split_lines(blocks: Iterable[bytes], limit: int) -> Generator[tuple[int, bytes | None]]:
    """Number and bytes of every line, without its end; None for a line above `limit` bytes.

    A too long line is reported as soon as it passes the limit and is then read over, not held.

    >>> list(split_lines([b"a\\nb", b"c"], 10))
    [(1, b'a'), (2, b'bc')]
    """
    number, held, size = 1, bytearray(), 0
    for block in blocks:
        *ended, rest = block.split(b"\n")
        for piece in ended:
            if size <= limit:  # above it, the line has been reported already
                if held:
                    held += piece
                    piece, held = bytes(held), bytearray()
                yield number, piece.removesuffix(b"\r") if len(piece) <= limit else None
            number, held, size = number + 1, bytearray(), 0
        if size <= limit:
            size += len(rest)
            held += rest
            if size > limit:
                held = bytearray()
                yield number, None
    if held:
        yield number, bytes(held).removesuffix(b"\r")


def kind_of(value: Any) -> str:
    """The JSON type of a value in words: [] -> "a list"."""
    return "null" if value is None else _NAMES.get(type(value), "an object")


def check_text(text: Any, key: str, limit: int) -> str:
    """`text` if it is a string that UTF-8 can hold within `limit` bytes; else a Flaw."""
    if not isinstance(text, str):
        raise Flaw(f"expected a string, got {kind_of(text)}", key=key)
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        what = f"lone surrogate {text[error.start]} at character {error.start + 1} of the text"
        raise Flaw(printable(what), key=key) from error
    if size > limit:
        raise too_long(limit, key=key, size=size)
    return text


def too_long(limit: int, *, line: int | None = None, key: str = "", size: int = 0) -> Flaw:
    """The flaw of a document, or of a line that must hold one, above the limit."""
    what = f"longer than max_document_bytes ({limit})" + (f": {size} bytes" if size else "")
    return Flaw(what, line=line, key=key, fix="raise max_document_bytes or split the document")


def missing_key(key: str, seen: Iterable[str], what: str = "key") -> Flaw:
    """The flaw of an object or table without the text key: the keys seen, and the nearest."""
    names = [printable(name)[:30] for name in seen]
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    close = closest(key, names, likeness=0.5)
    fix = f"set text_key: {close[0]}" if close else "set text_key to the one with the text"
    return Flaw(f"no {what} {key!r} ({what}s: {listed or 'none'})", fix=fix, missing_key=True)


class LineParser:
    """Takes the text out of one JSON line after the other.

    `repeated` is the latest key that came twice in one object, or "".
    """

    def __init__(self, text_key: str, limit: int) -> None:
        self.text_key, self.limit, self.repeated = text_key, limit, ""
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=lambda _: _NOT_FINITE,
            parse_float=_finite,
        )

    def text(self, line: bytes) -> str:
        """The value of the text key. Raises Flaw with the column, byte or key of the fault."""
        found = self.parse(line)
        if not isinstance(found, dict):
            got = "not a finite number" if found is _NOT_FINITE else kind_of(found)
            raise Flaw(f"expected an object with the key {self.text_key!r}, got {got}")
        if self.text_key not in found:
            raise missing_key(self.text_key, found)
        return check_text(found[self.text_key], self.text_key, self.limit)

    def parse(self, line: bytes) -> Any:
        """The JSON value of a line. Raises Flaw."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8 (byte 0x{line[error.start]:02x})"
            raise Flaw(what, byte=error.start) from error
        with _as_flaws():
            return self._decoder.decode(text)

    def parse_at(self, text: str, place: int) -> tuple[Any, int]:
        """The JSON value that begins at a character of a text, and where it ends. Raises Flaw."""
        with _as_flaws():
            return self._decoder.raw_decode(text, place)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        for key, value in pairs:
            if value is _NOT_FINITE or (type(value) is list and _holds_not_finite(value)):
                raise Flaw("NaN and infinite numbers are not JSON", key=key)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated = next(key for key in keys if keys.count(key) > 1)
        return found


@contextmanager
def _as_flaws() -> Iterator[None]:
    """Turn what the decoder raises into flaws; a line is told where it is not the first."""
    try:
        yield
    except json.JSONDecodeError as error:
        line = error.lineno if error.lineno > 1 else None
        raise Flaw(f"not JSON: {error.msg}", line=line, column=error.colno) from error
    except RecursionError as error:
        raise Flaw("nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Flaw(f"not readable as JSON: {error}") from error


def _finite(digits: str) -> Any:
    value = float(digits)
    return value if math.isfinite(value) else _NOT_FINITE


def _holds_not_finite(values: list[Any]) -> bool:
    return any(
        value is _NOT_FINITE or (type(value) is list and _holds_not_finite(value))
        for value in values
    )
