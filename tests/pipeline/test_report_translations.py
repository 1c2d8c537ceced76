"""The report of a translator: its scores and how they were counted, and an account that balances.

What no run should break is tested with a folder made here: hostile texts, half-done stages, and
numbers that are one astray.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stemma.pipeline.report_facts import read_run
from stemma.pipeline.report_translations import example, line_checks, place_checks
from tests.pipeline.test_report import Page, assert_inert, read_page, write_json, write_rows

PAIRS = {"lines": 103, "train": 100, "empty": 2, "too_long": 1}
HELDOUT = {
    "lines": 12,
    "scored": 11,
    "empty": 1,
    "outside_loss": 1,
    "seen_sources": 3,
    "seen_pairs": 2,
}
STEPS, TARGETS, PLACES = 20, 900, 1024  # of a step
LONG = "A sentence that is a good deal longer than what anybody would like to type."


def summary(said: Callable[[str], str]) -> dict[str, Any]:
    """What a translator tells of itself."""
    shown = [(LONG, "lang"), ("Two dogs run.", "Zwei Hunde rennen."), ("It snows.", "Es schneit.")]
    return {
        "parameters": 2_340_000,
        "trained_parameters": 2_340_000,
        "tokens": STEPS * TARGETS,
        "steps": STEPS,
        "training_seconds": 61.0,
        "final_loss": 2.345,
        "model": {"family": "transformer", "width": 128, "depth": 4},
        "ledger": {
            "pairs": dict(PAIRS),
            "heldout": dict(HELDOUT),
            "trained": STEPS * TARGETS,
            "padded": STEPS * (PLACES - TARGETS),
            "places": STEPS * PLACES,
            "epochs": 2.5,
        },
        "translation": {
            "bleu": 33.14,
            "bleu_signature": said("nrefs:1|case:mixed|tok:13a"),
            "chrf": 58.26,
            "chrf_signature": said("nrefs:1|nc:6"),
            "sentences": 11,
            "search": {"beams": 5, "alpha": 1.0, "max_new_tokens": 80},
            "shown": [
                {"source": said(source), "wanted": said(wanted), "made": said(f"made {number}")}
                for number, (source, wanted) in enumerate(shown)
            ],
        },
    }


def metrics() -> Iterator[dict[str, Any]]:
    """A log with the loss of each step, and of held-out pairs every fifth."""
    yield {"format_version": 1, "kind": "metrics"}
    for step in range(1, STEPS + 1):
        at = {"step": step, "tokens": step * TARGETS}
        yield {**at, "loss": 6 / step + 2, "learning_rate": 1e-3, "gradient_norm": 1.0}
        if step % 5 == 0:
            yield {**at, "heldout_target_loss": 5 / step + 2}


def make_run(
    folder: Path,
    *,
    said: Callable[[str], str] = str,
    change: Callable[[dict[str, Any]], None] = lambda found: None,
    done: bool = True,
) -> Path:
    """A run folder with one translator."""
    found = summary(said)
    change(found)
    about = {"format_version": 1, "name": "german", "seed": 7, "command": "stemma run german"}
    write_json(folder / "run.json", about | {"stages": ["translator"]})
    record = {
        "format_version": 1,
        "kind": "translate",
        "status": "complete" if done else "running",
        "config": {"context": 512, "label_smoothing": 0.1},
        "seconds": 70.0,
        "peak_memory_bytes": 412_000_000,
        "summary": found if done else {},
    }
    write_json(folder / "translator" / "stage.json", record)
    write_rows(folder / "translator" / "metrics.jsonl", metrics())
    sample = {"prompt": said("It snows."), "text": said("Es"), "step": 5, "tokens": 5 * TARGETS}
    write_rows(folder / "translator" / "samples.jsonl", [{"format_version": 1}, sample])
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(make_run(tmp_path_factory.mktemp("runs") / "german"))


def test_the_page_stands_alone(full: Page) -> None:
    assert_inert(full)


def test_the_first_lines_say_what_was_made_and_how_good_it_is(full: Page) -> None:
    for sentence in (
        "This run trained translator, a transformer model with 2.34 million parameters, to "
        "translate from 100 sentence pairs, on 18 thousand target tokens, 2.5 passes over them.",
        "translator translates 11 held-out sentences by beam search along 5 paths with BLEU 33.1 "
        "and chrF 58.3.",
    ):
        assert sentence in full.words
    for figure in ("BLEU, held-out sentences", "chrF, held-out sentences", "sentence pairs"):
        assert figure in full.words


def test_scores_stand_beside_their_signatures_and_the_search(full: Page) -> None:
    assert "BLEU 33.14 nrefs:1|case:mixed|tok:13a" in full.words
    assert "chrF 58.26 nrefs:1|nc:6" in full.words
    said = "beams: 5; exponent of the penalty on length: 1; tokens at most: 80."
    assert f"Found by beam search; {said}" in full.words


def test_translations_stand_beside_what_was_wanted(full: Page) -> None:
    assert "source wanted made" in full.words
    assert "Two dogs run. Zwei Hunde rennen. made 1 It snows. Es schneit. made 2" in full.words
    assert "The first 3 of 11 held-out sentences" in full.words


def test_curves_and_samples_are_those_of_the_log(full: Page) -> None:
    assert "held-out translations, nats per token" in full.words
    assert "From 3.00 to 2.25 after 18 k target tokens." in full.words
    assert "label smoothing: 10 % of the probability" in full.words
    assert "Translated by the model, by its beam search; nothing was chosen by hand" in full.words
    assert "at temperature" not in full.words


def test_the_ledger_balances_and_tells_what_training_has_too(full: Page) -> None:
    for said in (
        "✓ 103 lines = 100 for training + 2 left out: empty + 1 left out: too long",
        "✓ 12 held-out lines = 11 scored + 1 not scored: empty",
        "✓ 11 held-out pairs, scores of 11",
        "✓ 20,480 places = 18,000 trained + 2,480 padded",
        "✓ the log ends at 18,000 target tokens, the ledger says 18,000",
        "3 held-out sentences are in training too, 2 with the same translation",
        "The loss along training leaves out 1 held-out translation",
    ):
        assert said in full.words
    assert "Does not balance" not in full.words


COUNTS = [("pairs", key) for key in PAIRS] + [("heldout", key) for key in list(HELDOUT)[:3]]
COUNTS += [(key,) for key in ("trained", "padded", "places")]


@pytest.mark.parametrize("keys", COUNTS, ids=".".join)
@pytest.mark.parametrize("error", [-1, 1])
def test_one_line_or_place_astray_is_flagged(
    tmp_path: Path, keys: tuple[str, ...], error: int
) -> None:
    def change(found: dict[str, Any]) -> None:
        part = found["ledger"] if len(keys) == 1 else found["ledger"][keys[0]]
        part[keys[-1]] += error

    stage = read_run(make_run(tmp_path / "run", change=change)).stages["translator"]
    assert not all(check.holds for check in (*line_checks(stage), *place_checks(stage)))
    assert "Does not balance" in read_page(tmp_path / "run").words


def test_how_to_use_it_is_how_it_works(full: Page) -> None:
    assert "Translate with the model" in full.words
    assert "--prompt 'Two dogs run.'" in full.words
    assert "stemma.generate(model, tokenizer, 'Two dogs run.'))" in full.words
    assert "seed=0" not in full.words and "Once upon a time" not in full.words


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;b&gt;", "\x00\u202e"],
)
def test_texts_stay_texts(tmp_path: Path, hostile: str) -> None:
    page = read_page(make_run(tmp_path / "run", said=lambda text: f"{hostile} {text}"))
    assert_inert(page)


def keep_all(found: dict[str, Any]) -> None:
    """Nothing is missing."""


def lose_scores(found: dict[str, Any]) -> None:
    found["translation"] = {}


def be_of_an_older_version(found: dict[str, Any]) -> None:
    found["ledger"] = {"pairs": 70, "too_long": 0}


def be_damaged(found: dict[str, Any]) -> None:
    found["ledger"] = {"pairs": [], "heldout": 3, "places": "many"}
    found["translation"] = {"bleu": "good", "shown": [3, {"source": None}], "search": []}


@pytest.mark.parametrize("change", [keep_all, lose_scores, be_of_an_older_version, be_damaged])
def test_a_record_with_gaps_has_a_page(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    assert_inert(read_page(make_run(tmp_path / "run", change=change)))


def test_a_half_done_run_shows_its_curves(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path / "run", done=False))
    assert_inert(page)
    assert "held-out translations, nats per token" in page.words
    assert "Translations: begun and not complete." in page.words


def test_the_example_is_a_sentence_that_one_can_type() -> None:
    found = summary(str)["translation"]
    assert example(found) == "Two dogs run."
    long = copy.deepcopy(found)
    long["shown"] = [{"source": LONG + " More."}, {"source": LONG}, {"source": "a\x1b[2J"}]
    assert example(long) == LONG
    assert example({}) == "a sentence to translate"
    assert example({"shown": [None, {"source": ""}]}) == "a sentence to translate"
