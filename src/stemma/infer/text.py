"""Text from tokens as they come: whole characters only, and never a part of a stop string.

Both classes take what is new and give back what is now certain; `end` gives what they still
held. Each token costs the same, however long the text already is.
"""

from collections.abc import Sequence
from typing import Protocol

WINDOW = 32  # tokens decoded together at most, while the text is sound
CONTEXT = 16  # tokens kept when older ones are dropped; a character needs four at most
REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not, or not yet, a character


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document."""

    @property
    def adds_bos(self) -> bool:
        """Whether documents begin with `bos_id`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without `bos_id`."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""


class Detokenizer:
    """Decodes a window of the newest tokens, because a character may span several of them.

    The window starts inside the prompt: some decoders drop the blank before a first word.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.window = list(prompt[-CONTEXT:])
        self.shown = len(tokenizer.decode(self.window).rstrip(REPLACEMENT))

    def add(self, token_id: int) -> str:
        """The characters that this token makes certain."""
        self.window.append(token_id)
        text = self.tokenizer.decode(self.window)
        new = self._show(text, len(text.rstrip(REPLACEMENT)))
        if len(self.window) > WINDOW:
            new += self._move(text)
        return new

    def end(self) -> str:
        """The characters held back: bytes that never became a character."""
        text = self.tokenizer.decode(self.window)
        return self._show(text, len(text))

    def _show(self, text: str, upto: int) -> str:
        new = text[self.shown : upto]
        self.shown = max(self.shown, upto)
        return new

    def _move(self, text: str) -> str:
        """Drop old tokens. Counting from the end stays right where the cut splits a character."""
        tail = self.tokenizer.decode(self.window[-CONTEXT:])
        dropped = len(text) - len(tail)
        new = self._show(text, max(dropped, 0))
        self.window = self.window[-CONTEXT:]
        self.shown -= dropped
        return new


class Cutter:
    """Cuts a text before the stop string that is complete first, read character by character.

    So the cut does not depend on where tokens end. An end of the text that may still become a
    stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = stop
        self.held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The part of the text that no stop string can reach any more."""
        if self.found or not text:
            return ""
        text = self.held + text
        spans = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        if spans:
            self.found, self.held = True, ""
            return text[: min(spans)[1]]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """The text held back: it became no stop string."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The longest end of the text that begins the stop string: ("ab<", "<end>") -> 1."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
