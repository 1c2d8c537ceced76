"""The engine alone: its line, its failures, its end."""

import asyncio
import threading

import pytest

from stemma.core.errors import ModelError
from stemma.infer.sampling import Sampling
from stemma.serve import engine as engines
from stemma.serve.engine import Engine, Job
from stemma.serve.refusal import Refusal
from tests.serve.conftest import served


def job(served, *, tokens=4, ids=(5, 6), count=1):
    settings = Sampling(max_new_tokens=tokens, seed=0)
    return Job(served, [list(ids)] * count, [settings] * count, frozenset())


async def read(one):
    return [piece async for piece in one.pieces()]


@pytest.fixture(scope="module")
def small():
    return served("small", chat=False, context=64)


def held(monkeypatch):
    """Let no pass through a model begin before the event is set."""
    gate, begun = threading.Event(), threading.Event()
    real = engines.stream

    def waiting(*args, **settings):
        begun.set()
        gate.wait(30)
        yield from real(*args, **settings)

    monkeypatch.setattr(engines, "stream", waiting)
    return gate, begun


def run(coroutine):
    return asyncio.run(coroutine)


def test_jobs_are_answered_in_order(models):
    async def main():
        engine = Engine(8)
        engine.start()
        jobs = [job(models[0], tokens=n) for n in (1, 2, 3)]
        for one in jobs:
            engine.submit(one)
        found = [len(await read(one)) for one in jobs]
        engine.stop()
        return found

    assert run(main()) == [1, 2, 3]


def test_a_full_line_refuses_with_a_time_to_come_back(models, monkeypatch):
    gate, begun = held(monkeypatch)

    async def main():
        engine = Engine(2)
        engine.start()
        jobs = [job(models[0]) for _ in range(3)]
        engine.submit(jobs[0])
        await asyncio.to_thread(begun.wait, 30)
        engine.submit(jobs[1])
        engine.submit(jobs[2])
        with pytest.raises(Refusal) as caught:
            engine.submit(job(models[0]))
        assert engine.state() == {"running": 1, "waiting": 2}
        gate.set()
        assert [len(await read(one)) for one in jobs] == [4, 4, 4]
        engine.stop()
        return caught.value

    refusal = run(main())
    assert refusal.status == 429 and refusal.headers == {"Retry-After": "2"}
    assert "2 requests are waiting" in refusal.message


def test_a_cancelled_job_leaves_the_line_and_is_never_begun(models, monkeypatch):
    gate, begun = held(monkeypatch)

    async def main():
        engine = Engine(4)
        engine.start()
        first, second, third = (job(models[0]) for _ in range(3))
        for one in (first, second, third):
            engine.submit(one)
        await asyncio.to_thread(begun.wait, 30)
        engine.cancel(second)
        assert engine.state() == {"running": 1, "waiting": 1}
        gate.set()
        assert len(await read(third)) == 4 and second.results.empty()
        engine.stop()

    run(main())


def test_a_failing_model_is_told_without_its_reason_and_the_next_job_runs(
    models, monkeypatch, caplog
):
    real, failed = engines.stream, []

    def failing(*args, **settings):
        if not failed:
            failed.append(True)
            raise RuntimeError("secret of somebody")
        yield from real(*args, **settings)

    monkeypatch.setattr(engines, "stream", failing)

    async def main():
        engine = Engine(4)
        engine.start()
        first, second = job(models[0]), job(models[0])
        engine.submit(first)
        with pytest.raises(Refusal) as caught:
            await read(first)
        engine.submit(second)
        assert len(await read(second)) == 4
        engine.stop()
        return caught.value

    with caplog.at_level("ERROR", logger="stemma"):
        refusal = run(main())
    assert refusal.status == 500 and "secret" not in refusal.message
    assert "secret of somebody" in caplog.text


def test_our_own_errors_say_what_is_wrong(models, monkeypatch):
    def failing(*args, **settings):
        raise ModelError("the model's scores are not finite numbers", place="models/somebody")

    monkeypatch.setattr(engines, "stream", failing)

    async def main():
        engine = Engine(4)
        engine.start()
        one = job(models[0])
        engine.submit(one)
        with pytest.raises(Refusal, match="not finite numbers") as caught:
            await read(one)
        engine.stop()
        assert "somebody" not in caught.value.message

    run(main())


def test_an_engine_that_leaves_finishes_and_takes_nothing_more(models, monkeypatch):
    gate, begun = held(monkeypatch)

    async def main():
        engine = Engine(4)
        engine.start()
        one = job(models[0])
        engine.submit(one)
        await asyncio.to_thread(begun.wait, 30)
        engine.leave()
        with pytest.raises(Refusal) as caught:
            engine.submit(job(models[0]))
        assert caught.value.status == 503
        gate.set()
        assert len(await read(one)) == 4
        engine.stop()
        assert not engine.thread.is_alive()

    run(main())


def test_an_engine_that_stops_ends_what_runs_and_what_waits(endless):
    async def main():
        engine = Engine(4)
        engine.start()
        first, second = job(endless[0], tokens=4000), job(endless[0])
        engine.submit(first)
        engine.submit(second)
        pieces = first.pieces()
        assert await anext(pieces) is not None
        await asyncio.to_thread(engine.stop)
        for rest in (pieces, second.pieces()):
            with pytest.raises(Refusal, match="stopping"):
                async for _ in rest:
                    pass
        assert not engine.thread.is_alive()

    run(main())


@pytest.mark.parametrize(
    ("prompts", "tokens", "runs"),
    [
        ([[7]] * 9, 64, [4, 4, 1]),
        ([[7]] * 9, 10, [9]),
        ([[7]], 5, [1]),
        ([[7] * 60] + [[7]] * 9, 1, [2, 8]),
        ([[7]] * 3 + [[7] * 60], 1, [3, 1]),
        ([[7] * 20, [7] * 30] * 3, 30, [4, 2]),
    ],
)
def test_what_is_answered_together_fits_the_memory(small, prompts, tokens, runs):
    """Counted as the cache does: as many places for each as the longest needs."""

    async def main():
        one = job(small, tokens=tokens)
        one.prompts = prompts
        one.samplings = one.samplings * len(prompts)
        return [list(run) for run in engines.batches(one)]

    found = run(main())
    assert [len(each) for each in found] == runs
    assert [row for each in found for row in each] == list(range(len(prompts)))
    for each in found:
        lengths = [len(prompts[row]) for row in each]
        steps = max(min(tokens, small.context - length) for length in lengths)
        places = len(each) * (max(lengths) + steps)
        assert places <= engines.CONTEXTS * small.context
        assert len(each) * max(lengths) <= engines.MOST_PADDING * sum(lengths)


def test_answers_that_take_turns_are_the_answers(small):
    async def main():
        engine = Engine(4)
        engine.start()
        many = job(small, tokens=64, count=9)
        engine.submit(many)
        pieces = await read(many)
        engine.stop()
        return [[p.token_id for p in pieces if p.row == row] for row in range(9)]

    ids = run(main())
    assert all(ids[0] == other and other for other in ids[1:])  # one seed for all
