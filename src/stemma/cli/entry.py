"""The entry point: runs a command, and turns whatever goes wrong into one line and an exit code."""

import errno
import os
import sys

import typer

from stemma.cli.app import app
from stemma.core import progress, signals
from stemma.core.errors import (
    ResourceError,
    StemmaError,
    StoppedError,
    UsageError,
    nearest,
    printable,
)
from stemma.core.files import resource_error

# click's base of usage mistakes, wherever this version of typer keeps it
Mistake = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
ENVIRONMENT = ("STEMMA_HOME", "STEMMA_DEBUG")


def check_repeated(arguments: list[str]) -> None:
    """An option given twice is a mistake, except those that collect; so is --no-X beside --X."""
    seen: set[str] = set()
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if name.startswith("--") and name != "--stop":
            if name in seen:
                raise UsageError(f"{name} is given twice", fix="give it once")
            other = f"--{name[5:]}" if name.startswith("--no-") else f"--no-{name[2:]}"
            if other in seen:
                raise UsageError(f"{other} and {name} exclude each other", fix="choose one")
            seen.add(name)


def check_environment() -> None:
    """A misspelt STEMMA_ variable would be ignored without a word."""
    for name in os.environ:
        if name.startswith("STEMMA_") and name not in ENVIRONMENT:
            hint = nearest(name, ENVIRONMENT)
            progress.LOG.warning("the environment variable %s is not known; %s", name, hint)


def out_of_memory(error: BaseException) -> bool:
    """Torch tells of a full memory by a RuntimeError, on the CPU and on a GPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def command_of(error: BaseException) -> str:
    """The command that a mistake was made in, however the program was started."""
    names: list[str] = []
    context = getattr(error, "ctx", None)
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["stemma", *names])


def one_line(error: BaseException) -> tuple[str, int]:
    """The line and the exit code for anything that can go wrong."""
    if isinstance(error, StemmaError):
        return str(error), error.exit_code
    if isinstance(error, Mistake):
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        fix = f"see `{command_of(error)} --help`"
        return str(UsageError(message, fix=fix)), UsageError.exit_code
    if isinstance(error, MemoryError) or out_of_memory(error):
        fix = "use a smaller batch, context or model"
        return str(ResourceError("out of memory", fix=fix)), ResourceError.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        long = UsageError("the name is too long", place=error.filename, fix="name a file or folder")
        return str(long), long.exit_code
    if isinstance(error, OSError):
        return str(resource_error(error, error.filename or "system")), ResourceError.exit_code
    bug = StemmaError(f"{type(error).__name__}: {error}", fix="this is a bug: run with --debug")
    return str(bug), bug.exit_code


def main() -> None:
    """Entry point of the `stemma` command."""
    # larger pages for tensors, where Linux has them: torch spends less time on page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    progress.set_up()
    try:
        signals.catch()
        check_environment()
        check_repeated(sys.argv[1:])
        code = app(standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # the reader left; a second write at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except signals.StopNow as stop:
        signals.ignore_further()
        print("stopped: by a signal; run the same command again", file=sys.stderr)
        code = stop.exit_code
    except Exception as error:
        if os.environ.get("STEMMA_DEBUG"):
            raise
        line, code = one_line(error)
        head = "stopped" if isinstance(error, StoppedError) else "error"
        if not getattr(error, "quiet", False):
            print(f"{head}: {printable(line)}", file=sys.stderr)
    sys.exit(code or 0)
