"""The report is safe, self-contained, honest, and says what the files say."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.core.errors import DataError, UsageError
from stemma.pipeline import report_words as words
from stemma.pipeline.report import ledger, write_report
from stemma.pipeline.report_facts import read_run
from stemma.pipeline.report_ledger import document_checks, token_checks
from stemma.pipeline.report_plots import MAX_POINTS, Line, spread, thin

VOID = {"meta"}
INERT = {
    *"html head meta title style body main header footer nav section h1 h2 h3 h4 p a dl".split(),
    *"div dt dd".split(),
    *"table caption thead tbody tr th td small i b figure figcaption details summary".split(),
    *"ul ol li blockquote span pre code svg g defs path use clipPath clippath rect text".split(),
}
STAGES = ["corpus", "tokenizer", "base", "scores", "export"]
CONTEXT = 64
STORED, DOCUMENTS, STEPS, BATCH = 1003, 3, 40, 128
PLACES = STEPS * BATCH
ROOM = math.ceil((STORED - DOCUMENTS) / CONTEXT) * CONTEXT  # places of one pass
TRAINED = PLACES - 5 * (ROOM - STORED + DOCUMENTS)  # five passes end within the run

Summaries = dict[str, dict[str, Any]]


def summaries(said: Callable[[str], str]) -> Summaries:
    """What each stage says of itself; `said` has the last word on every free text."""
    scores = [
        {
            "name": "model",
            "bits_per_byte": 1.93124,
            "interval": [1.9012, 1.9587],
            "note": said("context 64"),
        },
        {"name": said("xz -9"), "bits_per_byte": 2.7402, "interval": None, "note": said("alone")},
        {"name": "unigram", "bits_per_byte": 4.733, "interval": None, "note": None},
        {"name": said("byte 5-gram"), "bits_per_byte": 2.3411, "interval": None, "note": ""},
    ]
    tokens = {"store_tokens": STORED, "trained": TRAINED, "masked": DOCUMENTS, "cropped": 0}
    tokens |= {"padded": PLACES - TRAINED, "places": PLACES}
    return {
        "corpus": {
            "read": {"documents": 9, "bytes": 9000},
            "train": {"documents": 3, "bytes": 4000},
            "heldout": {"documents": 1, "bytes": 1000},
            "dropped": {said("duplicate"): 4, "empty": 1},
            "dropped_bytes": 4000,
            "rejected_lines": 2,
            "heldout_groups": [said("hamlet")],
        },
        "tokenizer": {"vocab_size": 512, "bytes_per_token": 2.5, "train_bytes": 4000},
        "base": {
            "parameters": 4123136,
            "tokens": TRAINED,
            "steps": STEPS,
            "tokens_per_second": 5000.0,
            "final_loss": 3.25,
            "ledger": tokens | {"epochs": PLACES / ROOM},
            "model": {"family": said("llama"), "depth": 2, "tied": True},
        },
        "scores": {"scores": scores, "heldout": {"documents": 1, "bytes": 1000}},
        "export": {"folder": "hf", "format": said("hf"), "bytes": 16_500_000},
    }


KINDS = dict(zip(STAGES, ["curate", "tokenizer", "pretrain", "evaluate", "export"], strict=True))
SECONDS = dict(zip(STAGES, [4.2, 11.4, 728.3, 44.0, 2.1], strict=True))


def metrics(steps: int) -> Iterator[dict[str, Any]]:
    yield {"format_version": 1, "kind": "metrics"}
    for step in range(1, steps + 1):
        place = {"step": step, "tokens": TRAINED * step // steps}
        curve = {"loss": 3.25 + 1 / step, "learning_rate": 1e-3 / step, "gradient_norm": 1 / step}
        yield place | curve | {"tokens_per_second": 5e3 + step % 7, "seconds": 0.1 * step}
        if step % (steps // 4) == 0:
            yield place | {"heldout_bits_per_byte": 1.9 + steps / 4 / step}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def write_rows(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def make_run(
    folder: Path,
    *,
    done: int = len(STAGES),
    said: Callable[[str], str] = str,
    change: Callable[[Summaries], None] = lambda found: None,
    steps: int = STEPS,
) -> Path:
    """A run folder with the first `done` stages complete."""
    found = summaries(said)
    change(found)
    about = {
        "format_version": 1,
        "name": said("quick"),
        "seed": 7,
        "command": said("stemma run quick"),
        "stages": STAGES,
        "versions": {"stemma": said("0.1.0"), "torch": "2.13.0"},
        "machine": {"platform": said("Linux"), "cores": 2, "threads": 2, "memory_bytes": 16e9},
    }
    write_json(folder / "run.json", about)
    (folder / "recipe.yaml").write_text(said("name: quick"), "utf-8", errors="replace")
    for name in STAGES[:done]:
        record = {
            "format_version": 1,
            "kind": KINDS[name],
            "fingerprint": said("abc123"),
            "status": "complete",
            "config": {"context": CONTEXT},
            "seconds": SECONDS[name],
            "peak_memory_bytes": 412_000_000,
            "outputs": {said("out.json"): {"bytes": 100, "sha256": said("fe" * 32)}},
            "summary": found[name],
            "commands": [said("stemma run quick --until base")],
        }
        write_json(folder / name / "stage.json", record)
    if done >= 3:
        write_rows(folder / "base" / "metrics.jsonl", metrics(steps))
        header = {"format_version": 1, "kind": "samples"}
        place = {"prompt": said("ROMEO."), "seed": 7, "temperature": 0.8}
        texts = [
            place | {"step": s, "tokens": 100 * s, "text": said(f"wrote at {s}")}
            for s in range(1, 11)
        ]
        write_rows(folder / "base" / "samples.jsonl", [header, *texts])
    return folder


class Page(HTMLParser):
    """Reads a page and refuses it where a tag is left open or closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open = text, list[str]()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.outside_pictures: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if "svg" not in self.open:
            self.outside_pictures.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.pieces.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))

    def values(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def read_page(folder: Path) -> Page:
    return Page(write_report(folder).read_text("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(make_run(tmp_path_factory.mktemp("runs") / "quick"))


def assert_inert(page: Page) -> None:
    """Nothing on the page can run, load, or leave it."""
    assert {tag for tag, _ in page.tags} <= INERT
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert "://" not in page.text and "@import" not in page.text
    assert all(reference.startswith("#") for reference in page.values("href"))
    assert all(found == "url(#" for found in re.findall(r"url\(.", page.text))
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {n for n in names if n.startswith("on") or n in ("src", "srcset", "action")}
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_stands_alone(full: Page) -> None:
    assert_inert(full)
    assert full.text.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in full.text


def test_every_link_and_reference_has_one_target(full: Page) -> None:
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    used = full.values("href") + re.findall(r"url\((#[^)]*)\)", full.text)
    assert len(used) > 9 and {u.removeprefix("#") for u in used} <= set(ids)


def test_baselines_are_drawn_and_named_where_they_fit(full: Page) -> None:
    texts = re.findall(r"<text[^>]*>(.*?)</text>", full.text)
    labels = re.sub(r"\s+", " ", " ".join(texts))
    for label in ("this model 2.15", "byte 5-gram 2.34", "xz -9 2.74", "tokens trained on"):
        assert label in labels
    assert "unigram" not in labels and "Above the picture: unigram (4.73)." in full.words


def test_every_picture_has_words(full: Page) -> None:
    pictures = [attrs for tag, attrs in full.tags if tag == "svg"]
    assert len(pictures) == 5 and all(p["aria-label"] and p["role"] == "img" for p in pictures)
    assert sum(tag == "figcaption" for tag, _ in full.tags) == 5


@pytest.mark.parametrize(
    "hostile",
    [
        "</style></pre><script>alert(1)</script><img src=x onerror=alert(1)>",
        "$\\frac{1$ \" onload='x' style=\"background:url(//evil)\" ' > <!-- ]]> &lt; {0}",
    ],
)
def test_content_stays_content(tmp_path: Path, hostile: str) -> None:
    """Every free text of a run is hostile, and the page's structure does not notice."""
    harmless = "".join(c if c == " " else "x" for c in hostile)
    pages = []
    for name, text in (("bad", hostile), ("good", harmless)):
        pages.append(read_page(make_run(tmp_path / name, said=lambda given, text=text: text)))
    bad, good = pages
    assert {tag for tag, _ in bad.tags} <= INERT
    assert bad.outside_pictures == good.outside_pictures
    assert bad.words.count(hostile) == good.words.count(harmless) > 10


def test_characters_that_no_page_can_hold(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path, said=lambda given: given + "\x00\x1b[31m\ud800\r\n"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page.text)
    assert "wrote at 10\ufffd\ufffd[31m\ufffd" in page.words


def test_numbers_are_those_of_the_files(full: Page) -> None:
    for number in ("1.931", "1.901 – 1.959", "2.341", "+21.2 %", "4.12 million", "13 min 10 s"):
        assert number in full.words
    assert "17.5 % below the best baseline, byte 5-gram (2.341)" in full.words
    assert f"{TRAINED:,} trained" in full.words and f"{PLACES:,} places" in full.words
    assert "9 documents read = 3 for training + 1 held out + 5 dropped" in full.words
    assert "2 lines could not be read" in full.words
    assert "From 4.25 to 3.27" in full.words  # first and last training loss


def test_scores_are_sorted_and_drawn_to_scale(full: Page) -> None:
    bars = [a["style"] or "" for tag, a in full.tags if tag == "i" and "class" not in a]
    shares = [float(b.removeprefix("width:").removesuffix("%")) for b in bars]
    scores = (1.93124, 2.3411, 2.7402, 4.733)
    assert shares == pytest.approx([100 * s / scores[-1] for s in scores], abs=0.01)
    marked = [attrs for tag, attrs in full.tags if tag == "tr" and attrs.get("class") == "own"]
    assert len(marked) == 1


def test_samples_are_in_order_with_the_first_and_the_last(full: Page) -> None:
    steps = [int(step) for step in re.findall(r"wrote at (\d+)", full.words)]
    assert steps == sorted(steps) and {1, 10} <= set(steps)
    assert f"{len(steps)} of 10 shown" in full.words


def test_the_commands_repeat_the_run(full: Page) -> None:
    assert "stemma run quick stemma run quick --until base Seed 7." in full.words
    assert "--prompt ROMEO." in full.words


def test_differences_and_the_accelerator_are_put_in_a_sentence_and_a_row(tmp_path: Path) -> None:
    page = read_page(make_run(tmp_path))
    assert "with other versions, numbers may differ in their last digits." in page.words
    assert "accelerator" not in page.words
    about = json.loads((tmp_path / "run.json").read_text())
    for name, shown in (("", False), ("A fast one", True)):
        about["machine"]["accelerator"] = name
        write_json(tmp_path / "run.json", about)
        assert ("accelerator A fast one" in read_page(tmp_path).words) == shown
        assert ("accelerator" in read_page(tmp_path).words) == shown


@pytest.mark.parametrize(
    ("named", "count", "said"),
    [
        (3, 3, "Held out: 0.md, 1.md, 2.md."),
        (20, 1234, "18.md, 19.md and 1,214 more."),
        (20, None, "18.md, 19.md."),  # of a run that did not count
        (50, 50, "38.md, 39.md and 10 more."),
    ],
)
def test_heldout_sources_are_named_and_the_rest_counted(
    tmp_path: Path, named: int, count: int | None, said: str
) -> None:
    def change(found: Summaries) -> None:
        found["corpus"]["heldout_sources"] = [f"{number}.md" for number in range(named)]
        found["corpus"]["heldout_source_count"] = count

    assert said in read_page(make_run(tmp_path, change=change)).words


@pytest.mark.parametrize("done", range(len(STAGES) + 1))
def test_a_half_done_run_has_a_page(tmp_path: Path, done: int) -> None:
    page = read_page(make_run(tmp_path, done=done))
    assert_inert(page)
    waiting = STAGES[done:]
    assert ("This run is not finished." in page.words) == bool(waiting)
    missing = words.listed(waiting) if waiting else ""
    assert (f"Not run yet: {missing}." in page.words) == bool(waiting)
    rows = sum(t == "tr" and a.get("class") == "waiting" for t, a in page.tags)
    assert rows == len(waiting)


def test_a_stage_that_was_cut_short_shows_its_curves(tmp_path: Path) -> None:
    make_run(tmp_path, done=3)
    path = tmp_path / "base" / "stage.json"
    write_json(path, json.loads(path.read_text()) | {"status": "running", "summary": {}})
    with open(tmp_path / "base" / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "tokens": 99, "lo')
    page = read_page(tmp_path)
    assert "Begun and not complete: base." in page.words
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_a_page_of_a_diverged_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    with open(tmp_path / "base" / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "tokens": 9999, "loss": NaN, "gradient_norm": Infinity}\n')
    assert "nan" not in read_page(tmp_path).text.lower()


LEDGER = [
    *(("corpus", p, u) for p in ("read", "train", "heldout") for u in ("documents", "bytes")),
    ("corpus", "dropped", "empty"),
    *(("base", "ledger", key) for key in ("trained", "padded", "places")),
]


@pytest.mark.parametrize("keys", LEDGER, ids=".".join)
@pytest.mark.parametrize("error", [-1, 1])
def test_one_document_byte_or_token_astray_is_flagged(
    tmp_path: Path, keys: tuple[str, str, str], error: int
) -> None:
    stage, part, key = keys

    def change(found: Summaries) -> None:
        found[stage][part][key] += error

    assert broken(tmp_path / "bad", change)
    assert not broken(tmp_path / "good", lambda found: None)


def broken(folder: Path, change: Callable[[Summaries], None]) -> list[str]:
    """The red notes of a run's ledger, one for each law that does not hold."""
    make_run(folder, change=change, steps=4)
    run = read_run(folder)
    laws = [*document_checks(run.stages["corpus"]), *token_checks(run.stages["base"])]
    red = re.findall(r'<li class="broken">Does not balance: [^<]*</li>', ledger(run))
    assert len(red) == sum(not law.holds for law in laws)
    return red


def test_stored_tokens_must_fit_the_places_of_a_pass(tmp_path: Path) -> None:
    def lose_a_sample(found: Summaries) -> None:
        found["base"]["ledger"]["cropped"] = CONTEXT

    assert broken(tmp_path, lose_a_sample)


def test_a_log_that_ends_elsewhere_is_flagged(tmp_path: Path) -> None:
    make_run(tmp_path)
    path = tmp_path / "base" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"step": 40' not in line))
    laws = token_checks(read_run(tmp_path).stages["base"])
    assert [law.words for law in laws if not law.holds] == [
        f"the log ends at {TRAINED * 39 // 40:,} tokens, the ledger says {TRAINED:,}"
    ]


def test_dropped_bytes_are_checked_where_they_were_not_counted(tmp_path: Path) -> None:
    def forget(found: Summaries) -> None:
        del found["corpus"]["dropped_bytes"]

    def lose(found: Summaries) -> None:
        forget(found)
        found["corpus"]["dropped"] = {}
        found["corpus"]["read"]["documents"] = 4

    assert not broken(tmp_path / "counted", forget)
    assert broken(tmp_path / "lost", lose)


@pytest.mark.parametrize(
    ("score", "interval", "said"),
    [
        (2.0, [1.9, 2.1], "14.6 % below the best baseline, byte 5-gram (2.341)"),
        (2.3, [2.2, 2.4], "not clearly different from the best baseline, byte 5-gram (2.341)"),
        (
            2.5,
            [2.4, 2.6],
            "6.8 % above the best baseline, byte 5-gram (2.341): it is better than 2",
        ),
        (9.0, None, "it is better than 0 of the 3 baselines"),
    ],
)
def test_the_verdict_is_honest(
    tmp_path: Path, score: float, interval: list[float] | None, said: str
) -> None:
    def change(found: Summaries) -> None:
        found["scores"]["scores"][0] |= {"bits_per_byte": score, "interval": interval}

    assert said in words.score_words(read_run(make_run(tmp_path, change=change)))


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    path = write_report(make_run(tmp_path))
    first = path.read_bytes()
    mine: dict[Any, Any] = {
        "axes.labelsize": 30,
        "axes.spines.bottom": False,
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(mine):
        assert write_report(tmp_path).read_bytes() == first


def test_without_matplotlib_the_numbers_stay(
    tmp_path: Path, full: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = read_page(make_run(tmp_path))
    assert_inert(page)
    assert 'pip install "stemma-lm[report]"' in page.words
    assert not any(tag == "svg" for tag, _ in page.tags)
    cells = [sum(tag == "td" for tag, _ in found.tags) for found in (page, full)]
    assert cells[0] == cells[1] > 50


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    make_run(tmp_path, steps=8_000)
    assert write_report(tmp_path).stat().st_size < 1_000_000


@given(st.integers(1, 5 * MAX_POINTS), st.floats(-3, 3))
def test_thinning_keeps_the_last_point_and_the_range(length: int, rate: float) -> None:
    values = [math.sin(rate * i) for i in range(length)]
    line = thin(Line(range(length), values))
    assert len(line.tokens) == len(line.values) <= MAX_POINTS
    assert len(line.values) > min(length, MAX_POINTS) / 2
    assert line.values[-1] == values[-1] and line.tokens[-1] == length - 1
    assert list(line.tokens) == sorted(set(line.tokens))
    assert min(values) - 1e-9 <= min(line.values) and max(line.values) <= max(values) + 1e-9


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(1, 40)), min_size=1, max_size=9))
def test_labels_never_overlap_and_stay_where_there_is_room(
    boxes: list[tuple[float, float]],
) -> None:
    boxes.sort()
    wanted, heights = [b[0] for b in boxes], [b[1] for b in boxes]

    def overlaps(middles: list[float]) -> bool:
        ends = [(m - h / 2, m + h / 2) for m, h in zip(middles, heights, strict=True)]
        return any(b[0] < a[1] - 1e-6 for a, b in zip(ends, ends[1:], strict=False))

    placed = spread(wanted, heights)
    assert not overlaps(placed)
    if not overlaps(wanted):
        assert placed == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("number", "said"),
    [(999, "999"), (999.6, "1 k"), (1000, "1 k"), (4123456, "4.12 M"), (2.5e15, "2,500 T")],
)
def test_short_numbers(number: float, said: str) -> None:
    assert words.short(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.99, "10 s"), (59.7, "1 min 0 s"), (3599.6, "1 h 0 min"), (None, "–")],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


def damage_log(folder: Path) -> None:
    path = folder / "base" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"step": 1,', *lines[2:], ""]))


def damage_record(folder: Path) -> None:
    (folder / "base" / "stage.json").write_text("[1]")


def come_from_the_future(folder: Path) -> None:
    write_json(folder / "base" / "stage.json", {"format_version": 2})


def point_outside(folder: Path) -> None:
    path = folder / "run.json"
    write_json(path, json.loads(path.read_text()) | {"stages": ["../elsewhere"]})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_log, "metrics.jsonl:2: damaged"),
        (damage_record, "stage.json: damaged (not a mapping)"),
        (come_from_the_future, "format_version 2 is newer than the 1"),
        (point_outside, "'../elsewhere' names no stage"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    folder = make_run(tmp_path / "run")
    damage(folder)
    with pytest.raises((DataError, UsageError), match=re.escape(said)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
