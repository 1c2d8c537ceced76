"""Who may ask: keys, host names, and what every response carries."""

import http.client

import pytest

from stemma.core.errors import UsageError
from stemma.serve import guard, server

KEY, OTHER = "correct-horse-battery", "staple-is-the-other-one"
PUBLIC = {"/", "/health"}


@pytest.fixture(scope="module")
def locked(models):
    from tests.serve.conftest import running

    with running(models, keys=[KEY, OTHER]) as found:
        yield found


def raw(port, head):
    """Status of a request that is written out by hand."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    connection.sock.sendall(head.encode("latin-1"))
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    response.read()
    connection.close()
    return response.status


def paths(live):
    routes = live.service.routes
    return sorted({route.path.replace("{model:path}", "chatty") for route in routes})


TRICKS = {
    "no key": {},
    "wrong": {"Authorization": "Bearer wrong"},
    "prefix": {"Authorization": f"Bearer {KEY[:-1]}"},
    "longer": {"Authorization": f"Bearer {KEY}x"},
    "inside": {"Authorization": f"Bearer x {KEY}"},
    "other scheme": {"Authorization": f"Basic {KEY}"},
    "no scheme": {"Authorization": KEY},
    "another header": {"X-Api-Key": KEY},
    "two keys": {"Authorization": f"Bearer {KEY},{OTHER}"},
    "not ASCII": {"Authorization": "Bearer \xff\xfe"},
    "empty": {"Authorization": "Bearer "},
}


@pytest.mark.parametrize("headers", TRICKS.values(), ids=TRICKS)
def test_no_route_opens_without_a_key(locked, headers):
    found = paths(locked)
    assert "/v1/chat/completions" in found and "/v1/models" in found
    for path in [*found, "/v1/nothing", "/health/", "//v1/models", "/v1/models/", "/page/../v1"]:
        for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE"):
            status, _, body = locked.ask(path, method=method, headers=headers)
            if path in PUBLIC or (path.startswith("/page/") and ".." not in path):
                assert status in (200, 405), (method, path)
            else:
                assert status == 401, (method, path, status)
                if method != "HEAD":
                    assert body["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_key_opens(locked, key, scheme):
    status, _, _ = locked.ask("/v1/models", headers={"Authorization": f"{scheme} {key}"})
    assert status == 200


def test_an_absolute_address_is_no_way_around(locked):
    host = f"Host: 127.0.0.1:{locked.port}\r\n\r\n"
    for target in (f"http://127.0.0.1:{locked.port}/v1/models", "/health?x=/v1/models"):
        status = raw(locked.port, f"GET {target} HTTP/1.1\r\n{host}")
        assert status == (401 if "health" not in target else 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("[::2]", 403),
        ("", 403),
    ],
)
def test_a_local_server_answers_to_local_names_only(live, host, status):
    for path in ("/v1/models", "/health", "/"):
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert raw(live.port, head) == status


def test_no_other_origin_is_let_in(live):
    status, headers, _ = live.ask("/v1/models", headers={"Origin": "https://evil.example"})
    assert status == 200 and "access-control-allow-origin" not in headers
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = live.ask("/v1/chat/completions", method="OPTIONS", headers=asked)
    assert status == 405 and "access-control-allow-origin" not in headers


def test_every_response_carries_the_policy(live):
    for path in ("/", "/v1/models", "/nowhere"):
        _, headers, _ = live.ask(path)
        assert headers["content-security-policy"] == guard.HEADERS["Content-Security-Policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_keys_are_read_one_a_line(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n  {KEY}  \r\n{OTHER}")
    assert guard.read_keys(path) == [KEY, OTHER]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", r"keys: holds no key"),
        (b"# nothing\n", r"keys: holds no key"),
        (b"short\n", r"keys:1: a key has at least 16 characters"),
        (f"{KEY}\nwith a space in it\n".encode(), r"keys:2: a key has"),
        ("schlüssel-schlüssel".encode(), r"keys:1: a key has"),
    ],
    ids=["empty", "comment", "short", "space", "umlaut"],
)
def test_a_file_without_good_keys_is_refused(tmp_path, content, line):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=line):
        guard.read_keys(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_other_machines_need_a_key(host):
    with pytest.raises(UsageError, match="without a key"):
        server.require_private(host, [], insecure=False)
    server.require_private(host, [KEY], insecure=False)
    server.require_private(host, [], insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_needs_none(host):
    server.require_private(host, [], insecure=False)
