"""The report of runs that fine-tune: answers side by side, what ends, losses, three ledgers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stemma.pipeline import report_words as words
from stemma.pipeline.report import write_report
from stemma.pipeline.report_conversations import conversation_checks, once_checks, place_checks
from stemma.pipeline.report_facts import read_run
from tests.pipeline.test_report import (
    CONTEXT,
    STAGES,
    Page,
    Summaries,
    assert_inert,
    make_run,
    read_page,
    summaries,
    write_json,
    write_rows,
)

ASSET = "asset:smollm2-135m"
QUESTIONS = ["Who are you?", "What is a garden?", "Who are you?", "Tell me\nmore", "Why?", "How?"]
TRAINED, MASKED, PADDED = 9_000, 5_000, 2_000  # over all passes
PLACES = TRAINED + MASKED + PADDED


def answers(name: str, loss: float, stopped: int, said: Callable[[str], str]) -> dict[str, Any]:
    """The row of one model in an evaluation of conversations."""
    samples = [
        {
            "prompt": said(question),
            "text": said(f"{name} answers {number}"),
            "ended": "stop" if number < stopped else "length",
        }
        for number, question in enumerate(QUESTIONS)
    ]
    row = {"name": name, "answer_loss": loss, "answer_tokens": 812, "answers": 40}
    interval = {0: [0.0, 0.0876], 39: [0.8712, 0.9956]}[stopped]
    row |= {"stopped": stopped, "interval": interval, "temperature": 0.8}
    return row | {"samples": samples}


def chat_summary(said: Callable[[str], str]) -> dict[str, Any]:
    """What a stage `sft` says of itself."""
    return {
        "parameters": 134_515_008,
        "trained_parameters": 28_311_552,
        "tokens": TRAINED,
        "steps": 40,
        "final_loss": 1.5,
        "model": {"family": "llama", "depth": 30},
        "conversations": {
            "read": 60,
            "train": 44,
            "heldout": 8,
            "dropped": {said("duplicate"): 5, "empty answer": 3},
            "rejected": 2,
            "trimmed": 4,
            "trailing_messages": 6,
            "groups": 50,
            "heldout_groups": 7,
            "overlap": None,
            "files": {
                said("a.jsonl"): {"format": "messages", "conversations": 30},
                "b.jsonl": {"format": "messages", "conversations": 10},
                "c.json": {"format": said("alpaca"), "conversations": 20},
            },
            "balanced": True,
        },
        "preflight": {
            "conversations": 44,
            "samples": 43,
            "rendered": 7_000,
            "trained": 4_100,
            "masked": 2_700,
            "cropped": 200,
            "shortened": 2,
            "dropped": {said("no answer fits the context"): 1},
            "doubled_bos": 0,
            "untrained_end": 3,
            "unrolled": 0,
            "seams": 1,
            "balanced": True,
        },
        "heldout_loss": {"before": 4.0, "after": 2.5},
        "ledger": {
            "store_tokens": 6_790,
            "documents": 43,
            "trained": TRAINED,
            "masked": MASKED,
            "padded": PADDED,
            "cropped": 0,
            "places": PLACES,
            "epochs": 2.0,
        },
    }


def chat_scores(names: list[str], said: Callable[[str], str]) -> dict[str, Any]:
    """Scores of conversations of these models, the last of them the one that was taught."""
    rows = [
        answers(name, 2.5 if name == names[-1] else 4.0, 39 if name == names[-1] else 0, said)
        for name in names
    ]
    return {"conversations": 8, "max_new_tokens": 64, "scores": rows}


def bits(name: str, value: float) -> dict[str, Any]:
    """The row of one model in an evaluation of documents."""
    return {"name": name, "bits_per_byte": value, "interval": [value - 0.03, value + 0.03]}


def metrics() -> Iterator[dict[str, Any]]:
    yield {"format_version": 1, "kind": "metrics"}
    yield {"step": 0, "tokens": 0, "heldout_answer_loss": 4.0}
    for step in range(1, 41):
        place = {"step": step, "tokens": TRAINED * step // 40}
        curve = {"loss": 1.5 + 3 / step, "learning_rate": 1e-4, "gradient_norm": 1 / step}
        yield place | curve | {"tokens_per_second": 90.0, "seconds": 0.1 * step}
        if step % 10 == 0:
            yield place | {"heldout_answer_loss": 2.3 + abs(step - 20) / 100}


def talk_samples(said: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    yield {"format_version": 1, "kind": "samples"}
    for step in (20, 40):
        place = {"step": step, "tokens": 9 * step, "prompt": said("Hello?")}
        yield place | {"text": said(f"Hello? Said at {step}"), "seed": 7, "temperature": 0.0}


Change = Callable[[Summaries], None]


def make_chat_run(
    folder: Path,
    *,
    alone: bool = False,
    said: Callable[[str], str] = str,
    change: Change = lambda found: None,
    done: tuple[str, ...] = ("chat", "scores"),
) -> Path:
    """A run that fine-tunes a stage, or with `alone` an asset and has no other training."""
    began = ASSET if alone else "base"
    names = [ASSET, "chat"] if alone else [ASSET, "base", "chat"]
    make_run(folder, done=0 if alone else 3, said=said)
    about = json.loads((folder / "run.json").read_text())
    stages = ["chat", "scores"] if alone else [*STAGES[:3], "chat", "scores"]
    write_json(folder / "run.json", about | {"stages": stages})
    found = {"chat": chat_summary(said), "scores": {"chat": chat_scores(names, said)}}
    if not alone:
        others = [r for r in summaries(said)["scores"]["scores"] if r["name"] != "model"]
        rows = [bits(ASSET, 2.2), bits("base", 1.9), bits("chat", 2.1), *others]
        found["scores"] |= {"scores": rows, "heldout": {"documents": 1, "bytes": 1000}}
    change(found)
    configs = {
        "chat": {"kind": "sft", "init": began, "context": CONTEXT},
        "scores": {"kind": "evaluate", "model": "chat", "before": names[:-1]},
    }
    for name in done:
        record = {"format_version": 1, "kind": configs[name]["kind"], "status": "complete"}
        record |= {"config": configs[name], "seconds": 100.0, "peak_memory_bytes": 6e8}
        write_json(folder / name / "stage.json", record | {"summary": found[name]})
    if "chat" in done:
        write_rows(folder / "chat" / "metrics.jsonl", metrics())
        write_rows(folder / "chat" / "samples.jsonl", talk_samples(said))
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(make_chat_run(tmp_path_factory.mktemp("runs") / "full"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(make_chat_run(tmp_path_factory.mktemp("runs") / "alone", alone=True))


def cards(page: Page) -> list[list[str]]:
    """Of each list of texts that stand side by side: the names on its cards."""
    lists = re.findall(r'<ul class="texts">(.*?)</ul>', page.text, re.DOTALL)
    return [re.findall(r"<b>([^<]*)</b>", found) for found in lists]


def test_both_pages_stand_alone(full: Page, alone: Page) -> None:
    for page in (full, alone):
        assert_inert(page)
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert {"scores", "answers", "curves", "samples", "ledger", "use"} <= set(ids)
        assert "not run yet" not in page.words and "Does not balance" not in page.words


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    bad = "</pre><script>alert(1)</script>&amp;\"'"
    page = read_page(make_chat_run(tmp_path, said=lambda text: bad))
    assert_inert(page)
    assert page.words.count("<script>alert(1)") > 10


def test_first_lines_say_what_was_made_and_how_it_answers(full: Page, alone: Page) -> None:
    assert "from 3 documents (4 kB of text), on 5,000 tokens, 5 passes over the text." in full.words
    assert "Then it fine-tuned base on 44 conversations: 9,000 tokens of answers" in full.words
    said = f"This run fine-tuned {ASSET}, a llama model with 135 million parameters, on 44"
    assert said in alone.words and "documents" not in alone.words
    ends = "Within 64 tokens, chat ends 39 of 40 answers to unseen questions by itself (95 %"
    for page in (full, alone):
        assert f"{ends} interval 87.1 % to 99.6 %); {ASSET} 0 of 40" in page.words
        assert "of its answers end by themselves 97.5 %" in page.words
    assert f"loss on held-out answers is 2.500 nats per token ({ASSET} 4.000)" in alone.words


def test_each_score_is_told_for_what_it_is(full: Page) -> None:
    assert "needs 1.900 bits per byte" in full.words  # of the stage that learned from documents
    assert "18.8 % below the best baseline, byte 5-gram (2.341)" in full.words
    said = f"On the same text {ASSET}, before training, needs 2.200 and chat needs 2.100."
    assert said in full.words
    tables = re.findall(r'<table class="scores">.*?</table>', full.text, re.DOTALL)
    kinds = [re.findall(r'<tr class="(\w+)">', table) for table in tables]
    documents = ["own", "own", "before", "other", "other", "other"]
    assert kinds == [documents, ["before", "own", "own"], ["before", "own", "own"]]
    dashed = re.sub(r"\s+", " ", " ".join(re.findall(r"<text[^>]*>(.*?)</text>", full.text)))
    assert "before training 2.20" in dashed and "base 2.15" in dashed


def test_a_model_from_elsewhere_is_no_baseline(tmp_path: Path) -> None:
    def move(found: Summaries) -> None:
        found["scores"]["scores"][0]["name"] = "../older/final"

    make_chat_run(tmp_path, change=move)
    path = tmp_path / "scores" / "stage.json"
    record = json.loads(path.read_text())
    record["config"]["before"][0] = "../older/final"
    write_json(path, record)
    run = read_run(tmp_path)
    stage = run.stages["scores"]
    assert [run.role(stage, row) for row in stage.scores[:4]] == [
        *("before", "model", "model", "baseline")
    ]


def test_bars_of_what_ends_are_drawn_to_all_answers(alone: Page) -> None:
    bars = [a["style"] for tag, a in alone.tags if tag in ("i", "b") and "style" in a]
    assert bars[:4] == [
        "width:0.00%",
        "left:0.00%;width:8.76%",
        "width:97.50%",
        "left:87.12%;width:12.44%",
    ]
    assert bars[4:6] == ["width:100.00%", "width:62.50%"]  # losses
    assert "Within 64 tokens." in alone.words and "temperature 0.8" in alone.words
    assert "812 tokens" in alone.words


def test_the_same_question_has_an_answer_of_each_model(full: Page, alone: Page) -> None:
    assert cards(full) == [[ASSET, "base", "chat"]] * len(QUESTIONS)
    assert cards(alone) == [[ASSET, "chat"]] * len(QUESTIONS)
    # two conversations that end in the same question are two questions
    for number in range(len(QUESTIONS)):
        assert re.search(rf"base .{{0,40}}base answers {number} chat .{{0,40}}\d", full.words)
    assert "2 more questions" in full.words
    assert full.words.count("ended by itself") == 6 and full.words.count("cut at the limit") == 12


def test_an_answer_that_repeats_the_question_is_shown_whole(full: Page) -> None:
    assert "step 40 · 360 tokens Hello? Said at 40" in full.words


def test_curves_of_every_training_stage(full: Page, alone: Page) -> None:
    for page, count in ((full, 10), (alone, 5)):
        labels = [a["aria-label"] for tag, a in page.tags if tag == "svg"]
        assert len(labels) == count and "held-out answers, nats per token" in labels
        assert "From 4.00 to 2.50 after 9 k tokens. Lowest: 2.30 after 4.5 k." in page.words
        said = "4.000 nats per token before the first step, 2.500 after the last (−37.5 %)."
        assert said in page.words
        assert "28.3 M of its 135 M parameters were trained." in page.words


def test_how_to_use_it(full: Page, alone: Page, tmp_path: Path) -> None:
    asked = 'stemma.generate(model, tokenizer, [{"role": "user", "content": "Hello?"}], '
    for page in (full, alone):
        assert "stemma chat " in page.words and asked in page.words
    assert "/base --prompt ROMEO." in full.words and "--prompt" not in alone.words
    # the model that comes last decides
    page = read_page(make_chat_run(tmp_path, done=()))
    assert "stemma chat" not in page.words and "--prompt ROMEO." in page.words


def test_a_half_done_run_has_a_page(tmp_path: Path) -> None:
    for number, done in enumerate([(), ("chat",)]):
        for alone in (True, False):
            folder = tmp_path / f"{number}-{alone}"
            page = read_page(make_chat_run(folder, alone=alone, done=done))
            assert_inert(page)
            assert "Not run yet: " in page.words and "Scores: not run yet." in page.words
    said = "Its loss on answers that it has not seen went from 4.000 to 2.500 nats per token."
    assert said in page.words and "Answers: not run yet." in page.words


def test_a_stage_that_was_cut_short_shows_its_curves(tmp_path: Path) -> None:
    make_chat_run(tmp_path, alone=True, done=("chat",))
    path = tmp_path / "chat" / "stage.json"
    write_json(path, json.loads(path.read_text()) | {"status": "running", "summary": {}})
    page = read_page(tmp_path)
    assert "A model: begun and not complete." in page.words
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_without_answers_or_anything_held_out(tmp_path: Path) -> None:
    def forget(found: Summaries) -> None:
        found["chat"]["heldout_loss"] = {"before": None, "after": None}
        for row in found["scores"]["chat"]["scores"]:
            row |= {"answers": 0, "stopped": 0, "interval": None, "samples": []}

    page = read_page(make_chat_run(tmp_path, alone=True, change=forget))
    assert_inert(page)
    assert "Within 64 tokens" not in page.words and "No answers were kept." in page.words
    assert "None" not in page.words and "nan" not in page.words.lower()


def test_the_ledgers_are_shown(full: Page) -> None:
    for said in (
        "60 conversations read = 44 for training + 8 held out + 8 dropped",
        "3 files with 60 conversations, 60 read",
        "Formats found: messages in 2 files and alpaca in c.json.",
        "7 of 50 different first turns",
        "4 conversations lost 6 messages after the last answer.",
        "2 conversations could not be read and went to chat/conversations/rejects.jsonl.",
        "7,000 tokens rendered = 4,100 trained + 2,700 masked + 200 cropped",
        "6,800 tokens trained or masked, 6,790 stored; the others are of samples left out",
        "samples with an answer whose end is not trained 3",
        "samples with two tokens that begin a text 0",
        "samples left out: no answer fits the context 1",
        "16,000 places = 9,000 trained + 5,000 masked + 2,000 padded",
        "the log ends at 9,000 tokens, the ledger says 9,000",
    ):
        assert said in full.words


def test_an_overlap_is_told(tmp_path: Path) -> None:
    def share(found: Summaries) -> None:
        found["chat"]["conversations"]["overlap"] = {"first_turns": 3, "conversations": 2}

    said = "3 held-out conversations begin like one in training, 2 are in it whole"
    assert said in read_page(make_chat_run(tmp_path, change=share)).words


COUNTS = [
    *(("conversations", key) for key in ("read", "train", "heldout")),
    *(("preflight", key) for key in ("conversations", "samples", "rendered", "trained")),
    *(("preflight", key) for key in ("masked", "cropped")),
    *(("ledger", key) for key in ("documents", "trained", "masked", "padded", "places")),
]


@pytest.mark.parametrize("keys", COUNTS, ids=".".join)
@pytest.mark.parametrize("error", [-1, 1])
def test_one_conversation_token_or_place_astray_is_flagged(
    tmp_path: Path, keys: tuple[str, str], error: int
) -> None:
    part, key = keys

    def change(found: Summaries) -> None:
        found["chat"][part][key] += error

    assert broken(make_chat_run(tmp_path, alone=True, change=change))


@pytest.mark.parametrize(
    ("key", "value"),
    [("store_tokens", 6_801), ("store_tokens", 8_044), ("documents", 42), ("epochs", 2.5)],
)
def test_stored_tokens_must_be_those_rendered_and_fit(
    tmp_path: Path, key: str, value: float
) -> None:
    def change(found: Summaries) -> None:
        found["chat"]["ledger"][key] = value

    assert broken(make_chat_run(tmp_path, alone=True, change=change))


def broken(folder: Path) -> list[str]:
    """The laws that a run does not keep; each is one red note of the page."""
    stage = read_run(folder).stages["chat"]
    laws = [*conversation_checks(stage), *once_checks(stage), *place_checks(stage)]
    page = write_report(folder).read_text("utf-8")
    red = re.findall(r'<li class="broken">Does not balance: ([^<]*)</li>', page)
    assert red == [law.words for law in laws if not law.holds]
    return red


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_report(make_chat_run(tmp_path))
    first = path.read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_a_number_stays_with_its_unit() -> None:
    given = "95 % of 4 kB in 2 h 3 min, 40 and 4 sheep"
    kept = "95\xa0% of 4\xa0kB in 2\xa0h 3\xa0min, 40 and 4 sheep"
    assert words.unbroken(given) == kept
