"""The server: a socket, uvicorn, and how it is asked to leave.

The first Ctrl-C or SIGTERM takes no more requests and gives answers in flight a few seconds; the
second leaves at once.
"""

import errno
import math
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from types import FrameType

import uvicorn

from stemma.core.errors import ResourceError, UsageError
from stemma.core.progress import LOG
from stemma.serve.app import Service, build_app
from stemma.serve.engine import Engine, Served
from stemma.serve.guard import HEADER_BYTES
from stemma.serve.limits import Limits

OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
FAREWELL = 2.0  # seconds in which the last words of streams must have gone out
KEEP_ALIVE = 75  # seconds that an idle connection is kept


class GracefulServer(uvicorn.Server):
    """uvicorn's server, whose engine hears at once that it is asked to leave.

    Answers in flight get `patience` seconds; then the engine tells their readers that it stops,
    which is better than a connection that breaks.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, *, patience: float) -> None:
        super().__init__(config)
        self.engine, self.patience = engine, patience

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: leave when answers in flight are done; at the second one now."""
        if self.should_exit:
            self.force_exit = True
        else:
            self.engine.leave()
            # in a thread: a handler may have interrupted who holds the log
            threading.Timer(0.0, self.tell_of_answers).start()
            stopping = threading.Timer(self.patience, self.engine.stop)
            stopping.daemon = True  # whoever is done sooner does not wait for it
            stopping.start()
        super().handle_exit(sig, frame)

    def tell_of_answers(self) -> None:
        """Say why it does not leave at once, where answers are in flight."""
        if self.engine.busy:
            what = "finishing answers, %g s at most; Ctrl-C again leaves now"
            LOG.info(what, self.patience)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def require_private(host: str, keys: Sequence[str], *, insecure: bool) -> None:
    """Refuse to serve other machines without a key, unless that is said."""
    if not (is_local(host) or keys or insecure):
        what = "other machines could use the models without a key"
        fix = "give --api-key-file FILE, or --insecure if you mean it"
        raise UsageError(what, place=f"--host {host}", fix=fix)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ResourceError where the port is taken or the host is not here."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        fix = "use 127.0.0.1, or an address of this machine"
        raise UsageError("no such host", place=f"--host {host}", fix=fix) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        taken = error.errno == errno.EADDRINUSE
        what = "the port is in use" if taken else error.strerror or str(error)
        fix = "choose another with --port" if taken else "choose another --host or --port"
        raise ResourceError(what, place=f"{host}:{port}", fix=fix) from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL of a listening socket, as one types it."""
    host, port = sock.getsockname()[:2]
    return f"http://{bracketed({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host))}:{port}"


def bracketed(host: str) -> str:
    """An address as it stands before a port: "::1" -> "[::1]"."""
    return f"[{host}]" if ":" in host else host


def build_server(
    models: Sequence[Served],
    sock: socket.socket,
    *,
    keys: Iterable[str] = (),
    limits: Limits | None = None,
    ready: Callable[[], None] = lambda: None,
) -> tuple[GracefulServer, Service]:
    """A server whose `run(sockets=[sock])` serves until a signal, and raises that again then."""
    limits = limits or Limits()
    host = sock.getsockname()[0]
    app, service = build_app(
        models,
        keys=keys,
        hosts={*OWN_NAMES, bracketed(host)} if is_local(host) else None,
        limits=limits,
        ready=ready,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        http="h11",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.leaving + FAREWELL),
    )
    return GracefulServer(config, service.engine, patience=limits.leaving), service
