"""The engine: one thread that answers one request after the other, behind a bounded queue.

The event loop never waits for a model: it hands in jobs and awaits what comes of them. A job that
is cancelled leaves the queue at once, or stops before its next pass through the model, so that the
slot is free for the next.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from stemma.data.renderer import Renderer
from stemma.data.tokenizer import Tokenizer
from stemma.infer.generate import Piece, stream
from stemma.infer.sampling import Sampling
from stemma.nn.stack import LanguageModel
from stemma.serve.refusal import Refusal, of_failure

LOG = logging.getLogger("stemma")
CONTEXTS = 4  # times the model's context that one request may hold in memory
MOST_PADDING = 2  # times its tokens that a batch of prompts may have places
RETRY_AFTER = 2  # seconds that a client is asked to wait before it tries again


@dataclass(frozen=True)
class Served:
    """A model with all that answering needs.

    `sampling` are its own settings; `renderer` is None where it has no chat template; `chat_ends`
    end an answer, `text_ends` a text.
    """

    name: str
    network: LanguageModel
    tokenizer: Tokenizer
    sampling: Sampling
    text_ends: frozenset[int]
    created: int
    renderer: Renderer | None = None
    chat_ends: frozenset[int] = frozenset()

    @property
    def context(self) -> int:
        """Tokens that prompt and answer share."""
        return int(self.network.config.context)


class Cancelled(BaseException):
    """Nobody waits for the answer any more. No `except Exception` on the way may swallow it."""


class Job:
    """One request at the engine: its prompts, and what came of them so far."""

    def __init__(
        self,
        served: Served,
        prompts: Sequence[list[int]],
        samplings: Sequence[Sampling],
        end_ids: frozenset[int],
    ) -> None:
        self.served, self.prompts, self.samplings = served, prompts, samplings
        self.end_ids = end_ids
        self.cancelled = False
        self.loop = asyncio.get_running_loop()
        self.results: asyncio.Queue[Piece | Refusal | None] = asyncio.Queue()

    def check(self) -> None:
        """Raise Cancelled where nobody waits any more."""
        if self.cancelled:
            raise Cancelled

    def put(self, result: Piece | Refusal) -> None:
        """Hand a result to the event loop; called by the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop is closed: the server left
            self.cancelled = True

    async def pieces(self, silence: float = 0.0) -> AsyncIterator[Piece | None]:
        """Every piece until all prompts are answered; None each `silence` seconds, if above 0.

        Raises Refusal where the engine gave up.
        """
        ticking = asyncio.ensure_future(self._tick(silence)) if silence else None
        going = len(self.prompts)
        try:
            while going:
                result = await self.results.get()
                if isinstance(result, Refusal):
                    raise result
                going -= result is not None and result.finish_reason is not None
                yield result
        finally:
            if ticking is not None:
                ticking.cancel()

    async def _tick(self, silence: float) -> None:
        # no timeout around the wait for a piece: before Python 3.12 it can swallow a cancellation
        while True:
            await asyncio.sleep(silence)
            self.results.put_nowait(None)


class Engine:
    """The thread and its queue. `waiting` jobs may stand in line beside the one that runs."""

    def __init__(self, waiting: int) -> None:
        self.limit = waiting
        self.line: deque[Job] = deque()
        self.running: Job | None = None
        self.preparing = 0
        self.open, self.leaving = False, False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self.open = True
        self.thread.start()

    def state(self) -> dict[str, Any]:
        """How busy the engine is."""
        with self.changed:
            waiting = len(self.line) + self.preparing
            return {"running": int(self.running is not None), "waiting": waiting}

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in line for a request that is still being read and encoded.

        Raises Refusal where the line is full, or the server is leaving.
        """
        with self.changed:
            self._require_place()
            self.preparing += 1
        try:
            yield
        finally:
            with self.changed:
                self.preparing -= 1

    def submit(self, job: Job) -> None:
        """Put a job in line. Raises Refusal where the line is full, or the server is leaving."""
        with self.changed:
            self._require_place()
            self.line.append(job)
            self.changed.notify()

    def _require_place(self) -> None:
        later = {"Retry-After": str(RETRY_AFTER)}
        if self.leaving or not self.open:
            raise Refusal(503, "the server is stopping", headers=later)
        waiting = len(self.line) + self.preparing
        if waiting >= self.limit:
            what = f"the server is busy: {waiting} requests are waiting; try again later"
            raise Refusal(429, what, code="rate_limit_exceeded", headers=later)

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more; harmless where it has ended."""
        with self.changed:
            job.cancelled = True
            if job in self.line:
                self.line.remove(job)

    def leave(self) -> None:
        """Take no further jobs; those in line and the one that runs go on.

        Takes no lock: it is called by a signal's handler, which may have interrupted who holds it.
        """
        self.leaving = True

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits in line."""
        return self.running is not None or bool(self.line)

    def stop(self) -> None:
        """End everything and the thread."""
        self.leaving = True
        with self.changed:
            self.open = False
            self.changed.notify()
            left = [*self.line, *([self.running] if self.running else [])]
            self.line.clear()
            for job in left:
                job.cancelled = True
                job.put(Refusal(503, "the server is stopping"))
        if self.thread.is_alive():
            self.thread.join()

    def _next(self) -> Job | None:
        """The next job; None where there will be none."""
        with self.changed:
            self.running = None
            while self.open and not self.line:
                self.changed.wait()
            self.running = self.line.popleft() if self.line else None
            return self.running

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._answer(job)
            except Cancelled:
                pass
            except BaseException as error:  # whatever it was: the next job must find a worker
                LOG.error("%s failed: %s: %s", job.served.name, type(error).__name__, error)
                job.put(of_failure(error))

    @staticmethod
    def _answer(job: Job) -> None:
        served = job.served
        for rows in batches(job):
            for piece in stream(
                served.network,
                served.tokenizer,
                [job.prompts[row] for row in rows],
                [job.samplings[row] for row in rows],
                end_ids=job.end_ids,
                between=job.check,
            ):
                job.put(replace(piece, row=rows[piece.row]))


def batches(job: Job) -> Iterator[range]:
    """The prompts of a job in runs that are answered together.

    Their cache has as many places for each as the longest needs, and may fill the context
    `CONTEXTS` times: so much memory one request takes, the rest waits for its turn. Prompts of very
    unequal lengths are not read together, since the padding of the short ones would be most of it.
    """
    context, first = job.served.context, 0
    for row in range(1, len(job.prompts)):
        lengths = [len(prompt) for prompt in job.prompts[first : row + 1]]
        steps = [
            min(sampling.max_new_tokens, context - length)
            for length, sampling in zip(lengths, job.samplings[first : row + 1], strict=True)
        ]
        places = len(lengths) * (max(lengths) + max(steps))
        padded = len(lengths) * max(lengths)
        if places > CONTEXTS * context or padded > MOST_PADDING * sum(lengths):
            yield range(first, row)
            first = row
    yield range(first, len(job.prompts))
