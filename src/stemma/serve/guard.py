"""The guard: who may ask, checked before any route is looked up.

It stands around the whole application, so a route that is added later is behind it too. Only what
is listed is public. A server that listens on this machine alone answers to the names of this
machine alone: a page from elsewhere that points its own name here gets nothing.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemma.core.errors import UsageError
from stemma.core.files import resource_error
from stemma.serve.refusal import Refusal

SHORTEST = 16  # characters of a key
HEADER_BYTES = 1 << 16  # of all headers of a request
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line; blank lines and lines that begin with # are none.

    Raises UsageError for a file without keys, and for a key that is too short or no plain word.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            raise UsageError("no such file", place=path, fix="name a file of keys") from error
        raise resource_error(error, path) from error
    keys = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if len(key) < SHORTEST or not all(33 <= byte <= 126 for byte in key):
            what = f"a key has at least {SHORTEST} characters, printable ASCII without spaces"
            raise UsageError(what, place=f"{path}:{number}", fix="choose a longer, random one")
        keys.append(key.decode())
    if not keys:
        raise UsageError("holds no key", place=path, fix="write one key a line")
    return keys


def digest(key: str) -> bytes:
    """What keys are compared by: of one length, so that time tells nothing."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """Middleware: host names, keys, and the headers that every response carries.

    `keys`: those that open the door, none where it stands open. `hosts`: names by which the
    server may be asked, None for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Iterable[str],
        public: Iterable[str],
        hosts: Iterable[str] | None,
    ) -> None:
        self.app, self.public = app, frozenset(public)
        self.digests = [digest(key) for key in keys]
        self.hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(n.lower().encode(), v.encode()) for n, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, sending)
        else:
            response = JSONResponse(refusal.body, refusal.status, refusal.headers)
            await response(scope, receive, sending)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES:
            return Refusal(431, f"the headers are longer than {HEADER_BYTES} bytes")
        if self.hosts is not None and host_name(headers.get("host", "")) not in self.hosts:
            what = "the server does not go by this name; ask for 127.0.0.1 or localhost"
            return Refusal(403, what, code="unknown_host")
        if self.digests and scope["path"] not in self.public and not self._knows(headers):
            what = "a valid API key is needed: send Authorization: Bearer KEY"
            return Refusal(
                401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )
        return None

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = digest(key)
        # every key is compared, so that time does not tell which one was near
        matches = [hmac.compare_digest(given, known) for known in self.digests]
        return scheme.lower() == "bearer" and any(matches)


def host_name(host: str) -> str:
    """The name of a Host header without its port: "[::1]:80" -> "[::1]"."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
