"""Building ahead: the same results in the same order, a bounded number early, no thread left."""

import threading
from itertools import islice

import pytest

from stemma.data.ahead import ahead


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("stemma-batch")]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("numbers", [range(3, 40), range(3, 5), range(0)])
def test_results_come_in_order(workers, numbers):
    assert list(ahead(lambda n: n * n, numbers, workers=workers)) == [n * n for n in numbers]
    assert not threads()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_order_does_not_depend_on_who_is_ready_first(workers):
    later = threading.Event()

    def make(number):
        if number == 0 and workers > 1:
            assert later.wait(10), "nobody works beside the first"
        if number == 1:
            later.set()
        return number

    assert list(ahead(make, range(6), workers=workers)) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_bounded_number_is_begun(workers):
    begun = []
    made = ahead(lambda n: begun.append(n) or n, range(100), workers=workers)
    for taken in range(1, 8):
        assert next(made) == taken - 1
        assert taken <= len(begun) <= taken + workers + 1 if workers else len(begun) == taken
    made.close()
    assert len(begun) < 20


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_comes_where_its_result_would_have_come(workers):
    made = ahead(lambda n: 6 // (3 - n), range(9), workers=workers)
    assert list(islice(made, 3)) == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert not threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_end_with_the_iterator(workers):
    made = ahead(lambda n: n, range(100), workers=workers)
    assert next(made) == 0 and threads()
    made.close()
    assert not threads()
