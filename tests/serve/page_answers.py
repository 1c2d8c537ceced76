"""A server of the page whose answers are given beforehand: for texts that no tiny model writes.

It sends the page's own files under the server's own headers, and speaks as much of the API as the
page needs. What the page does with the real server is tested with the real server.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type

from stemma.serve.app import PAGE
from stemma.serve.guard import HEADERS

DEFAULTS = {"temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
Pieces = Iterable[str | dict]  # a text, or an event as it stands


def model(name="quickstart", *, chat=True, context=2048):
    """A model as the server lists it."""
    return {
        "id": name,
        "object": "model",
        "created": 1,
        "owned_by": "stemma",
        "context": context,
        "chat": chat,
        "defaults": DEFAULTS,
    }


@dataclass
class Canned:
    """What the server says next, and what it was asked. `answer` gets the body of a request."""

    url: str = ""
    models: list = field(default_factory=lambda: [model()])
    answer: Callable[[dict], Pieces] = lambda body: ["Yes."]
    pause: float = 0.0  # seconds between pieces
    finish: str = "stop"
    requests: list = field(default_factory=list)
    gone: int = 0  # clients that left before the end


def part(body, piece):
    """An event of a stream: of a chat, or of a text."""
    if isinstance(piece, dict):
        return piece
    if "messages" in body:
        return {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    return {"choices": [{"index": 0, "text": piece, "finish_reason": None}]}


def events(canned, body):
    """The events of one answer, the numbers of tokens last."""
    count = 0
    for piece in canned.answer(body):
        count += 1
        yield part(body, piece)
        if isinstance(piece, dict):
            return
        time.sleep(canned.pause)
    empty = {"delta": {}} if "messages" in body else {"text": ""}
    yield {"choices": [{"index": 0, **empty, "finish_reason": canned.finish}]}
    numbers = {"prompt_tokens": 40, "completion_tokens": count, "total_tokens": 40 + count}
    yield {"choices": [], "usage": numbers}


class Handler(BaseHTTPRequestHandler):
    """Sends the page, the list of models, and answers, as the server's `canned` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v1/models":
            data = json.dumps({"object": "list", "data": self.server.canned.models}).encode()
            self.send(200, data, "application/json")
            return
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        path = PAGE / name
        if path.is_file():
            kind = "text/javascript" if name.endswith(".js") else guess_type(name)[0]
            self.send(200, path.read_bytes(), kind)
        else:
            self.send(404, b"{}", "application/json")

    def do_POST(self):
        canned = self.server.canned
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        canned.requests.append(body)
        self.start(200, "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for event in events(canned, body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            canned.gone += 1

    def start(self, status, kind):
        """The beginning of a response, with the headers of every response."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in HEADERS.items():
            self.send_header(name, value)

    def send(self, status, data, kind):
        """A whole response."""
        self.start(status, kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Nothing: the tests say what went wrong."""


@contextmanager
def answering(**settings):
    """A canned server in a thread, for as long as the block runs."""
    canned = Canned(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.canned = canned
    server.daemon_threads = True
    canned.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield canned
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
