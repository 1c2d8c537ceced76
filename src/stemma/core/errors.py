"""Errors and exit codes: one root, one level below it, one line a person can act on.

Every error names a place (`file[:line][: key]`), what is wrong there, and the way out.
The tree, with the exit code the command line answers with:

    StemmaError
    ├── UsageError      2   the command, the recipe, or an argument
    ├── DataError       3   documents and data files
    ├── ModelError      4   model folders, tokenizers, checkpoints
    ├── ResourceError   5   disk, permission, memory, network, a missing package
    ├── DivergedError   6   training left the finite numbers
    └── StoppedError   75   a signal stopped the run; its state is saved
"""

import re

MAX_PLACE = 140  # characters of the place; a longer one loses its beginning
MAX_MESSAGE = 300  # characters; a longer message is cut in its middle, never at its way out

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: object) -> str:
    """One line of text that is safe to print: control characters and surrogates become escapes.

    Line ends, terminal escapes and undecodable bytes in file names would otherwise break the
    one-line promise or the terminal: "a\\nb" -> "a\\\\nb".
    """
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), str(text))


class StemmaError(Exception):
    """The root of every error that Stemma raises on purpose.

    `what` says what is wrong and what was found; `place` names file, line and key; `fix` says
    what to do. `str(error)` joins the three into one line.
    """

    exit_code = 1

    def __init__(self, what: str, *, place: object = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.place, self.fix = what, str(place), fix

    def __str__(self) -> str:
        place = printable(self.place)
        if len(place) > MAX_PLACE:  # the end of a path tells more than its beginning
            place = "…" + place[-(MAX_PLACE - 1) :]
        head = f"{place}: " if place else ""
        tail = f"; {printable(self.fix)}" if self.fix else ""
        room = max(40, MAX_MESSAGE - len("error: ") - len(head) - len(tail))
        what = printable(self.what)
        if len(what) > room:
            what = what[: room - 1] + "…"
        return head + what + tail


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
    """Training left the finite numbers; the last good state is on disk."""

    exit_code = 6


class StoppedError(StemmaError):
    """A signal stopped the run at a step boundary; the same command goes on from there."""

    exit_code = 75
