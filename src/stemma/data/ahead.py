"""Building ahead: threads make the next batches while a step runs, taken in the order of steps.

What is made is a pure function of its number, so nothing depends on how many threads make it.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Made = TypeVar("Made")


def ahead(
    make: Callable[[int], Made], numbers: range, *, workers: int
) -> Generator[Made, None, None]:
    """`make(number)` for each number in order, at most `workers` + 1 of them begun and not taken.

    Without workers each is made when it is asked for. What `make` raises comes where its result
    would have come. The threads end with the iterator, also where that is closed early.

    >>> list(ahead(lambda step: step * step, range(2, 5), workers=2))
    [4, 9, 16]
    """
    if workers == 0:
        yield from map(make, numbers)
        return
    left = iter(numbers)
    begun: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stemma-batch")
    try:
        begun.extend(pool.submit(make, number) for number in islice(left, workers + 1))
        while begun:
            made = begun.popleft().result()
            begun.extend(pool.submit(make, number) for number in islice(left, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
