"""Signals during training: the first one asks, the second one leaves.

SIGTERM and Ctrl-C set a request that the loop reads at the next step boundary, saves, and stops.
A second signal means now.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from stemma.core.errors import StoppedError

AGAIN = "run the same command again to go on"


@dataclass
class Request:
    """Whether, and by which signal, the run was asked to stop."""

    number: int = 0

    def raise_stop(self, step: int) -> None:
        """Leave with the exit code of the signal, once the state is on disk."""
        by_keyboard = self.number == signal.SIGINT
        what = f"after step {step}, state saved"
        raise StoppedError(what, fix=AGAIN, by_keyboard=by_keyboard)


class StopNow(BaseException):
    """A signal outside of training. No `except Exception`, ours or foreign, can swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped by a signal")
        self.number = number
        self.exit_code = 130 if number == signal.SIGINT else StoppedError.exit_code


def stop_now(number: int, frame: FrameType | None) -> None:
    """Handler for work that has no step boundary: what it made so far is redone next time."""
    raise StopNow(number)


def ignore_further() -> None:
    """Leave in peace: a second signal must not break the exit of the first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def catch() -> None:
    """Answer SIGTERM and Ctrl-C by `StopNow`, unless who started us had them ignored."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop_now)


@contextmanager
def graceful() -> Iterator[Request]:
    """Collect SIGTERM and SIGINT while the block runs; the old handlers come back after it."""
    request = Request()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.number:
            stop_now(number, frame)
        request.number = number

    watched = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, ask) for number in watched}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
