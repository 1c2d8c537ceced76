"""The score of the module: how many cases of the table are right in all their variants."""

import re
from pathlib import Path

import pytest

from stemma import api
from stemma.data.bpe import train_tokenizer
from tests.bad_inputs.interrupted import killed_copy, unbroken_weights

results: dict[str, list[bool]] = {}  # case number -> whether each variant came out right


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every variant, by the number that its id begins with."""
    found = re.search(r"tests/bad_inputs/.*\[(\d\d)-", report.nodeid)
    if found and (report.when == "call" or report.failed):
        results.setdefault(found[1], []).append(report.passed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the score."""
    if results:
        right = sum(all(variants) for variants in results.values())
        count = sum(map(len, results.values()))
        terminalreporter.write_line(
            f"bad inputs: {right}/{len(results)} cases, {count} variants tried"
        )


@pytest.fixture(scope="session")
def sound_model(tmp_path_factory: pytest.TempPathFactory):
    """A folder with a tiny model, whose copies the cases harm."""
    folder = tmp_path_factory.mktemp("sound") / "model"
    words = train_tokenizer(
        ["the cat sat on the mat and the dog ran"], vocab_size=262, splitting="gpt-2"
    )
    numbers = {"width": 16, "depth": 2, "num_heads": 2, "context": 32}
    model = api.build("llama", vocab_size=words.vocab_size, **numbers)
    api.save(model, words, folder)
    return folder


@pytest.fixture
def half_done(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interrupted run, which a case may harm."""
    return killed_copy(tmp_path, tmp_path_factory.getbasetemp())


@pytest.fixture
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of the run that was never stopped."""
    return unbroken_weights(tmp_path_factory.getbasetemp())
