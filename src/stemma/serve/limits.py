"""Limits of the server, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server.

    Attributes:
        body_bytes: length of a request's body.
        body_seconds: time in which a body must have arrived.
        waiting: requests in line beside the one that is answered.
        silence: seconds after which a stream that has nothing to tell says that it lives.
        leaving: seconds that answers in flight get when the server is asked to stop.
    """

    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    waiting: int = 32
    silence: float = 10.0
    leaving: float = 5.0
