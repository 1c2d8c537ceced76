"""The report's results: scores as a table with bars, learning curves, samples along training."""

import bisect
import statistics
from collections.abc import Sequence
from typing import TypeVar

from stemma.core.errors import ResourceError
from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import Row, RunRecord, StageRecord, is_finite, number
from stemma.pipeline.report_markup import (
    Html,
    element,
    escape,
    folded,
    join,
    paragraphs,
    row,
    table,
)
from stemma.pipeline.report_plots import MODEL, TRAINING, Chart, Line, draw, level, visible_range

SHOWN_SAMPLES = 6  # of a prompt, spread over training
SHOWN_PROMPTS = 4
SHOWN_CHARACTERS = 1500  # of a sample
SHOWN_NUMBERS = 12  # rows of the table behind the curves

Item = TypeVar("Item")


def scores(run: RunRecord) -> Html:
    """Every evaluation as a table that is its own bar chart."""
    found = [stage for stage in run.of_kind("evaluate") if stage.scores]
    if not found:
        return element("p", words.waiting(run, "evaluate", "Scores"), class_="quiet")
    several = len(run.of_kind("evaluate")) > 1
    return join(
        [
            element(
                "p",
                "How many bits a method needs for one byte of held-out text: text that was kept "
                "from training. Less is better.",
            ),
            *(
                join([element("h3", s.name) if several else None, score_table(run, s)])
                for s in found
            ),
        ]
    )


def score_table(run: RunRecord, stage: StageRecord) -> Html:
    """Scores, best first, with bars that start at zero."""
    rows = [r for r in stage.scores if is_finite(r.get("bits_per_byte"))]
    rows.sort(key=lambda r: r["bits_per_byte"])
    ends = [r["bits_per_byte"] for r in rows] + [r["interval"][1] for r in rows if r["interval"]]
    longest = max([1e-9, *ends])
    found = words.standing(run, stage)
    own = found.model["bits_per_byte"] if found else None
    heldout = stage.part("heldout")
    caption = (
        f"Scored on {words.counted(heldout.get('documents'), 'document')} held out, "
        f"{words.size(heldout.get('bytes'))}. Brackets: 95 % interval."
    )
    return join(
        [
            table(
                ["method", "shorter is better", "bits per byte", "against the model"],
                [score_row(run, r, longest, own) for r in rows],
                classes=(None, "bars", "number", "number wide"),
                caption=caption,
                class_="scores",
            ),
            # With one evaluation the page's first lines have said it.
            paragraphs(found.words() if found and len(run.of_kind("evaluate")) > 1 else None),
        ]
    )


def score_row(run: RunRecord, score: Row, longest: float, own: float | None) -> Html:
    """One method: name and note, bar, number, difference."""
    value, interval, model = score["bits_per_byte"], score["interval"], run.is_model(score)
    span = f"{words.digits(interval[0])} – {words.digits(interval[1])}" if interval else None
    share = f"{100 * (value - own) / own:+.1f} %".replace("-", "−") if own and not model else ""
    name = "this model" if score.get("name") == "model" else str(score.get("name"))
    cells = [
        join([name, element("small", score["note"]) if score.get("note") else None]),
        bar(value, interval, longest),
        join([words.digits(value), element("small", span) if span else None]),
        share,
    ]
    classes = (None, "bars", "number", "number wide")
    return row(cells, classes=classes, class_="own" if model else "other")


def bar(value: float, interval: list[float] | None, longest: float) -> Html:
    """A bar with its interval as a bracket. The number beside it says the same in text."""

    def share(part: float) -> str:
        return f"{100 * min(1.0, max(0.0, part / longest)):.2f}%"

    bracket = None
    if interval:
        low, high = interval
        bracket = element("b", style=f"left:{share(low)};width:{share(high - low)}")
    return element(
        "div",
        element("i", style=f"width:{share(value)}"),
        bracket,
        class_="bar",
        aria_hidden="true",
    )


def curves(run: RunRecord) -> Html:
    """The curves of every training stage that has begun."""
    found = [stage for stage in run.of_kind("pretrain") if stage.series("loss")[0]]
    if not found:
        return element("p", words.waiting(run, "pretrain", "Training"), class_="quiet")
    return join(stage_curves(run, stage, index) for index, stage in enumerate(found))


def stage_curves(run: RunRecord, stage: StageRecord, index: int) -> Html:
    """The network's numbers, its charts or the line that replaces them, and a table."""
    try:
        pictures = element("div", *charts(run, stage, f"c{index}"), class_="charts")
    except ResourceError as error:
        pictures = element("p", f"Without pictures: {error}.", class_="quiet")
    several = len(run.of_kind("pretrain")) > 1
    return join(
        [
            element("h3", stage.name) if several else None,
            element("p", network_words(stage), class_="quiet") if stage.part("model") else None,
            pictures,
            folded("Numbers behind the curves", number_table(stage)),
        ]
    )


def network_words(stage: StageRecord) -> str:
    """Family and numbers of the network in a line."""
    numbers = [
        key.replace("_", " ") + ("" if value is True else f" {value}")
        for key, value in stage.part("model").items()
        if key != "family" and isinstance(value, int | float | str) and value is not False
    ]
    return f"{stage.part('model').get('family')}: {', '.join(numbers)}."


def charts(run: RunRecord, stage: StageRecord, key: str) -> list[Html]:
    """Held-out score and training loss large, what steers and measures training small."""
    large = [
        ("heldout_bits_per_byte", "held-out text, bits per byte", MODEL, guides(run)),
        ("loss", "training loss, nats per token", TRAINING, []),
    ]
    small = [
        ("learning_rate", "learning rate", None),
        ("gradient_norm", "gradient norm before clipping", 2),
        ("tokens_per_second", "tokens per second", None),
    ]
    made = []
    for name, title, colour, levels in large:
        tokens, values = stage.series(name)
        chart = Chart(
            key=f"{key}-{name}",
            words=title,
            line=Line(tokens, values, colour),
            guides=levels,
            margin=124 if levels else 50,
            end_name="this model" if levels else "",
        )
        made.append(picture(chart, None) if values else Html())
    for name, title, decimals in small:
        tokens, values = stage.series(name)
        chart = Chart(
            key=f"{key}-{name}",
            words=title,
            line=Line(tokens, values, TRAINING),
            width=300,
            height=190,
            decimals=decimals,
            from_zero=True,
        )
        made.append(picture(chart, "small") if values else Html())
    return made


def picture(chart: Chart, class_: str | None) -> Html:
    """A chart with what it shows in words."""
    caption = element("figcaption", chart_words(chart))
    return element("figure", draw(chart), caption, class_=class_)


def guides(run: RunRecord) -> list[tuple[str, float]]:
    """Baselines of the last evaluation."""
    stage = run.last("evaluate")
    rows = [r for r in stage.scores if not run.is_model(r)] if stage else []
    return [
        (str(r.get("name")), r["bits_per_byte"]) for r in rows if is_finite(r.get("bits_per_byte"))
    ]


def chart_words(chart: Chart) -> str:
    """A chart in words: how the curve goes, and which level lines do not fit."""
    values, tokens = chart.line.values, words.short(chart.line.tokens[-1])
    if chart.from_zero:
        middle = level(statistics.median(values), chart)
        return f"Highest {level(max(values), chart)}, median {middle}."
    start = f"From {level(values[0], chart)} to " if len(values) > 1 else ""
    said = f"{start}{level(values[-1], chart)} after {tokens} tokens."
    if not chart.guides:
        return said
    top = visible_range(chart)[1]
    above = [f"{name} ({level(bar, chart)})" for name, bar in chart.guides if bar > top]
    said += " The curve: a part of the held-out text. Dashed: baselines on the whole of it."
    return said + (f" Above the picture: {words.listed(above)}." if above else "")


def number_table(stage: StageRecord) -> Html:
    """Some points of the curves, evenly spread, as numbers."""
    losses, scored = stage.series("loss"), stage.series("heldout_bits_per_byte")
    rates = stage.series("learning_rate")
    rows = [
        row(
            [
                words.whole(tokens),
                words.digits(at(losses, tokens)),
                words.digits(at(scored, tokens)),
                f"{rate:.3g}" if (rate := at(rates, tokens)) is not None else words.NOTHING,
            ],
            classes=["number"] * 4,
        )
        for tokens in picked(scored[0] or losses[0], SHOWN_NUMBERS)
    ]
    heads = ["tokens", "loss, nats per token", "held-out bits per byte", "learning rate"]
    return table(heads, rows, classes=["number"] * 4, caption="Some points of the curves")


def at(series: tuple[list[float], list[float]], tokens: float) -> float | None:
    """The newest value at this number of tokens, or None before the first."""
    index = bisect.bisect_right(series[0], tokens) - 1
    return series[1][index] if index >= 0 else None


def picked(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` items, evenly spread, with the first and the last.

    >>> picked(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= limit:
        return list(items)
    return [items[i * (len(items) - 1) // (limit - 1)] for i in range(limit)]


def samples(run: RunRecord) -> Html:
    """What the model wrote along training, in the order of the steps."""
    found = [stage for stage in run.of_kind("pretrain") if stage.samples]
    if not found:
        return (
            element("p", words.waiting(run, "pretrain", "Samples"), class_="quiet")
            if not run.last("pretrain")
            else element("p", "The recipe asks for no samples.", class_="quiet")
        )
    return join(stage_samples(run, stage) for stage in found)


def stage_samples(run: RunRecord, stage: StageRecord) -> Html:
    """The samples of a stage, by prompt."""
    by_prompt: dict[str, list[Row]] = {}
    for sample in stage.samples:
        by_prompt.setdefault(str(sample.get("prompt", "")), []).append(sample)
    blocks: list[Html] = []
    for prompt, made in list(by_prompt.items())[:SHOWN_PROMPTS]:
        made.sort(key=lambda sample: number(sample.get("step")))
        texts = element("ol", *map(sample_text, picked(made, SHOWN_SAMPLES)), class_="texts")
        blocks += [element("h3", prompt_words(prompt)), texts]
    shown = sum(min(len(m), SHOWN_SAMPLES) for m in list(by_prompt.values())[:SHOWN_PROMPTS])
    last = stage.samples[-1]
    said = (
        f"Written by the model at temperature {last.get('temperature')} with seed "
        f"{last.get('seed')}; nothing was chosen by hand. {shown} of {len(stage.samples)} shown, "
        f"all are in {stage.name}/samples.jsonl."
    )
    several = len(run.of_kind("pretrain")) > 1
    return join([element("h3", stage.name) if several else None, element("p", said), *blocks])


def prompt_words(prompt: str) -> Html:
    """A prompt as a heading."""
    if not prompt:
        return escape("Without a prompt")
    return join(
        ["Prompt: ", element("span", words.shortened(prompt, 200), class_="prompt", dir="auto")]
    )


def sample_text(sample: Row) -> Html:
    """One sample: when it was written, and the text with the prompt set apart."""
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    text = text.removeprefix(prompt) if prompt else text
    head = f"step {words.whole(sample.get('step'))} · {words.short(sample.get('tokens'))} tokens"
    said = element(
        "blockquote",
        element("span", words.shortened(prompt, 400), class_="prompt"),
        words.shortened(text, SHOWN_CHARACTERS),
        dir="auto",
        tabindex="0",
    )
    return element("li", element("p", head, class_="quiet"), said)
