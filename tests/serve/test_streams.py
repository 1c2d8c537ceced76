"""Streams: the rules of every stream, and that it says what a whole answer says.

Tiny random models write bytes that are no character, ends that come early, and nothing at all:
more trouble than a trained one makes.
"""

import http.client
import json
import random
import signal

import pytest

from stemma.serve.limits import Limits

TEXTS = ["hi", "naïve 🎈", "<|im_end|>", "", "the cat\n\nsat", "a" * 50]


def read_stream(port, path, body):
    """The events of a stream; each is valid UTF-8 alone, and the last is the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps({**body, "stream": True}), headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    events = response.read().split(b"\n\n")
    connection.close()
    assert events.pop() == b"" and events.pop() == b"data: [DONE]"
    told = [event.removeprefix(b"data: ") for event in events if not event.startswith(b":")]
    return [json.loads(event.decode("utf-8", errors="strict")) for event in told]


def check_rules(events, *, chat, choices, usage):
    """What holds in every stream; returns the texts and the reasons by index."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    for key in ("id", "created", "model", "seed"):
        assert len({event[key] for event in events}) == 1, key
    assert {event["object"] for event in events} == {kind}
    if usage:
        assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] > 0
        events = events[:-1]
    parts = [event["choices"][0] for event in events]
    assert all(len(event["choices"]) == 1 for event in events)
    texts, reasons = [""] * choices, [[] for _ in range(choices)]
    for part in parts:
        index = part["index"]
        assert not reasons[index], "nothing comes after the reason"
        texts[index] += part["delta"].get("content", "") if chat else part["text"]
        if part["finish_reason"] is not None:
            reasons[index].append(part["finish_reason"])
    assert all(len(each) == 1 for each in reasons)
    if chat:
        roles = [part["index"] for part in parts if "role" in part["delta"]]
        assert sorted(roles) == list(range(choices)), "a role once each"
        assert roles == [part["index"] for part in parts[:choices]], "and first"
    return texts, [each[0] for each in reasons]


def compare(live, draw):
    """One drawn request, streamed and whole: the same words, reasons and numbers."""
    chat, count = draw.random() < 0.5, draw.choice([1, 1, 1, 2, 3])
    body = {
        "model": "chatty" if chat else draw.choice(["chatty", "plain"]),
        "max_tokens": draw.randint(1, 24),
        "seed": draw.randrange(2**63),
        "temperature": draw.choice([0, 0.7, 1.0, 2.0]),
        "top_p": draw.choice([0.5, 0.95, 1.0]),
        "n": count,
    }
    if draw.random() < 0.3:
        body["stop"] = draw.sample(["a", "the", "\n", "�", "e c"], k=2)
    if draw.random() < 0.2:
        body["top_k"] = draw.randint(1, 50)
    text = draw.choice(TEXTS)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    if chat:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    usage = draw.random() < 0.5
    asked = {**body, "stream_options": {"include_usage": True}} if usage else body
    events = read_stream(live.port, path, asked)
    texts, reasons = check_rules(events, chat=chat, choices=count, usage=usage)
    status, _, whole = live.ask(path, body)
    assert status == 200
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    found = [c["message"]["content"] if chat else c["text"] for c in whole["choices"]]
    assert texts == found
    if usage:
        assert events[-1]["usage"] == whole["usage"]


def test_streams_say_what_whole_answers_say(live):
    draw = random.Random(0)
    for _ in range(100):
        compare(live, draw)


@pytest.mark.slow
def test_two_thousand_streams(live):
    draw = random.Random(1)
    for _ in range(2_000):
        compare(live, draw)
    print("2000 streams equal to their whole answers")


def test_a_silent_stream_says_that_it_lives(endless, start):
    with start(endless, limits=Limits(silence=0.01, leaving=1.0)) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        long = {"model": "chatty", "prompt": "a", "max_tokens": 4000, "stream": True}
        connection.request(
            "POST", "/v1/completions", json.dumps(long), {"Content-Type": "application/json"}
        )
        first = connection.getresponse()
        first.read(10)  # the engine is busy from here on
        events = {"model": "chatty", "prompt": "a", "max_tokens": 1, "stream": True}
        second = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        second.request(
            "POST", "/v1/completions", json.dumps(events), {"Content-Type": "application/json"}
        )
        waiting = second.getresponse()
        assert waiting.readline().startswith(b": ")
        connection.close()
        assert b"[DONE]" in waiting.read()
        second.close()


def test_a_stream_that_the_server_cannot_finish_ends_with_a_word(endless, start):
    with start(endless, limits=Limits(leaving=0.1)) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        long = {"model": "chatty", "prompt": "a", "max_tokens": 4000, "stream": True}
        connection.request(
            "POST", "/v1/completions", json.dumps(long), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        response.read(20)
        live.process.handle_exit(signal.SIGTERM, None)
        *_, last, done, nothing = response.read().split(b"\n\n")
        connection.close()
    assert (done, nothing) == (b"data: [DONE]", b"")
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "the server is stopping"
