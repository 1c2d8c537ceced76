"""A conversation at a terminal: lines in, answers out as they come, commands that begin with `/`.

On a terminal an answer is shown as Markdown while it grows. Blocks that are finished are printed
for good and only the last one is drawn again, so a long answer costs no more than a short one and
stays whole in the scrollback. Elsewhere the bare text is written as it comes. Ctrl-C during an
answer ends the answer; at the prompt it drops what is typed, and where nothing is, it leaves.
"""

import io
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, cast

from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    JustifyMethod,
    RenderableType,
    RenderResult,
)
from rich.live import Live
from rich.markdown import (  # type: ignore[attr-defined]  # MarkdownIt: what rich parses with
    CodeBlock,
    Heading,
    Markdown,
    MarkdownElement,
    MarkdownIt,
)
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from stemma.core import signals
from stemma.core.errors import StemmaError, UsageError, nearest, printable
from stemma.core.progress import LOG
from stemma.infer.chat import Chat, append_conversation
from stemma.infer.generate import Piece

if sys.platform != "win32":  # there the console edits lines itself
    import readline
    import termios

FRAME = 1 / 12  # seconds between two drawings of a growing block
# tags (List<int>) and links are text to be seen: hidden, one would not know where a link leads
PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
PARSER.disable(["link", "image", "autolink", "reference"])
PLAIN = {
    **dict.fromkeys(("h1", "h2", "h3"), "bold underline"),
    **dict.fromkeys(("h4", "h5", "h6", "strong", "table.header"), "bold"),
    **dict.fromkeys(("item.bullet", "item.number", "hr", "table.border"), "dim"),
    **dict.fromkeys(("code", "code_block"), "cyan"),
    "block_quote": "italic",
}
THEME = Theme({f"markdown.{name}": style for name, style in PLAIN.items()})

Show = Callable[[str], None]


def talk(chat: Chat, greeting: str) -> int:
    """Hold a conversation until its end; returns the exit code.

    That is 0 for a person. Where lines come from a file or a program, one line is one turn, and
    the code is that of the first turn that failed.
    """
    if sys.stdin.isatty():
        if sys.platform != "win32":
            readline.parse_and_bind("set enable-bracketed-paste on")  # a pasted text is one turn
        say("%s", greeting)
    code = 0
    while (turn := read_turn()) is not None:
        try:
            if not take(chat, turn):
                break
        except signals.StopNow as stop:  # a second Ctrl-C in an answer, or one in a command
            if stop.number != signal.SIGINT or not sys.stdin.isatty():
                raise
            say("interrupted")
        except StemmaError as error:
            sys.stderr.write(f"error: {printable(error)}\n")
            if error.exit_code not in GOING_ON:
                return error.exit_code
            code = code or error.exit_code
    return 0 if sys.stdin.isatty() else code


GOING_ON = (2, 3, 5)  # exit codes of mistakes after which another turn may go well


def say(text: str, *values: object) -> None:
    """A note to the person, beside the conversation."""
    LOG.info(text, *values)


def take(chat: Chat, turn: str) -> bool:
    """Do what one turn asks; False if it ends the conversation."""
    if not turn.strip():
        return True
    if not turn.startswith("/") or turn.startswith("//"):
        answer(chat, lambda: chat.say(turn.removeprefix("/")))
        return True
    name, _, rest = turn.strip().partition(" ")
    if name in ("/quit", "/exit", "/bye"):
        return False
    if name not in COMMANDS:
        fix = f"{nearest(name, [*COMMANDS, '/quit'])}, or begin a message with //"
        raise UsageError("no such command", place=name, fix=fix)
    COMMANDS[name](chat, rest.strip())
    return True


# Commands


def show_help(chat: Chat, rest: str) -> None:
    """What can be typed."""
    put(HELP)


def change_system(chat: Chat, rest: str) -> None:
    """Show, set or remove the system message."""
    if rest:
        chat.instruct(None if rest == "-" else rest)
        say("the system message is %s", "removed" if rest == "-" else "set")
    else:
        put(chat.system or "(no system message)")


def save(chat: Chat, rest: str) -> None:
    """Append the conversation to a file."""
    if not rest:
        raise UsageError("no file is named", place="/save", fix="write /save FILE")
    if not chat.messages:
        raise UsageError("there is nothing to save yet", place="/save", fix="write a message")
    path = Path(rest).expanduser()
    count = append_conversation(path, chat.history)
    say("saved to %s (conversations there: %d)", path, count)


def answer_again(chat: Chat, rest: str) -> None:
    """Answer the latest message anew."""
    answer(chat, chat.again)


def clear(chat: Chat, rest: str) -> None:
    """Forget the messages."""
    chat.clear()
    say("the messages are forgotten%s", "; the system message stays" if chat.system else "")


def show_history(chat: Chat, rest: str) -> None:
    """All messages, with a mark where those begin that the model still sees."""
    if not chat.history:
        put("(no messages)")
    for number, message in enumerate(chat.history, 0 if chat.system is None else -1):
        if number == chat.left_out > 0:
            put("(the messages above no longer fit the context, but for the system message)")
        put(f"{message.role}: {message.content}")


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/help": show_help,
    "/system": change_system,
    "/save": save,
    "/regen": answer_again,
    "/clear": clear,
    "/history": show_history,
}
HELP = """\
/system TEXT   set the system message; alone: show it; /system - removes it
/regen         answer the latest message anew, with the next seed
/history       show the messages
/clear         forget the messages; the system message stays
/save FILE     append the conversation to FILE, as a line for fine-tuning
/quit          leave, as Ctrl-D does
A line that ends in \\ goes on in the next one; // begins a message with /.
Ctrl-C ends an answer that is being written, and keeps its beginning."""


def put(text: str) -> None:
    """Print a result."""
    sys.stdout.write(shown(text) + "\n")
    sys.stdout.flush()


def shown(text: str) -> str:
    """A text as this output may have it: a terminal obeys control characters, a file does not."""
    return printable(text, keep="\n\t") if sys.stdout.isatty() else text


# What is typed


def read_turn() -> str | None:
    """The next turn, which may span lines; None at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = read_line("... " if lines else ">>> ")
        except EOFError:
            if sys.stdin.isatty():
                sys.stdout.write("\n")
            return "\n".join(lines) if lines else None
        except signals.StopNow as stop:
            if stop.number != signal.SIGINT or not sys.stdin.isatty():
                raise
            sys.stdout.write("\n")
            if not lines and not typed():
                return None
            lines = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def typed() -> str:
    """What stands on the line that is being edited."""
    return "" if sys.platform == "win32" else readline.get_line_buffer()


def read_line(prompt: str) -> str:
    """One line, edited by the person where there is one. Raises EOFError at the end."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)
    if sys.stdin.isatty():
        sys.stderr.write(prompt)
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start})"
        raise UsageError(what, place="standard input", fix="give UTF-8") from error
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


@contextmanager
def unechoed() -> Iterator[None]:
    """Keep keys that are pressed meanwhile off the screen; they wait for the next prompt."""
    if sys.platform == "win32":
        yield
        return
    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, io.UnsupportedOperation, ValueError):
        yield  # no terminal
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


# Answers


def answer(chat: Chat, begin: Callable[[], Generator[Piece]]) -> None:
    """Show an answer as it comes, until it ends or a signal does."""
    before, left_out, piece = chat.messages, chat.left_out, None
    with signals.graceful() as request, closing(begin()) as pieces:
        if chat.left_out > left_out:
            said = "the oldest %d messages no longer fit the context of %d tokens and are left out"
            say(said, chat.left_out, chat.model.config.context)
        with unechoed(), display() as show:
            for piece in pieces:
                show(piece.text)
                if request.number:
                    break
    if request.number == signal.SIGINT and sys.stdin.isatty():
        kept = "nothing was written" if chat.messages is before else "what was written is kept"
        say("interrupted; %s", kept)
    elif request.number:
        raise signals.StopNow(request.number)
    elif chat.messages[-1].content == "":
        say("the model ended its answer at once; /regen tries again")
    elif piece is not None and piece.finish_reason == "length":
        say("the answer was cut: --max-new-tokens, or the context, has no room for more")


@contextmanager
def display() -> Iterator[Show]:
    """A function that shows a growing answer: as Markdown on a terminal, else as bare text."""
    console = Console(file=sys.stdout, theme=THEME, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        try:
            yield write
        finally:
            write("\n")
        return
    growing = Growing(console)
    with Live(
        growing, console=console, auto_refresh=False, transient=True, vertical_overflow="visible"
    ) as live:
        try:
            yield lambda text: growing.add(text, live)
        finally:
            growing.end()
    console.print()


def write(text: str) -> None:
    """Write a part of an answer as it is."""
    sys.stdout.write(shown(text))
    sys.stdout.flush()


class Growing:
    """An answer that grows on a terminal: what is drawn again and again is its last block only."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.text = ""  # of the blocks that are not printed yet
        self.begun, self.printed, self.drawn = False, False, 0.0

    def add(self, text: str, live: Live) -> None:
        """Take the next part of the answer; draw it if it is time."""
        self.text += shown(text)
        self.begun = self.begun or bool(text)
        if time.monotonic() - self.drawn < FRAME:
            return
        finished, self.text = split_finished(self.text)
        self._print(finished)
        live.refresh()
        self.drawn = time.monotonic()

    def end(self) -> None:
        """Print what is left, for good."""
        rest, self.text = self.text, ""
        self._print(rest)

    def _print(self, text: str) -> None:
        for part in self._spaced(text):
            self.console.print(part)
            self.printed = True

    def _spaced(self, text: str) -> list[RenderableType]:
        """The blocks of a text, each alone, so that it does not matter how many come at once."""
        drawn: list[RenderableType] = []
        for block in blocks(text):
            drawn += [Text(), as_markdown(block)]
        return drawn if self.printed else drawn[1:]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The end of the last block, as much as the screen has room for."""
        if not self.text.strip():
            yield Text("" if self.begun else "…", style="dim")
            return
        block = Group(*self._spaced(self.text))
        lines = console.render_lines(block, options.update(height=None), pad=False)
        for line in lines[-max(console.size.height - 2, 1) :]:
            yield from line
            yield Segment.line()


def split_finished(text: str) -> tuple[str, str]:
    """Markdown as its finished blocks and the rest, which what follows may still change.

    A line decides what it belongs to only when it is whole: "3" may become "3. third".

    >>> split_finished("one\\n\\ntwo\\n\\nth")
    ('one\\n\\n', 'two\\n\\nth')
    """
    *finished, _ = blocks(text[: text.rfind("\n") + 1]) or [""]
    at = sum(map(len, finished))
    return text[:at], text[at:]


def blocks(text: str) -> list[str]:
    """Markdown cut where its outermost blocks begin.

    >>> blocks("one\\n\\n- two\\n")
    ['one\\n\\n', '- two\\n']
    """
    starts = [token.map[0] for token in PARSER.parse(text) if token.map and token.level == 0]
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    bounds = [0, *sorted(set(starts[1:])), len(lines)]
    cut = ["".join(lines[start:end]) for start, end in pairwise(bounds)]
    return [block for block in cut if block.strip()]


# Markdown in plain colours


class PlainHeading(Heading):
    """A heading on the left, whatever its level."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class PlainCode(CodeBlock):
    """Code as it is written, in one colour and without a background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Padding(
            Text(str(self.text).rstrip(), style="markdown.code_block"), (0, 2), expand=False
        )


class Answer(Markdown):
    """Markdown with our elements."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": PlainHeading,
        "fence": PlainCode,
        "code_block": PlainCode,
    }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich makes of it, without the blank lines that it puts around lists and tables."""
        segments = cast(Iterable[Segment], super().__rich_console__(console, options))
        lines = list(Segment.split_lines(segments))
        filled = [n for n, line in enumerate(lines) if any(part.text.strip() for part in line)]
        for line in lines[filled[0] : filled[-1] + 1] if filled else []:
            yield from line
            yield Segment.line()


def as_markdown(text: str) -> Markdown:
    """A text to be drawn as Markdown, where a line that ends stays a line that ends."""
    answer = Answer("")
    answer.parsed = PARSER.parse(text)
    for token in answer.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return answer
