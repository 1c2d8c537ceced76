"""Bad requests: numbers out of range, bodies that are none, prompts that do not fit, wrong names.

Every one gets an error in OpenAI's shape that names the parameter and tells nothing of the machine,
and the server answers the next good request.
"""

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

import pytest

from stemma.serve.limits import Limits
from tests.serve.conftest import running, served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
SECRETS = re.compile(r"Traceback|0x[0-9a-f]{6}|/work|/tmp|/home|/root|site-packages|, line \d")


@dataclass(frozen=True)
class Asked:
    """A request that is refused: `body` is laid over a good one, or sent as it is if bytes."""

    number: int
    name: str
    path: str
    body: Any
    status: int
    param: str | None = None
    says: str = ""
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()


def chat(number, name, param, says="", *, status=400, **changes):
    return Asked(
        number, name, CHAT, {"model": "chatty", "messages": HI, **changes}, status, param, says
    )


def text(number, name, prompt, says="", *, param="prompt", **changes):
    return Asked(
        number, name, TEXT, {"model": "plain", "prompt": prompt, **changes}, 400, param, says
    )


def raw(number, name, body, status, says="", param=None, **headers):
    named = tuple((key.replace("_", "-"), value) for key, value in headers.items())
    return Asked(number, name, CHAT, body, status, param, says, headers=named)


def nan(key):
    return json.dumps({"model": "chatty", "messages": HI, key: float("nan")}).encode()


CASES = (
    chat(
        80, "huge max_tokens", "max_tokens", r"\(1000000000\) .* context of 256", max_tokens=10**9
    ),
    chat(80, "huge by its new name", "max_completion_tokens", "con", max_completion_tokens=2**70),
    chat(80, "no tokens", "max_tokens", "greater than or equal to 1", max_tokens=0),
    chat(80, "negative tokens", "max_tokens", "greater", max_tokens=-1),
    chat(80, "negative temperature", "temperature", "greater", temperature=-1),
    chat(80, "hot temperature", "temperature", "less", temperature=3),
    chat(80, "temperature of text", "temperature", "number", temperature="1"),
    chat(80, "temperature of yes", "temperature", "number", temperature=True),
    chat(80, "top_p 0", "top_p", "greater than 0", top_p=0),
    chat(80, "top_p 2", "top_p", "less than or equal to 1", top_p=2),
    chat(80, "negative top_k", "top_k", "greater", top_k=-1),
    chat(80, "huge top_k", "top_k", "less", top_k=2**70),
    chat(80, "min_p 1", "min_p", "less than 1", min_p=1),
    chat(80, "repetition_penalty 0", "repetition_penalty", "greater", repetition_penalty=0),
    chat(80, "n 10^9", "n", "less than or equal to 16", n=10**9),
    chat(80, "n 0", "n", "greater", n=0),
    chat(80, "n of text", "n", "integer", n="two"),
    chat(80, "stop 10^5", "stop", "at most 16", stop=["x"] * 10**5),
    chat(80, "long stop", "stop", "1 to 256", stop=["x" * 257]),
    chat(80, "empty stop", "stop", "1 to 256", stop=""),
    chat(80, "stop of numbers", "stop", "is a text", stop=[5]),
    chat(80, "logit_bias", "logit_bias", "not supported", logit_bias={"99999999": 5}),
    chat(80, "seed 2^70", "seed", "less than", seed=2**70),
    chat(80, "seed of text", "seed", "integer", seed="1"),
    chat(80, "presence_penalty", "presence_penalty", "not supported", presence_penalty=1.5),
    chat(80, "tools", "tools", "not supported", tools=[{"type": "function"}]),
    chat(80, "json answers", "response_format", "only", response_format={"type": "json_object"}),
    chat(80, "top_logprobs 21", "top_logprobs", "20", logprobs=True, top_logprobs=21),
    chat(80, "top_logprobs alone", "top_logprobs", "needs logprobs", top_logprobs=2),
    chat(80, "unknown key", "tempature", "did you mean temperature", tempature=1),
    chat(
        80, "unknown stream option", "stream_options.usage", "unknown", stream_options={"usage": 1}
    ),
    chat(80, "stream of text", "stream", "boolean", stream="yes"),
    text(80, "too many answers", ["a", "b"], "at most 16", param="n", n=9),
    text(80, "best_of", "a", "best_of", param="best_of", best_of=3),
    text(80, "suffix", "a", "not supported", param="suffix", suffix="z"),
    chat(80, "surrogate in stop", "stop", "lone surrogate", stop=["\ud800"]),
    chat(80, "surrogate as a key", "\\ud800", "unknown key", **{"\ud800": 1}),
    chat(80, "options of no stream", "stream_options", "needs stream", stream_options={}),
    chat(80, "long answers", "verbosity", "not supported", verbosity="high"),
    raw(80, "NaN temperature", nan("temperature"), 400, "NaN", "temperature"),
    raw(80, "NaN seed", nan("seed"), 400, "NaN", "seed"),
    raw(81, "not JSON", b"{", 400, "not JSON"),
    raw(81, "nothing", b"", 400, "not JSON"),
    raw(81, "a list", b"[1]", 400, "must be a JSON object"),
    raw(81, "null", b"null", 400, "must be a JSON object"),
    raw(81, "not UTF-8", b'{"model": "\xff"}', 400, "invalid UTF-8"),
    raw(81, "deep lists", b"[" * 10**5, 400, "too deep"),
    raw(81, "deep message", b'{"messages":' + b"[" * 80 + b"]" * 80 + b"}", 400, "64 levels"),
    raw(81, "huge number", b'{"n":' + b"9" * 10**4 + b"}", 400, "not readable"),
    raw(81, "text", b"hi", 415, "must be application/json", Content_Type="text/plain"),
    raw(81, "form", b"a=1", 415, "application", Content_Type="application/x-www-form-urlencoded"),
    raw(81, "gzip", b"\x1f\x8b", 415, "send it plain", Content_Encoding="gzip"),
    raw(81, "9 MB", b'{"model":"' + b"x" * (9 << 20) + b'"}', 413, "longer than 8388608"),
    chat(82, "no messages", "messages", "is empty", messages=[]),
    chat(82, "messages of text", "messages", "expected a list", messages="hi"),
    chat(
        82,
        "wrong role",
        "messages[1].role",
        "did you mean",
        messages=[*HI, {"role": "asistant", "content": ""}],
    ),
    chat(
        82,
        "late system",
        "messages[1].role",
        "put it first",
        messages=[*HI, {"role": "system", "content": ""}],
    ),
    chat(
        82,
        "tool without call",
        "messages[1].role",
        "without a call",
        messages=[*HI, {"role": "tool", "content": ""}],
    ),
    chat(
        82,
        "assistant last",
        "messages[1].role",
        "end with a question",
        messages=[*HI, {"role": "assistant", "content": "x"}],
    ),
    chat(
        82,
        "a picture",
        "messages[0].content[0].type",
        "only text",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "http://example.org/x.png"}}
                ],
            }
        ],
    ),
    chat(
        82,
        "half a surrogate",
        "messages[0].content",
        "surrogate",
        messages=[{"role": "user", "content": "\ud800"}],
    ),
    chat(
        82,
        "chat too long",
        "messages",
        "context is 256 .* have",
        messages=[{"role": "user", "content": "x" * 999}],
    ),
    text(82, "text too long", "x" * 999, "context is 256 tokens and the prompt has"),
    text(82, "ids too many", [1] * 256, "context is 256 tokens and the prompt has 256"),
    text(82, "no prompts", [], "empty"),
    text(82, "no ids", [[]], "empty"),
    text(82, "id too large", [5, 270], "270 is no token id of this model; they are 0 to 269"),
    text(82, "negative id", [-1], "-1 is no token id"),
    text(82, "id of truth", [True], "True is no token id"),
    text(82, "id of fraction", [1, 2.5], "2.5 is no token id"),
    text(82, "prompt of a number", 5, "expected text or token ids, got a number"),
    text(82, "prompts of numbers and text", ["a", 5], "got a number"),
    text(82, "surrogate in a prompt", "\udfff", "surrogate"),
    chat(83, "unknown model", "model", "'gpt-9' does not exist here", status=404, model="gpt-9"),
    chat(83, "near model", "model", "did you mean chatty", status=404, model="chaty"),
    chat(83, "path as model", "model", "does not exist", status=404, model="../../etc/passwd"),
    chat(83, "1 MB model", "model", "does not exist", status=404, model="x" * 2**20),
    chat(83, "control characters", "model", r"\\x1b", status=404, model="\x1b[2J"),
    chat(83, "model of a number", "model", "string", status=400, model=5),
    chat(83, "no template", "model", "use /v1/completions", model="plain"),
    Asked(83, "no such route", "/v1/nothing", {}, 404, None, "there is no /v1/nothing"),
    Asked(83, "no such model", "/v1/models/nope", None, 404, "model", "nope", method="GET"),
    Asked(83, "outside", "/v1/models/../../etc/passwd", None, 404, "model", "", method="GET"),
    Asked(83, "outside the page", "/page/../../engine.py", None, 404, None, "", method="GET"),
    Asked(83, "outside in code", "/page/%2e%2e/%2e%2e/app.py", None, 404, None, "", method="GET"),
    Asked(83, "wrong method", CHAT, None, 405, None, "does not take GET", method="GET"),
    Asked(83, "another method", "/v1/models", None, 405, None, "take DELETE", method="DELETE"),
    Asked(83, "long route", "/" + "x" * 5000, None, 404, None, "there is no /x", method="GET"),
)


@pytest.fixture(scope="module")
def live():
    models = [served("chatty", chat=True, context=256), served("plain", chat=False, context=256)]
    with running(models, limits=Limits(leaving=1.0)) as found:
        yield found


def check_error(body, param, says):
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert re.search(says, error["message"]), error["message"]
    assert len(error["message"]) <= 600 and not SECRETS.search(error["message"])


def check_alive(live):
    status, _, found = live.ask(TEXT, {"model": "plain", "prompt": "a", "max_tokens": 2})
    assert status == 200 and found["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number}-{case.name}")
def test_bad_request_is_refused_with_its_parameter(live, case):
    sent = {"raw": case.body} if isinstance(case.body, bytes) else {"body": case.body}
    status, _, found = live.ask(case.path, method=case.method, headers=dict(case.headers), **sent)
    assert status == case.status, found
    check_error(found, case.param, case.says)
    check_alive(live)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (TEXT, {"model": "plain", "prompt": ""}),
        (CHAT, {"model": "chatty", "messages": [{"role": "user", "content": ""}]}),
        (CHAT, {"model": "chatty", "messages": [{"role": "user", "content": "<|im_end|>" * 9}]}),
        (CHAT, {"model": "chatty", "messages": HI, "max_tokens": 256, "user": "me", "store": True}),
        (CHAT, {"model": "chatty", "messages": HI, "n": None, "stop": None, "tools": []}),
        (TEXT, {"model": "plain", "prompt": "a", "seed": -(2**63)}),
    ],
    ids=[
        "82-no text",
        "82-no words",
        "82-only control strings",
        "80-passed over",
        "80-null",
        "80-low seed",
    ],
)
def test_odd_request_is_answered(live, path, asked):
    status, _, found = live.ask(path, asked)
    assert status == 200, found


def send(port, head, body=b""):
    """Send bytes as they are; returns the status and the rest of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(head.encode() + b"\r\n\r\n" + body)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := sock.recv(65536)):
            answer += piece
    return int(answer.split()[1])


def head_of(port, *lines):
    fixed = [f"POST {CHAT} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    return "\r\n".join([*fixed, *lines])


@pytest.mark.parametrize("name", ["body"], ids=["81-promised 100 MB"])
def test_a_body_that_says_it_is_too_long_is_not_waited_for(live, name):
    assert send(live.port, head_of(live.port, "Content-Length: 104857600"), b"{") == 413
    check_alive(live)


@pytest.mark.parametrize("name", ["body"], ids=["81-endless chunks"])
def test_chunks_without_end_are_cut_off_at_the_limit(live, name):
    head = head_of(live.port, "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert send(live.port, head, chunk * 160) == 413
    check_alive(live)


@pytest.mark.parametrize("late", [b"", b"5\r\n     \r\n"], ids=["81-no body", "81-half a body"])
def test_a_body_that_does_not_come_times_out(late):
    models = [served("plain", chat=False, context=256)]
    with running(models, limits=Limits(body_seconds=0.2, leaving=1.0)) as live:
        assert send(live.port, head_of(live.port, "Transfer-Encoding: chunked"), late) == 408
        check_alive(live)


@pytest.mark.parametrize("size", [66_000, 200_000], ids=["81-long headers", "81-giant headers"])
def test_headers_above_the_limit_are_refused(live, size):
    head = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\nX-Long: {'x' * size}"
    assert send(live.port, head) in (400, 431)
    check_alive(live)


def test_a_client_that_sends_nothing_holds_nobody_up(live):
    with socket.create_connection(("127.0.0.1", live.port)):
        time.sleep(0)
        check_alive(live)
