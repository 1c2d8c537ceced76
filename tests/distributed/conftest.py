"""A pool of processes for each size, started once."""

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pools():
    """Pools by size, started when they are first asked for."""
    started = {}

    def pool(size):
        if size not in started:
            started[size] = Pool(size)
        return started[size]

    yield pool
    for each in started.values():
        each.close()
