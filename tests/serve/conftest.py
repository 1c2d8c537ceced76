"""Real servers on loopback over tiny random models, and a plain client without a library."""

import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from stemma import api
from stemma.cli.serving import offer
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import with_chatml
from stemma.serve import server
from stemma.serve.limits import Limits
from tests.serve import page_browser

WORDS = ["the cat sat on the mat and the dog ran", "system user assistant"]


def served(name, *, chat, context=4096, seed=0, endless=False):
    """A tiny model that says anything: half characters, control characters, everything.

    An endless one stops at its limit only.
    """
    tokenizer = train_tokenizer(WORDS, vocab_size=270, splitting="gpt-2")
    if chat:
        tokenizer = with_chatml(tokenizer)
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": context, "initial_std": 0.3}
    model = api.build("llama", seed=seed, vocab_size=tokenizer.vocab_size, **numbers).eval()
    found = offer(name, model, tokenizer)
    return replace(found, text_ends=frozenset(), chat_ends=frozenset()) if endless else found


@dataclass
class Live:
    """A running server."""

    url: str
    port: int
    service: object
    process: object
    headers: dict = field(default_factory=dict)

    def ask(self, path, body=None, *, method=None, headers=None, raw=None):
        """One request; returns status, headers and the body, as JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        method = method or ("GET" if data is None else "POST")
        sent = {"Content-Type": "application/json", **self.headers, **(headers or {})}
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        found = response.read()
        connection.close()
        if found and (response.getheader("content-type") or "").startswith("application/json"):
            found = json.loads(found)
        return response.status, response.headers, found


@contextmanager
def running(models, *, keys=(), limits=None):
    """A server in a thread of this process, for as long as the block runs."""
    sock = server.bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    ready = threading.Event()
    process, service = server.build_server(models, sock, keys=keys, limits=limits, ready=ready.set)
    thread = threading.Thread(target=process.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        assert ready.wait(30)
        yield Live(server.address_of(sock), port, service, process)
    finally:
        process.should_exit = True
        service.engine.leave()
        thread.join()
        sock.close()


@pytest.fixture(scope="session")
def models():
    """`chatty` has a chat template, `plain` has none."""
    return [served("chatty", chat=True), served("plain", chat=False)]


@pytest.fixture(scope="session")
def live(models):
    """A server of both models that all tests share; none may break it."""
    with running(models, limits=Limits(leaving=1.0)) as found:
        yield found


@pytest.fixture(scope="session")
def endless():
    """A model whose answers run to their limit."""
    return [served("chatty", chat=True, endless=True)]


@pytest.fixture
def start():
    """Start a server of one's own: `with start(models, keys=…, limits=…) as live`."""
    return running


@pytest.fixture(scope="module")
def chromium():
    """A browser, for the tests of the page."""
    with page_browser.browser() as opened:
        yield opened


@pytest.fixture
def visit(chromium):
    """`with visit(url) as watched`: a tab on a page, which must have been quiet when it is left."""
    return partial(page_browser.visiting, chromium)
