"""One shim and one zygote for all tests of faults, and an unbroken run of every trainer."""

import pytest

from tests.faults import shim
from tests.faults.forks import Zygote
from tests.faults.shim import Fault
from tests.faults.trainers import TRAINERS
from tests.faults.trial import prepared

said: list[str] = []


@pytest.fixture
def tell():
    """Say a figure at the end of the whole run, whether tests pass or not."""
    return lambda line: said.append(str(line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures."""
    for line in said:
        terminalreporter.write_line(f"faults: {line}")


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zygote")
    forks = Zygote(shim.build(folder), folder)
    yield forks
    forks.close()


@pytest.fixture(scope="session", params=sorted(TRAINERS))
def ready(request, zygote, tmp_path_factory):
    """A project of each trainer with only its own stage to run."""
    return prepared(zygote, TRAINERS[request.param], tmp_path_factory.mktemp(request.param) / "a")


@pytest.fixture(scope="session")
def unbroken(ready):
    """The same project, run without a break."""
    trial = ready.copied(ready.folder.with_name("unbroken"))
    assert trial.finish().resumed is None
    return trial


@pytest.fixture(scope="session")
def third_save(ready):
    """The write-side calls of the third save of a run, retention included."""
    trial = ready.copied(ready.folder.with_name("traced"))
    return trial.run(fault=Fault(), at="save", number=3).calls


@pytest.fixture
def trial(ready, tmp_path):
    """A project that a test may break."""
    return ready.copied(tmp_path / "trial")
