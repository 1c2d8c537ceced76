"""Text that knows which of its characters a person wrote.

A chat template and what people say end up in one string, and a tokenizer that reads "<|im_end|>"
there cannot tell who wrote it. `Tainted` is a `str` with one mark for each character: 1 where it
came from content, 0 where it came from the template. Every method of `str` either keeps the marks
or raises `TaintLost`; none gives them up in silence. Equality and hash are those of `str`, so that
lookups in dictionaries and comparisons with plain strings work as ever.

A plain `str` counts as text of the template: content is tainted where it comes in.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, SupportsIndex

LONGEST: ContextVar[int] = ContextVar("longest", default=1 << 24)
"""Characters of a string at most; asked before one is built, so that none takes the memory."""

_MARK = (b"\0", b"\1")
_DIRECTIVE = re.compile(r"%(?:%|[-+ #0]*\d{0,2}(?:\.\d{1,2})?[a-zA-Z])")


class TaintLost(Exception):
    """An operation would forget which characters are content; its name is the message."""


class TooLong(Exception):
    """A string would have more characters than `LONGEST` says."""


class Tainted(str):
    """A string and one mark for each of its characters: 1 for content, 0 for the template.

    >>> text = literal("<a>") + content("b")
    >>> text.marks
    b'\\x00\\x00\\x00\\x01'
    """

    __slots__ = ("marks",)
    marks: bytes

    def __new__(cls, text: str, marks: bytes) -> "Tainted":
        made = super().__new__(cls, text)
        made.marks = marks
        return made

    @property
    def holds_content(self) -> bool:
        """Whether any character is content."""
        return 1 in self.marks

    # --- pieces and wholes

    def __str__(self) -> "Tainted":
        return self

    def __repr__(self) -> str:
        return lost("repr") if self.holds_content else super().__repr__()

    def __format__(self, spec: str) -> str:
        return lost("format") if spec else self

    def __getitem__(self, key: SupportsIndex | slice) -> "Tainted":
        text = super().__getitem__(key)
        if isinstance(key, slice):
            return Tainted(text, self.marks[key])
        return Tainted(text, _MARK[self.marks[key]])

    def __iter__(self) -> Iterator["Tainted"]:
        for character, mark in zip(super().__iter__(), self.marks, strict=True):
            yield Tainted(character, _MARK[mark])

    def __add__(self, other: str) -> "Tainted":
        if not isinstance(other, str):
            return NotImplemented
        return joined((self, other))

    def __radd__(self, other: str) -> "Tainted":
        if not isinstance(other, str):
            return NotImplemented
        return joined((other, self))

    def __mul__(self, count: SupportsIndex) -> "Tainted":
        times = max(0, count.__index__())
        check_length(len(self) * times)
        return Tainted(super().__mul__(times), self.marks * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Tainted":
        return filled_in(self, values)

    def __rmod__(self, pattern: Any) -> "Tainted":
        if not isinstance(pattern, str):
            return NotImplemented
        return filled_in(pattern, self)

    def join(self, parts: Iterable[str]) -> "Tainted":
        """As `str.join`."""
        between: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise TypeError(f"expected text to join, found {type(part).__name__}")
            between += (self, part) if between else (part,)
        return joined(between)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "Tainted":
        """As `str.replace`; what comes in brings its own marks."""
        if not isinstance(new, str):
            raise TypeError(f"expected text to put in, found {type(new).__name__}")
        limit = count.__index__()
        found = len(self) + 1 if old == "" else super().count(old)
        found = found if limit < 0 else min(found, limit)
        check_length(len(self) + found * (len(new) - len(old)))
        if not found:
            return self
        if old:
            return joined(between(self.split(old, found), new))
        parts = ["", *(self[at : at + 1] for at in range(found - 1)), self[found - 1 :]]
        return joined(between(parts, new))

    # --- cutting

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`; the parts are tainted."""
        return self._parts(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`; the parts are tainted."""
        return self._parts(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`; the lines are tainted."""
        lines, start = [], 0
        for whole, line in zip(super().splitlines(True), super().splitlines(keepends), strict=True):
            lines.append(self[start : start + len(line)])
            start += len(whole)
        return list[str](lines)

    def partition(self, sep: str) -> tuple[str, str, str]:
        """As `str.partition`; the separator in the middle is that of this text."""
        return self._three(super().find(sep), sep, (self, self[:0], self[:0]))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        """As `str.rpartition`; the separator in the middle is that of this text."""
        return self._three(super().rfind(sep), sep, (self[:0], self[:0], self))

    def strip(self, chars: str | None = None) -> "Tainted":
        """As `str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "Tainted":
        """As `str.lstrip`."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> "Tainted":
        """As `str.rstrip`."""
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str) -> "Tainted":
        """As `str.removeprefix`."""
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> "Tainted":
        """As `str.removesuffix`."""
        return self[: len(super().removesuffix(suffix))]

    def _parts(self, texts: list[str], sep: str | None) -> list[str]:
        """Each part with its marks; parts stand in order, apart by `sep` or by white space."""
        parts, start = [], 0
        for text in texts:
            if sep is None:
                start = super().index(text, start)
            parts.append(self[start : start + len(text)])
            start += len(text) + len(sep or "")
        return list[str](parts)

    def _three(self, at: int, sep: str, where_absent: tuple[str, str, str]) -> tuple[str, str, str]:
        if not sep:
            raise ValueError("empty separator")
        if at < 0:
            return where_absent
        return self[:at], self[at : at + len(sep)], self[at + len(sep) :]

    # --- letters; a letter may become several, such as the German sharp s

    def upper(self) -> "Tainted":
        """As `str.upper`."""
        return self._spelled(super().upper(), str.upper)

    def lower(self) -> "Tainted":
        """As `str.lower`."""
        return self._spelled(super().lower(), str.lower)

    def casefold(self) -> "Tainted":
        """As `str.casefold`."""
        return self._spelled(super().casefold(), str.casefold)

    def capitalize(self) -> "Tainted":
        """As `str.capitalize`."""
        return self._spelled(super().capitalize(), None)

    def title(self) -> "Tainted":
        """As `str.title`."""
        return self._spelled(super().title(), None)

    def swapcase(self) -> "Tainted":
        """As `str.swapcase`."""
        return self._spelled(super().swapcase(), str.swapcase)

    def _spelled(self, text: str, alone: Any) -> "Tainted":
        """`text` with our marks; `alone` spells one character, for texts that change in length."""
        if len(text) == len(self):
            return Tainted(text, self.marks)
        if len(set(self.marks)) == 1:
            return Tainted(text, self.marks[:1] * len(text))
        if alone is None:
            return lost("change of case")
        marks = b"".join(
            _MARK[mark] * len(alone(character))
            for character, mark in zip(super().__iter__(), self.marks, strict=True)
        )
        return Tainted(text, marks) if len(marks) == len(text) else lost("change of case")

    # --- widths

    def ljust(self, width: SupportsIndex, fillchar: str = " ") -> "Tainted":
        """As `str.ljust`."""
        return joined((self, padding(width.__index__() - len(self), fillchar)))

    def rjust(self, width: SupportsIndex, fillchar: str = " ") -> "Tainted":
        """As `str.rjust`."""
        return joined((padding(width.__index__() - len(self), fillchar), self))

    def center(self, width: SupportsIndex, fillchar: str = " ") -> "Tainted":
        """As `str.center`, which puts an odd character left where the width is odd."""
        missing = width.__index__() - len(self)
        left = missing // 2 + (missing & width.__index__() & 1)
        return joined((padding(left, fillchar), self, padding(missing - left, fillchar)))

    def zfill(self, width: SupportsIndex) -> "Tainted":
        """As `str.zfill`."""
        zeros = padding(width.__index__() - len(self), "0")
        sign = 1 if self[:1] in ("+", "-") and zeros else 0
        return joined((self[:sign], zeros, self[sign:]))

    # --- what cannot keep marks

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> NoReturn:
        """Bytes have no marks."""
        lost("encode")

    def expandtabs(self, tabsize: SupportsIndex = 8) -> NoReturn:
        """Not written: no template needs it."""
        lost("expandtabs")

    def format(self, *args: object, **kwargs: object) -> NoReturn:
        """Format strings reach into objects."""
        lost("format")

    def format_map(self, mapping: Any, /) -> NoReturn:
        """Format strings reach into objects."""
        lost("format_map")

    def translate(self, table: Any, /) -> NoReturn:
        """Not written: no template needs it."""
        lost("translate")

    @staticmethod
    def maketrans(*args: object) -> NoReturn:
        """Not written: no template needs it."""
        lost("maketrans")


def content(text: str) -> Tainted:
    """Text that a person wrote."""
    return Tainted(text, b"\1" * len(text))


def literal(text: str) -> Tainted:
    """Text of a template. What is tainted already keeps its marks."""
    return text if isinstance(text, Tainted) else Tainted(text, bytes(len(text)))


def plain(text: str) -> str:
    """The text without its marks, for messages to people and as a result."""
    return str.__str__(text)


def joined(parts: Iterable[str]) -> Tainted:
    """All parts in a row."""
    marked = [literal(part) for part in parts]
    check_length(sum(map(len, marked)))
    return Tainted("".join(marked), b"".join(part.marks for part in marked))


def between(parts: list[str], separator: str) -> Iterator[str]:
    """The parts with the separator between them."""
    for at, part in enumerate(parts):
        if at:
            yield separator
        yield part


def runs(text: Tainted) -> Iterator[tuple[Tainted, bool]]:
    """The longest pieces of equal mark in order, each with whether it is content."""
    start = 0
    while start < len(text):
        mark = text.marks[start]
        end = text.marks.find(1 - mark, start)
        end = len(text) if end < 0 else end
        yield text[start:end], bool(mark)
        start = end


def check_length(length: int) -> None:
    """Raise TooLong for a string that must not be built."""
    if length > LONGEST.get():
        raise TooLong(f"a text of {length:,} characters")


def padding(count: int, character: str) -> Tainted:
    """A character some times, none for a negative count."""
    if len(character) != 1:
        raise TypeError("the fill character must be exactly one character long")
    return literal(character) * count


def filled_in(pattern: str, values: Any) -> Tainted:
    """`pattern % values` with marks, for the directives that templates use."""
    pattern = literal(pattern)
    parts, end = list[str](), 0
    waiting = list(values) if isinstance(values, tuple) else [values]
    for found in _DIRECTIVE.finditer(pattern):
        parts.append(without_percent(pattern[end : found.start()]))
        end = found.end()
        if found.group() == "%%":
            parts.append(pattern[found.start() : end - 1])
        elif waiting:
            parts.append(one_filled_in(plain(found.group()), waiting.pop(0)))
        else:
            raise TypeError("not enough arguments for format string")
    parts.append(without_percent(pattern[end:]))
    if waiting and not isinstance(values, Mapping):
        raise TypeError("not all arguments converted during string formatting")
    return joined(parts)


def without_percent(text: Tainted) -> Tainted:
    """Text between directives; a percent sign there begins one that is not written here."""
    return lost("% with such a directive") if "%" in text else text


def one_filled_in(directive: str, value: Any) -> str:
    """One directive such as "%s" or "%5.2f" with its value."""
    if directive == "%s" and isinstance(value, str):
        return value
    if isinstance(value, int | float | None) and directive[-1] in "sdifgeEFGxXo":
        return literal(directive % value)
    return lost(f"{directive} of {type(value).__name__}")


def lost(operation: str) -> NoReturn:
    """Refuse an operation whose result could not carry marks."""
    raise TaintLost(operation)
