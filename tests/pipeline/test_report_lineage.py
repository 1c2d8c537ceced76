"""The report of a comparison of networks: right words for every outcome, and names in their place.

The summaries are made with the comparison that the stage itself uses, of scores that are made up.
"""

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stemma.eval.comparison import Trial, compare
from stemma.pipeline import report_lineage_words as lineage
from stemma.pipeline.report import write_report
from stemma.pipeline.report_facts import read_run
from stemma.pipeline.report_lineage import Point, points, readme_panels
from stemma.pipeline.report_lineage_plots import LABEL, Course, Panel, visible_range
from tests.pipeline.test_report import INERT, Page, assert_inert, read_page, write_json

NETWORKS = {  # name -> family and score
    "rnn": ("rnn", 2.9),
    "lstm": ("lstm", 2.6),
    "gru": ("gru", 2.61),
    "post": ("decoder", 2.45),
    "pre": ("decoder", 2.42),
    "gpt2": ("gpt2", 2.41),
    "neox": ("neox", 2.405),
    "llama": ("llama", 2.3),
    "mistral": ("mistral", 2.302),
    "mixtral": ("mixtral", 2.304),
    "linear": ("linear", 2.55),
    "performer": ("performer", 2.65),
    "delta": ("delta", 2.38),
}
RATES = (0.001, 0.003, 0.01)
POINTS, TOKENS, PIECES = 8, 80_000, 20
NGRAMS = {2: 3.4, 3: 3.1, 4: 3.0}
NOISE = (0.0011, -0.0007, 0.0002)  # of a seed, the same for all networks but for their turn

Change = Callable[[dict[str, Any]], None]


def seed_scores(bits: float, place: int, seeds: int) -> list[float]:
    """Scores that differ by seed, in each network in another way."""
    return [bits + 0.01 * seed + NOISE[(seed + place) % 3] for seed in range(seeds)]


def curve(bits: float, flops: float) -> list[dict[str, float]]:
    """Scores that fall to their last."""
    shares = [(place + 1) / POINTS for place in range(POINTS)]
    return [
        {
            "tokens": TOKENS * share,
            "flops": TOKENS * share * flops,
            "seconds": 40 * share * flops / 1e6,
            "bits_per_byte": bits + 0.5 * (share**-0.5 - 1),
        }
        for share in shares
    ]


def network(place: int, family: str, scores: Sequence[float]) -> dict[str, Any]:
    """What the stage says about one network."""
    flops = 1e6 * (1 + 0.1 * place)
    lengths = (64, 256, 1024)
    grows = family not in ("rnn", "lstm", "gru", "linear", "performer", "delta")
    kinds = {
        "recurrent": ("rnn", "lstm", "gru"),
        "linear": ("linear", "performer", "delta"),
        "experts": ("mixtral",),
    }
    kind = next((name for name, members in kinds.items() if family in members), "attention")
    return {
        "family": family,
        "kind": kind,
        "learning_rate": RATES[1],
        "parameters": 200_000,
        "without_embedding": 100_000 + place,
        "flops_per_token": flops,
        "tokens_per_second": [1000.0 + place + seed for seed in range(len(scores))],
        "bits_per_byte": list(scores),
        "curves": [curve(bits, flops) for bits in scores],
        "decode": [
            {
                "length": length,
                "milliseconds": 0.5 + length / 1000 * grows,
                "state_bytes": 1024 * (length if grows else 1),
            }
            for length in lengths
        ],
    }


def summary(
    scores: Mapping[str, tuple[str, float]],
    *,
    seeds: int = 3,
    ngrams: Mapping[int, float] = NGRAMS,
    pieces: int = PIECES,
) -> dict[str, Any]:
    """A summary as the stage writes it."""
    trials: dict[str, Sequence[Trial]] = {}
    networks = {}
    for place, (name, (family, bits)) in enumerate(scores.items()):
        found = seed_scores(bits, place, seeds)
        networks[name] = network(place, family, found)
        texts = [[(100 * b + piece, 100.0) for piece in range(pieces)] for b in found]
        trials[name] = [Trial(i, found[i], texts[i]) for i in range(seeds)]
    sweep = [
        {"network": name, "learning_rate": rate, "bits_per_byte": bits + abs(rate - RATES[1])}
        for name, (_, bits) in scores.items()
        for rate in RATES
    ]
    return {
        "networks": networks,
        "sweep": sweep,
        "comparison": compare(trials),
        "ngrams": [{"order": order, "bits_per_byte": bits} for order, bits in ngrams.items()],
        "heldout_bytes": 128_000,
    }


def make_run(folder: Path, found: dict[str, Any], *, status: str = "complete") -> Path:
    """A run folder with a corpus and a comparison."""
    about = {
        "format_version": 1,
        "name": "tree",
        "seed": 0,
        "command": "stemma run tree.yaml",
        "stages": ["corpus", "tree"],
    }
    write_json(folder / "run.json", about)
    corpus = {
        "read": {"documents": 4, "bytes": 5000},
        "train": {"documents": 3, "bytes": 4000},
        "heldout": {"documents": 1, "bytes": 1000},
        "dropped": {},
    }
    config = {
        "tokens": TOKENS,
        "seeds": 3,
        "learning_rates": list(RATES),
        "sweep_share": 0.25,
        "watch_bytes": 32_000,
        "networks": {name: {} for name in NETWORKS},
    }
    kinds = {"corpus": ("curate", corpus, {}), "tree": ("lineage", found, config)}
    for name, (kind, said, given) in kinds.items():
        state = status if kind == "lineage" else "complete"
        record = {"format_version": 1, "kind": kind, "status": state, "seconds": 3.5}
        write_json(folder / name / "stage.json", record | {"summary": said, "config": given})
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(make_run(tmp_path_factory.mktemp("runs") / "tree", summary(NETWORKS)))


def said_of(folder: Path, found: dict[str, Any]) -> str:
    """The sentences about an outcome, in one."""
    stage = read_run(make_run(folder, found)).stages["tree"]
    networks = lineage.networks(stage)
    return " ".join(
        [
            lineage.made_words(stage, networks),
            lineage.rates_words(stage),
            lineage.best_words(stage, networks),
            lineage.behind_words(networks),
            lineage.ngram_words(stage, networks),
            *lineage.limits(stage, networks),
        ]
    )


def test_the_page_stands_alone_and_every_picture_has_words(full: Page) -> None:
    assert_inert(full)
    pictures = [attrs for tag, attrs in full.tags if tag == "svg"]
    assert len(pictures) == 5 and all(p["aria-label"] and p["role"] == "img" for p in pictures)
    assert sum(tag == "figcaption" for tag, _ in full.tags) == 5
    ids = full.values("id")
    assert len(ids) == len(set(ids))
    used = full.values("href") + re.findall(r"url\((#[^)]*)\)", full.text)
    assert {u.removeprefix("#") for u in used} <= set(ids)


def test_a_run_that_only_compares_offers_no_model(full: Page) -> None:
    headings = re.findall(r"<h2>([^<]*)</h2>", full.text)
    assert headings[0] == "Lineage"
    assert not {"Scores", "Learning curves", "Samples along training"} & set(headings)
    assert not any("the model" in heading for heading in headings)
    assert "stemma generate" not in full.text and "not run yet" not in full.words


def test_the_page_says_what_the_files_say(full: Page) -> None:
    best = sum(seed_scores(2.3, list(NETWORKS).index("llama"), 3)) / 3
    assert f"llama is best with {best:.3f} bits per byte (95 % interval" in full.words.replace(
        "\u00a0", " "
    )
    assert "13 networks were each trained on 80 thousand tokens from 3 seeds." in full.words
    assert "Each has the best of 3 learning rates, tried on 25 % of the tokens." in (
        full.words.replace("\u00a0", " ")
    )
    assert f"13 networks, best llama: {best:.3f} bits per byte" in full.words
    assert "Both are taken at 99.9 %" in full.words.replace("\u00a0", " ")


def test_networks_stand_best_first_and_ngrams_below(full: Page) -> None:
    table = full.text.split('<table class="lineage">')[1].split("</table>")[0]
    names = re.findall(r'aria-hidden="true"></i>([^<]+)', table)
    assert names[:13] == sorted(NETWORKS, key=lambda name: NETWORKS[name][1])
    assert names[13:] == ["4-gram", "3-gram", "2-gram"]
    rows = table.split("<tr")[2:]
    assert "the best" in rows[0] and ">yes<" not in rows[0] and ">no<" not in rows[0]
    assert all((">yes<" in row) != (">no<" in row) for row in rows[1:13])


def text_places(picture: str) -> dict[str, tuple[float, float]]:
    """Where each text of a picture stands."""
    found = re.findall(r"<text([^>]*)>([^<]+)</text>", picture)
    places = {}
    for attributes, text in found:
        moved = re.search(r'translate\(([\d.]+) ([\d.]+)\)|x="([\d.]+)" y="([\d.]+)"', attributes)
        assert moved, attributes
        x, y = [float(number) for number in moved.groups() if number is not None]
        places[text] = (x, y)
    return places


def test_every_line_is_named_once_and_no_names_overlap(full: Page) -> None:
    pictures = re.findall(r"<svg.*?</svg>", full.text, re.S)
    for picture in pictures:
        width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', picture)[0])
        places = text_places(picture)
        names = {text: places[text] for text in places if text.split()[0] in NETWORKS}
        assert set(names) == set(NETWORKS)
        column = [place for text, place in places.items() if place[0] == names["rnn"][0]]
        heights = sorted(y for _, y in column)
        assert len(column) >= 13
        assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) > LABEL - 0.2
        assert 0 < heights[0] and heights[-1] < height and names["rnn"][0] < width - 50


def test_colour_says_the_kind(full: Page) -> None:
    picture = re.findall(r"<svg.*?</svg>", full.text, re.S)[0]
    for name, variable in {
        "gru": "recurrent",
        "llama": "attention",
        "delta": "linear",
        "mixtral": "experts",
    }.items():
        assert re.search(rf"<text[^>]*fill: var\(--{variable}\)[^>]*>{name}</text>", picture)
    assert not re.search("#0[0-9a]0[0-9a]0[0-9a]", full.text)  # every marker colour was replaced


@pytest.mark.parametrize(
    ("scores", "options", "said", "unsaid"),
    [
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5), "c": ("gru", 2.6)},
            {},
            ["All others are significantly behind it: b by 0.5", "95 % interval"],
            ["cannot tell apart", "one seed"],
            id="all behind",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.0005), "c": ("gru", 2.0007)},
            {},
            ["No network is significantly behind it.", "These trials cannot tell apart from it: b"],
            ["All others"],
            id="none behind",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.0005), "c": ("gru", 2.6)},
            {},
            ["Significantly behind it: c by 0.6", "cannot tell apart from it: b (0.00"],
            ["All others"],
            id="some behind",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {"seeds": 1},
            [
                "from one seed.",
                "Behind it: b by 0.49",
                "From one seed, no difference can be called significant.",
                "One seed says nothing about chance",
            ],
            ["95 % interval", "ignificantly", "told apart", "tell apart", "Bonferroni", "1 seed"],
            id="one seed",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {"pieces": 1},
            ["On one piece of text, no difference can be called significant."],
            ["Significantly", "tell apart", "told apart"],
            id="one piece",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {},
            ["Both are taken at 95 %."],
            ["Bonferroni"],
            id="two networks",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {"ngrams": {2: 1.5, 3: 1.4}},
            [
                "A 3-gram, the best of 2 n-grams",
                "needs 1.400 bits per byte: no network needs fewer",
            ],
            [],
            id="n-grams better",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {"ngrams": {3: 2.2}},
            ["the only n-gram that", "1 of the 2 networks need fewer (a)"],
            [],
            id="n-gram between",
        ),
        pytest.param(
            {"a": ("llama", 2.0), "b": ("lstm", 2.5)},
            {"ngrams": {}},
            ["a is best"],
            ["-gram,"],
            id="no n-grams",
        ),
    ],
)
def test_the_words_are_right_for_the_outcome(
    tmp_path: Path,
    scores: Mapping[str, tuple[str, float]],
    options: dict[str, Any],
    said: list[str],
    unsaid: list[str],
) -> None:
    text = said_of(tmp_path, summary(scores, **options))
    assert all(part in text for part in said), text
    assert not any(part in text for part in unsaid), text
    assert_inert(read_page(tmp_path))


def test_sizes_that_differ_are_told_of(tmp_path: Path) -> None:
    found = summary({"a": ("llama", 2.0), "b": ("lstm", 2.5)})
    assert "one of size" not in said_of(tmp_path / "alike", found)
    found["networks"]["b"]["without_embedding"] = 250_000
    said = said_of(tmp_path / "unlike", found)
    assert "b has 2.5 times the parameters of a without embeddings" in said


def test_a_network_without_a_score_comes_last_and_is_named(tmp_path: Path) -> None:
    found = summary({"a": ("llama", 2.0), "b": ("lstm", 2.5)})
    for row in found["comparison"]["order"]:
        row["bits_per_byte"] = None if row["network"] == "b" else row["bits_per_byte"]
    said = said_of(tmp_path, found)
    assert "a is best" in said and "Without a score: b." in said


def sweep_cells(page: Page, name: str) -> list[str]:
    """The cells of a network in the table of learning rates, markup and all."""
    table = page.text.split("<h3>Learning rates</h3>")[1].split("</table>")[0]
    line = next(row for row in table.split("<tr>") if f">{name}</th>" in row)
    return re.findall(r"<td.*?</td>", line)


def test_rates_that_diverged_and_rates_at_the_edge_are_shown_as_such(tmp_path: Path) -> None:
    found = summary({"a": ("llama", 2.0), "b": ("lstm", 2.5), "c": ("gru", 2.6)})
    for row in found["sweep"]:
        if row["network"] == "b" and row["learning_rate"] == RATES[2]:
            row["bits_per_byte"] = None
        if row["network"] == "a" and row["learning_rate"] == RATES[2]:
            row["bits_per_byte"] = 3.4e12
    found["networks"]["a"]["learning_rate"] = RATES[0]
    found["networks"]["c"]["learning_rate"] = RATES[2]
    page = read_page(make_run(tmp_path, found))
    low, middle, high = (sweep_cells(page, name) for name in "abc")
    assert [("chosen" in cell) for cell in low] == [True, False, False, False]
    assert [("chosen" in cell) for cell in middle] == [False, True, False, False]
    assert "diverged" in middle[2] and "diverged" not in "".join(low + high)
    assert ">3.4e12<" in low[2]
    assert "the lowest tried" in low[3] and "the highest tried" in high[3]
    assert middle[3] == "<td></td>"


@pytest.mark.parametrize(
    "hostile",
    [
        "</style></pre><script>alert(1)</script><img src=x onerror=alert(1)>",
        "$\\frac{1$ \" onload='x' style=\"background:url(//evil)\" ' > <!-- ]]> &lt; {0}",
        "\x00\x1b[31m\ud800 $x_1$",
    ],
)
def test_names_stay_names(tmp_path: Path, hostile: str) -> None:
    harmless = "".join(c if c == " " else "x" for c in hostile)
    pages = []
    for place, text in (("bad", hostile), ("good", harmless)):
        found = summary({text: ("llama", 2.0), text + "2": (text, 2.5)})
        found["ngrams"][0]["order"] = text
        pages.append(read_page(make_run(tmp_path / place, found)))
    bad, good = pages
    assert {tag for tag, _ in bad.tags} <= INERT
    assert bad.outside_pictures == good.outside_pictures
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800]", bad.text)


def test_without_matplotlib_the_numbers_stay(
    tmp_path: Path, full: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = read_page(make_run(tmp_path, summary(NETWORKS)))
    assert 'pip install "stemma-lm[report]"' in page.words
    assert not any(tag == "svg" for tag, _ in page.tags)
    cells = [sum(tag == "td" for tag, _ in found.tags) for found in (page, full)]
    assert cells[0] == cells[1] > 200


def test_a_comparison_in_the_middle_says_how_far_it_is(tmp_path: Path) -> None:
    make_run(tmp_path, {}, status="running")
    for name in ("rate-0.001", "rate-0.003"):
        write_json(tmp_path / "tree" / "trials" / "rnn" / name / "result.json", {})
    page = read_page(tmp_path)
    assert_inert(page)
    total = len(NETWORKS) * (3 + len(RATES))
    assert f"begun and not complete, 2 of {total} trials are done." in page.words
    assert "This run is not finished." in page.words


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    scores = {name: NETWORKS[name] for name in ("lstm", "llama", "delta")}
    path = write_report(make_run(tmp_path, summary(scores)))
    first = path.read_bytes()
    assert write_report(tmp_path).read_bytes() == first and len(first) < 400_000


def test_a_curve_is_the_mean_of_the_seeds_as_far_as_all_went(tmp_path: Path) -> None:
    found = summary({"a": ("llama", 2.0), "b": ("lstm", 2.5)})
    curves = found["networks"]["a"]["curves"]
    del curves[1][5:]
    curves[2][0]["bits_per_byte"] += 0.3
    stage = read_run(make_run(tmp_path, found)).stages["tree"]
    drawn = points(lineage.networks(stage)[0])
    assert len(drawn) == 5
    firsts = [rows[0]["bits_per_byte"] for rows in curves]
    mean = pytest.approx(sum(firsts) / 3)
    place = curves[0][0]
    assert drawn[0] == Point(
        place["tokens"],
        pytest.approx(place["flops"]),
        pytest.approx(place["seconds"]),
        mean,
        min(firsts),
        max(firsts),
    )


@pytest.mark.parametrize("levels", [[], [1.0], [9.0], [1.0, 2.2, 9.0]])
def test_all_ends_and_all_levels_below_them_are_inside_a_picture(levels: list[float]) -> None:
    courses = [
        Course("a", "linear", 0, [1.0, 2.0, 3.0], [9.0, 2.5, 2.0]),
        Course("b", "linear", 1, [1.0, 2.0, 3.0], [9.5, 3.0, 2.4]),
    ]
    named = [(str(level), level) for level in levels]
    panel = Panel("k", "w", "x", courses, ("tokens", "bits"), named)
    low, high = visible_range(panel)
    inside = [2.0, 2.4, *(level for level in levels if level < 2.4)]
    assert all(low < value < high for value in inside)
    assert high < 9.0  # the steep beginning does not flatten the rest


def test_what_lies_above_a_picture_is_named(tmp_path: Path) -> None:
    scores = {"a": ("llama", 2.0), "b": ("lstm", 2.1)}
    page = read_page(make_run(tmp_path, summary(scores, ngrams={2: 8.0, 3: 2.05})))
    assert "Above the picture: the beginning of the lines and 2-gram (8.00)." in page.words
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", page.text)
    assert "3-gram 2.05" in texts and not any("2-gram" in text for text in texts)


def script() -> ModuleType:
    """The experiment that draws the picture of the README."""
    path = Path(__file__).parents[2] / "experiments" / "lineage_picture.py"
    spec = importlib.util.spec_from_file_location("lineage_picture", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_for_the_readme_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", summary(NETWORKS))
    panels = readme_panels(read_run(run).stages["tree"])
    assert [panel.measures[0] for panel in panels] == ["tokens", "flops"]
    out = tmp_path / "pictures" / "lineage.png"
    assert script().main([str(run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG\r\n") and out.stat().st_size > 20_000
    assert str(out) in capsys.readouterr().out


def test_a_run_with_nothing_to_draw_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", {}, status="running")
    out = tmp_path / "lineage.png"
    assert script().main([str(run), "--out", str(out)]) == 1
    assert "no complete lineage stage" in capsys.readouterr().err and not out.exists()
    write_json(run / "tree" / "stage.json", json.loads((run / "tree" / "stage.json").read_text()))
    assert script().main([str(tmp_path), "--out", str(out)]) == 1
    assert "not a run folder" in capsys.readouterr().err
