"""Answers: the JSON of chat completions and completions, whole and as the events of a stream.

The text of a stream is the same pieces as the text of a whole answer, so the two cannot differ.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stemma.infer.generate import FinishReason, Logprob, Piece
from stemma.infer.text import Tokenizer

DONE = b"data: [DONE]\n\n"
SILENCE = b": nothing new yet\n\n"
FINGERPRINT = "stemma"


def event(value: Any) -> bytes:
    """One event of a stream of server-sent events."""
    return (
        b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


@dataclass
class Choice:
    """One answer as far as it has come."""

    index: int
    text: str = ""
    tokens: int = 0
    reason: FinishReason | None = None
    logprobs: list[Logprob] = field(default_factory=list)

    def add(self, piece: Piece, end_ids: frozenset[int]) -> list[Logprob]:
        """Take a piece; returns what it tells of probabilities, none for a token that ends."""
        self.text += piece.text
        self.tokens += 1
        self.reason = piece.finish_reason
        told = [piece.logprob] if piece.logprob and piece.token_id not in end_ids else []
        self.logprobs += told
        return told


@dataclass(frozen=True)
class Head:
    """What all parts of one answer carry."""

    id: str
    created: int
    model: str
    seed: int

    def fields(self, kind: str) -> dict[str, Any]:
        """The head as JSON has it. `seed` is an addition to OpenAI's: it repeats the answer."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "seed": self.seed,
        }


def usage(prompt_tokens: int, choices: Iterable[Choice]) -> dict[str, int]:
    """Tokens read and written."""
    written = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


class ChatForm:
    """How a chat completion is written down. `best`: likeliest tokens told, -1 for no logprobs."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, best: int) -> None:
        self.tokenizer, self.best = tokenizer, best

    def choice(self, choice: Choice) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self.logprobs(choice.logprobs),
            "finish_reason": choice.reason,
        }

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """What a stream says of an answer before its first piece."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._part(choice, delta)]

    def pieces(self, choice: Choice, text: str, told: list[Logprob]) -> list[dict[str, Any]]:
        """What a stream says of a new piece; the reason to end comes with no text."""
        parts = []
        if text or told:
            parts.append(self._part(choice, {"content": text}, self.logprobs(told)))
        if choice.reason is not None:
            parts.append({**self._part(choice, {}), "finish_reason": choice.reason})
        return parts

    def _part(
        self, choice: Choice, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": None,
        }

    def logprobs(self, told: list[Logprob]) -> dict[str, Any] | None:
        """Probabilities as chats have them; None where nobody asked."""
        if self.best < 0:
            return None
        content = []
        for one in told:
            best = [self._token(token, value) for token, value in one.best[: self.best]]
            content.append({**self._token(one.token_id, one.logprob), "top_logprobs": best})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token])
        known = None if "\ufffd" in text else list(text.encode())  # part of a character has none
        return {"token": text, "logprob": logprob, "bytes": known}


class CompletionForm:
    """How a completion is written down. `best`: likeliest tokens told, -1 for no logprobs."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, best: int) -> None:
        self.tokenizer, self.best = tokenizer, best
        self.offsets: dict[int, int] = {}

    def choice(self, choice: Choice) -> dict[str, Any]:
        """A whole continuation."""
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self.logprobs(choice, choice.logprobs),
            "finish_reason": choice.reason,
        }

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """A stream of text begins with text."""
        return []

    def pieces(self, choice: Choice, text: str, told: list[Logprob]) -> list[dict[str, Any]]:
        """What a stream says of a new piece."""
        if not (text or told or choice.reason):
            return []
        part = {
            "index": choice.index,
            "text": text,
            "logprobs": self.logprobs(choice, told),
            "finish_reason": choice.reason,
        }
        return [part]

    def logprobs(self, choice: Choice, told: list[Logprob]) -> dict[str, Any] | None:
        """Probabilities as completions have them; None where nobody asked."""
        if self.best < 0:
            return None
        decode = self.tokenizer.decode
        tokens = [decode([one.token_id]) for one in told]
        at, offsets = self.offsets.get(choice.index, 0), []
        for text in tokens:
            offsets.append(at)
            at += len(text)
        self.offsets[choice.index] = at
        best = [{decode([token]): p for token, p in one.best[: self.best]} for one in told]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": best if self.best else None,
            "text_offset": offsets,
        }
