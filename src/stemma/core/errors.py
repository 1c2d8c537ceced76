"""Errors and exit codes: one root, one level below it, one line a person can act on.

Every error names a place (`file[:line][: key]`), what is wrong there, and the way out.
The tree, with the exit code the command line answers with:

    StemmaError
    ├── UsageError      2   the command, the recipe, or an argument
    ├── DataError       3   documents and data files
    ├── ModelError      4   model folders, tokenizers, checkpoints
    ├── ResourceError   5   disk, permission, memory, network, a missing package
    ├── DivergedError   6   training left the finite numbers
    └── StoppedError   75   a signal stopped the run; its state is saved (130 after Ctrl-C)
"""

import difflib
import re
from collections.abc import Iterable

LEAST_WORDS = 60  # characters for what is wrong, whatever the length of the rest
MAX_PLACE = 140  # characters of the place; a longer one loses its beginning
MAX_MESSAGE = 300  # characters; a longer message is cut in what it says, last in its way out

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: object, *, keep: str = "") -> str:
    """One line of text that is safe to print: control characters and surrogates become escapes.

    Line ends, terminal escapes and undecodable bytes in file names would otherwise break the
    one-line promise or the terminal: "a\\nb" -> "a\\\\nb". The characters of `keep` stay. Each
    character is judged alone, so the pieces of a stream give what the whole text gives.
    """

    def escaped(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in keep else character.encode("unicode_escape").decode()

    return _CONTROL.sub(escaped, str(text))


def clipped(text: str, room: int) -> str:
    """At most `room` characters of a text, with a mark where it goes on."""
    return text if len(text) <= room else text[: room - 1] + "…"


class StemmaError(Exception):
    """The root of every error that Stemma raises on purpose.

    `what` says what is wrong and what was found; `place` names file, line and key; `fix` says
    what to do. `str(error)` joins the three into one line.
    """

    exit_code = 1
    quiet = False  # another process tells it: this one leaves with the same exit code alone

    def __init__(self, what: str, *, place: object = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.place, self.fix = what, str(place), fix

    def __str__(self) -> str:
        place = printable(self.place)
        if len(place) > MAX_PLACE:  # the end of a path tells more than its beginning
            place = "…" + place[-(MAX_PLACE - 1) :]
        head = f"{place}: " if place else ""
        room = MAX_MESSAGE - len("error: ") - len(head)
        fix = clipped(printable(self.fix), room - LEAST_WORDS)
        tail = f"; {fix}" if fix else ""
        return head + clipped(printable(self.what), room - len(tail)) + tail


class UsageError(StemmaError, ValueError):
    """The command, the recipe or an argument is wrong."""

    exit_code = 2


class DataError(StemmaError, ValueError):
    """A document or data file cannot be used as it is."""

    exit_code = 3


class ModelError(StemmaError, ValueError):
    """A model folder, tokenizer or checkpoint cannot be used as it is."""

    exit_code = 4


class ResourceError(StemmaError):
    """The machine refuses: disk, permission, memory, network, or a package that is missing."""

    exit_code = 5


class DivergedError(StemmaError, ArithmeticError):
    """Training left the finite numbers; what was saved before is untouched."""

    exit_code = 6


class StoppedError(StemmaError):
    """A signal stopped the run; the same command goes on from there."""

    exit_code = 75

    def __init__(self, what: str, *, fix: str, by_keyboard: bool = False) -> None:
        super().__init__(what, fix=fix)
        if by_keyboard:
            self.exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """The way out of a misspelling: 'did you mean X', or the known words where none is near.

    >>> nearest("learing_rate", ["learning_rate", "steps"])
    'did you mean learning_rate'
    """
    known = sorted(known)
    close = closest(word, known)
    return f"did you mean {close[0]}" if close else f"known: {', '.join(known)}"


def closest(word: str, known: Iterable[str], *, count: int = 1, likeness: float = 0.6) -> list[str]:
    """At most `count` of the known words, those most like `word` first, whatever their case.

    `likeness` is the least that counts as near: 0 takes any, 1 only the word itself.
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), folded, n=count, cutoff=likeness)
    return [folded[name] for name in close]
