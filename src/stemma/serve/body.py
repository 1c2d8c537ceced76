"""Bodies: read with limits on size, time and depth, then as strict JSON."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import Request

from stemma.data.flaws import Flaw
from stemma.data.jsonl import LineParser
from stemma.data.messages import DEEPEST, nested_deeper
from stemma.serve.limits import Limits
from stemma.serve.refusal import Refusal, of_flaw

DISCARDED = 16  # times the limit that is read over before a connection is closed
LULL = 1.0  # seconds without a byte after which nothing more is awaited
SMALL = 1 << 16  # bytes that are parsed at once; more goes to a thread, the loop stays free


async def read_json(request: Request, limits: Limits) -> Any:
    """The JSON value of a request's body. Raises Refusal for whatever is not one."""
    check_headers(request)
    pieces = request.stream()
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(discard(pieces, limits), limits.body_seconds)
        raise too_large(limits)
    try:
        raw = await asyncio.wait_for(read_body(pieces, limits), limits.body_seconds)
    except asyncio.TimeoutError as error:
        what = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise Refusal(408, what, headers={"Connection": "close"}) from error
    if len(raw) <= SMALL:
        return parse_json(raw)
    return await asyncio.to_thread(parse_json, raw)


def check_headers(request: Request) -> None:
    """Refuse what need not be read at all."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"the content type must be application/json, got {kind[:100]!r}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise Refusal(415, f"a body encoded as {coding[:100]!r} is not read; send it plain")


async def read_body(pieces: AsyncIterator[bytes], limits: Limits) -> bytes:
    """The bytes of a body. Raises Refusal as soon as they are too many."""
    raw = bytearray()
    async for piece in pieces:
        raw += piece
        if len(raw) > limits.body_bytes:
            await discard(pieces, limits)
            raise too_large(limits)
    return bytes(raw)


async def discard(pieces: AsyncIterator[bytes], limits: Limits) -> None:
    """Read over what is on its way: a connection closed before that loses the refusal.

    Only so much, and only while it comes: nobody is waited for.
    """
    left = DISCARDED * limits.body_bytes
    while left > 0:
        try:
            piece = await asyncio.wait_for(anext(pieces, b""), LULL)
        except asyncio.TimeoutError:
            return
        if not piece:
            return
        left -= len(piece)


def too_large(limits: Limits) -> Refusal:
    """The refusal of a body above the limit."""
    what = f"the body is longer than {limits.body_bytes} bytes"
    return Refusal(413, what, headers={"Connection": "close"})


def parse_json(raw: bytes) -> Any:
    """Strict JSON: no NaN, no deep nesting. Raises Refusal."""
    try:
        value = LineParser("", len(raw)).parse(raw)
    except Flaw as flaw:
        raise of_flaw(flaw) from flaw
    if nested_deeper(value, DEEPEST):
        raise Refusal(400, f"the body is nested deeper than {DEEPEST} levels")
    return value
