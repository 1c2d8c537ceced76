"""Clients that leave: the engine stops for them, streamed or not, running or waiting."""

import http.client
import json
import threading
import time

import pytest

from stemma.infer.generate import CHUNK
from stemma.serve import app
from stemma.serve.limits import Limits
from stemma.serve.prompts import completion_prompts

PATHS = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    "completion": ("/v1/completions", {"prompt": "hi"}),
}


def ask(port, path, body):
    """Send a request and return its connection without reading the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps({"model": "chatty", **body}), headers)
    return connection


def until(live, running, waiting=0):
    """Wait until the engine is as busy as said; returns the seconds it took."""
    started = time.perf_counter()
    while live.service.engine.state() != {"running": running, "waiting": waiting}:
        time.sleep(0.002)
        assert time.perf_counter() - started < 30, live.service.engine.state()
    return time.perf_counter() - started


def leave_once(live, number):
    """Start an answer that would take long, leave it, and return the seconds until all is free."""
    path, body = PATHS["chat" if number % 2 else "completion"]
    streamed = number % 4 < 2
    long = {**body, "max_tokens": 4000, "stream": streamed, "temperature": 2, "n": 1 + number % 3}
    connection = ask(live.port, path, long)
    if streamed:
        connection.getresponse().read(20)
    until(live, running=1)
    job = live.service.engine.running
    connection.close()
    seconds = until(live, running=0)
    assert job.cancelled, "it was left, not finished"
    return seconds


def test_engine_stops_for_clients_that_left(endless, start):
    passes = []
    hook = endless[0].network.embedding.register_forward_hook(lambda *_: passes.append(1))
    with start(endless, limits=Limits(leaving=1.0)) as live:
        for number in range(12):
            leave_once(live, number)
        assert len(passes) < 12 * 1000, "each was left long before its 4,000 tokens"
        hook.remove()
        status, _, _ = live.ask("/v1/completions", {"model": "chatty", "prompt": "a"})
        assert status == 200


@pytest.mark.slow
def test_slot_is_free_half_a_second_after_each_of_a_hundred_disconnects(endless, start):
    with start(endless, limits=Limits(leaving=1.0)) as live:
        seconds = sorted(leave_once(live, number) for number in range(100))
    print(f"100 disconnects: median {seconds[50]:.3f} s, longest {seconds[-1]:.3f} s")
    assert seconds[-1] <= 0.5


def test_a_waiting_client_that_leaves_gives_its_place_back(endless, start):
    with start(endless, limits=Limits(waiting=1, leaving=1.0)) as live:
        path, body = PATHS["completion"]
        first = ask(live.port, path, {**body, "max_tokens": 4000, "stream": True})
        first.getresponse().read(10)
        second = ask(live.port, path, {**body, "max_tokens": 1})
        until(live, running=1, waiting=1)
        status, headers, found = live.ask(path, {"model": "chatty", **body, "max_tokens": 1})
        assert status == 429 and int(headers["retry-after"]) > 0
        assert found["error"]["type"] == "rate_limit_error"
        second.close()
        until(live, running=1, waiting=0)
        third = ask(live.port, path, {**body, "max_tokens": 1})
        until(live, running=1, waiting=1)
        first.close()
        assert third.getresponse().status == 200
        third.close()


def test_leaving_while_a_long_prompt_is_read(endless, start):
    """A prompt is read in parts, so that nobody waits for the end of it."""
    with start(endless, limits=Limits(leaving=1.0)) as live:
        prompt = [7] * 4000
        connection = ask(live.port, "/v1/completions", {"prompt": prompt, "max_tokens": 10})
        until(live, running=1)
        job = live.service.engine.running
        connection.close()
        until(live, running=0)
        assert job.cancelled and job.results.empty()


@pytest.mark.parametrize(
    "prompt", [[[7] * 3000] * 4, [[7] * 3000, [8] * 2900, [9] * 2]], ids=["even", "uneven"]
)
def test_leaving_while_several_long_prompts_are_read(endless, start, prompt):
    """The rows of a pass share its bound, so that many are no longer to wait for than one."""
    sizes = []
    hook = endless[0].network.embedding.register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].numel())
    )
    with start(endless, limits=Limits(leaving=1.0)) as live:
        connection = ask(live.port, "/v1/completions", {"prompt": prompt, "max_tokens": 2})
        until(live, running=1)
        while not sizes:
            time.sleep(0.001)
        connection.close()
        until(live, running=0)
    hook.remove()
    assert max(sizes) <= CHUNK


def test_clients_that_leave_before_they_are_read_are_not_prepared(endless, start, monkeypatch):
    """A crowd of long requests, all gone: the next good one does not wait for them."""
    gate, prepared = threading.Event(), []

    def slow(served, prompt, each):
        prepared.append(prompt)
        gate.wait(30)
        return completion_prompts(served, prompt, each)

    monkeypatch.setattr(app, "completion_prompts", slow)
    with start(endless, limits=Limits(leaving=1.0)) as live:
        crowd = [ask(live.port, "/v1/completions", {"prompt": f"{n}"}) for n in range(8)]
        until(live, running=0, waiting=8)
        for connection in crowd:
            connection.close()
        until(live, running=0, waiting=0)
        gate.set()
        status, _, _ = live.ask(
            "/v1/completions", {"model": "chatty", "prompt": "good", "max_tokens": 1}
        )
        assert status == 200 and len(prepared) == app.PREPARING + 1


def test_a_crowd_that_is_being_read_fills_the_line_too(endless, start, monkeypatch):
    gate = threading.Event()

    def slow(served, prompt, each):
        gate.wait(30)
        return completion_prompts(served, prompt, each)

    monkeypatch.setattr(app, "completion_prompts", slow)
    with start(endless, limits=Limits(waiting=2, leaving=1.0)) as live:
        crowd = [ask(live.port, "/v1/completions", {"prompt": "a", "max_tokens": 1}) for _ in "ab"]
        until(live, running=0, waiting=2)
        status, _, _ = live.ask("/v1/completions", {"model": "chatty", "prompt": "a"})
        gate.set()
        assert status == 429 and [c.getresponse().status for c in crowd] == [200, 200]
        for connection in crowd:
            connection.close()
