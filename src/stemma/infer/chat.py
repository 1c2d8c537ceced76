"""A conversation with a model: its messages, what of them fits the context, the answers.

Nothing here prints or reads a key, so a terminal and a test hold the same conversation. How
messages become token ids is handed in as a function. Where the history outgrows the context, the
oldest exchanges are left out of the prompt, the system message never; they stay in the history.
"""

import json
import os
import secrets
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path

from stemma.core.errors import UsageError
from stemma.core.files import resource_error
from stemma.data.flaws import Flaw
from stemma.data.jsonl import LineParser, check_text, split_lines
from stemma.data.messages import Message, parse_messages
from stemma.data.sources import require_regular
from stemma.infer.generate import Piece, stream
from stemma.infer.sampling import Sampling
from stemma.infer.text import Tokenizer
from stemma.nn.stack import LanguageModel

LONGEST = 1 << 26  # bytes of one line in a file of conversations
SEEDS = 2**63
ANSWER_SHARE = 4  # one part in so many of the context is kept free for the answer

Render = Callable[[Sequence[Message]], list[int]]


class Chat:
    """A conversation in progress.

    Attributes:
        system: the system message, None where there is none.
        messages: all others in order, by user and assistant in turn.
        left_out: how many of the oldest messages the latest prompt left out.
        seed: of the next answer; `again` counts it up.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        render: Render,
        sampling: Sampling,
        *,
        end_ids: Collection[int],
    ) -> None:
        self.model, self.tokenizer, self.render = model, tokenizer, render
        self.sampling, self.end_ids = sampling, end_ids
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.system: str | None = None
        self.messages: list[Message] = []
        self.left_out = 0

    @property
    def history(self) -> tuple[Message, ...]:
        """All messages, the system message first."""
        return (*_opening(self.system), *self.messages)

    def instruct(self, text: str | None) -> None:
        """Set the system message for all answers to come; None removes it.

        Raises UsageError where the template takes no such message, or the context has no room.
        """
        self._require_room(self._ids(text, [Message("user", "Hello")]), "system")
        self.system = text

    def say(self, text: str) -> Generator[Piece]:
        """Add the user's message and answer it, piece by piece.

        What came of an answer that is closed early is kept; where nothing came, the message is
        taken back. Raises UsageError, at once and with nothing changed, for a message that the
        template refuses or that does not fit the context.
        """
        asked = [*self.messages, Message("user", text)]
        return self._answer(self._fit(asked), asked)

    def again(self) -> Generator[Piece]:
        """Answer the latest message anew, with the next seed; see `say`.

        The former answer comes back where nothing came of the new one. Raises UsageError where
        there is no answer yet, or where every answer would be the same.
        """
        if not self.messages:
            raise UsageError("there is no answer yet", place="/regen", fix="write a message")
        if self.sampling.temperature == 0:
            what = "temperature 0 always takes the likeliest token: the answer would be the same"
            raise UsageError(what, place="/regen", fix="start with --temperature 0.8")
        ids = self._fit(self.messages[:-1])
        self.seed = (self.seed + 1) % SEEDS
        return self._answer(ids, self.messages[:-1])

    def clear(self) -> None:
        """Forget all messages but the system message."""
        self.messages, self.left_out = [], 0

    def _answer(self, ids: list[int], asked: list[Message]) -> Generator[Piece]:
        """Stream an answer; in the end the history is `asked` with it, or as it was before."""
        settings = self.sampling.model_copy(update={"seed": self.seed})
        text, whole = "", False
        try:
            for piece in stream(self.model, self.tokenizer, [ids], settings, end_ids=self.end_ids):
                text, whole = text + piece.text, piece.finish_reason is not None
                yield piece
        finally:
            if text or whole:
                self.messages = [*asked, Message("assistant", text)]

    def _fit(self, messages: list[Message]) -> list[int]:
        """Ids of as many of the latest exchanges as leave room for an answer, one at least."""
        context = self.model.config.context
        most = context - min(self.sampling.max_new_tokens, context // ANSWER_SHARE)
        turns = [n for n, message in enumerate(messages) if message.role == "user"]
        for start in (turn for turn in turns if turn >= self.left_out):
            ids = self._ids(self.system, messages[start:])
            if len(ids) <= most:
                break
        self._require_room(ids, "message")
        self.left_out = start
        return ids

    def _require_room(self, ids: list[int], place: str) -> None:
        context = self.model.config.context
        if len(ids) >= context:
            told = f"{len(ids)} tokens, with what the template adds, leave no room"
            what = f"{told} in the model's context of {context}"
            raise UsageError(what, place=place, fix="shorten it")

    def _ids(self, system: str | None, messages: list[Message]) -> list[int]:
        told = (*_opening(system), *messages)
        try:
            for message in told:
                check_text(message.content, message.role, LONGEST)
            return self.render(told)
        except Flaw as flaw:
            raise refused(flaw) from flaw


def _opening(system: str | None) -> tuple[Message, ...]:
    return () if system is None else (Message("system", system),)


def to_be_answered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages after which the assistant speaks. Raises Flaw where it has just spoken."""
    if messages[-1].role not in ("user", "tool"):
        key = f"messages[{len(messages) - 1}].role"
        raise Flaw("the last message must be by user or tool", key=key, fix="end with a question")
    return messages


def refused(flaw: Flaw) -> UsageError:
    """The error for messages that cannot be used, or that the chat template does not take."""
    place = flaw.key or "chat template"
    return UsageError(flaw.reason, place=place, fix=flaw.fix or "change the messages")


def append_conversation(path: Path, messages: Sequence[Message]) -> int:
    """Add a conversation to a file as one line, `{"messages": [...]}`; returns the lines it has.

    Raises UsageError for a file that holds anything else, which stays as it is.
    """
    line = json.dumps({"messages": [m.to_json() for m in messages]}, ensure_ascii=False) + "\n"
    try:
        held = _conversations_in(path) if path.exists() else 0
        with open(path, "ab") as file:
            before = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # no half line
                raise
    except OSError as error:
        raise resource_error(error, path) from error
    return held + 1


def _conversations_in(path: Path) -> int:
    """How many conversations a file holds. Raises UsageError where it holds anything else."""
    require_regular(path, str(path))
    parser, number = LineParser("messages", LONGEST), 0
    content = path.read_bytes()
    for number, line in split_lines([content], LONGEST):
        try:
            found = parser.parse(line or b"")
            parse_messages(found.get("messages") if isinstance(found, dict) else None)
        except Flaw as flaw:
            place, what = f"{path}:{number}", "the file holds something else than conversations"
            raise UsageError(what, place=place, fix="choose another file") from flaw
    if content and not content.endswith(b"\n"):
        what = "the last line has no end"
        raise UsageError(what, place=f"{path}:{number}", fix="end it, or choose another file")
    return number
