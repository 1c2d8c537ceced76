"""Replies: an engine's job turned into one JSON body, or into a stream of events, while it is read.

A client that leaves cancels its job, whichever form it asked for: whoever waits here also listens
for the end of the connection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from stemma.infer.generate import Piece
from stemma.serve.answers import DONE, SILENCE, ChatForm, Choice, CompletionForm, Head, event, usage
from stemma.serve.engine import Engine, Job
from stemma.serve.refusal import Refusal

Result = TypeVar("Result")
STREAMING = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy in between must hand on each event at once
]


class Reply:
    """One request's answers: the job, the form they take, and what they carry along.

    `each`: answers to one prompt, which counts once. `silence`: seconds of nothing after which a
    stream says that it lives.
    """

    def __init__(
        self,
        job: Job,
        form: ChatForm | CompletionForm,
        head: Head,
        *,
        each: int,
        silence: float,
    ) -> None:
        self.job, self.form, self.head, self.silence = job, form, head, silence
        self.choices = [Choice(index) for index in range(len(job.prompts))]
        self.prompt_tokens = sum(len(ids) for ids in job.prompts[::each])

    async def whole(self) -> dict[str, Any]:
        """The body of all answers. Raises Refusal where the engine gave up."""
        async for piece in self.job.pieces():
            if piece is not None:
                self.choices[piece.row].add(piece, self.job.end_ids)
        return {
            **self.head.fields(self.form.whole),
            "choices": [self.form.choice(choice) for choice in self.choices],
            "usage": usage(self.prompt_tokens, self.choices),
        }

    async def events(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """The events of a stream; a failure on the way is the last event before the end."""
        head = self.head.fields(self.form.part)
        if with_usage:
            head["usage"] = None
        for choice in self.choices:
            for part in self.form.opening(choice):
                yield event({**head, "choices": [part]})
        try:
            async for piece in self.job.pieces(self.silence):
                if piece is None:
                    yield SILENCE
                    continue
                for part in self._take(piece):
                    yield event({**head, "choices": [part]})
            if with_usage:
                numbers = usage(self.prompt_tokens, self.choices)
                yield event({**head, "choices": [], "usage": numbers})
        except Refusal as refusal:
            yield event(refusal.body)
        yield DONE

    def _take(self, piece: Piece) -> list[dict[str, Any]]:
        choice = self.choices[piece.row]
        told = choice.add(piece, self.job.end_ids)
        return self.form.pieces(choice, piece.text, told)


class Stream:
    """The response that sends events as they come."""

    def __init__(self, engine: Engine, job: Job, events: AsyncIterator[bytes]) -> None:
        self.engine, self.job, self.events = engine, job, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await unless_left(receive, self._send(send))
        finally:
            self.engine.cancel(self.job)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": STREAMING})
        async for piece in self.events:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole_response(engine: Engine, reply: Reply, receive: Receive) -> Response:
    """The response with all answers at once. Raises ClientDisconnect where the client left."""
    try:
        return JSONResponse(await unless_left(receive, reply.whole()))
    finally:
        engine.cancel(reply.job)


async def unless_left(receive: Receive, work: Awaitable[Result]) -> Result:
    """Do the work until it is done. Raises ClientDisconnect where the client leaves before that."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
