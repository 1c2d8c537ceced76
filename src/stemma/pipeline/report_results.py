"""The report's results: scores as a table with bars, learning curves, samples along training."""

import bisect
import statistics
from collections.abc import Sequence
from typing import TypeVar

from stemma.core.errors import ResourceError
from stemma.pipeline import report_translations
from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import (
    TRAINING_KINDS,
    Row,
    RunRecord,
    StageRecord,
    is_finite,
    mapping,
    number,
)
from stemma.pipeline.report_markup import (
    Html,
    bar,
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

ROW_CLASSES = {"model": "own", "before": "before", "baseline": "other"}

LARGE = {  # curves of the log: what they show, and their colour
    "heldout_bits_per_byte": ("held-out text, bits per byte", MODEL),
    "heldout_answer_loss": ("held-out answers, nats per token", MODEL),
    "heldout_target_loss": ("held-out translations, nats per token", MODEL),
    "heldout_masked_loss": ("held-out hidden tokens, nats per token", MODEL),
    "heldout_label_loss": ("held-out labels, nats per text", MODEL),
    "loss": ("training loss, nats per token", TRAINING),
}
HELD = {  # the held-out curve of a kind of stage
    "sft": "heldout_answer_loss",
    "translate": "heldout_target_loss",
    "masked": "heldout_masked_loss",
    "classify": "heldout_label_loss",
}

UNITS = {"classify": "texts", "translate": "target tokens"}  # what the log counts, else tokens

SAID = {  # how samples came about that were not drawn
    "translate": "Translated by the model, by its beam search",
    "masked": "Filled in by the model, the likeliest token in every place",
    "classify": "Labelled by the model",
}

Item = TypeVar("Item")


def scores(run: RunRecord) -> Html:
    """Every evaluation of documents as a table that is its own bar chart."""
    found = [stage for stage in run.of_kind("evaluate") if stage.scores]
    if not found:
        return Html()
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
    rows = sorted(stage.scores, key=lambda r: r["bits_per_byte"])
    ends = [r["bits_per_byte"] for r in rows] + [r["interval"][1] for r in rows if r["interval"]]
    longest = max([1e-9, *ends])
    found = words.standing(run, stage)
    heldout = stage.part("heldout")
    caption = (
        f"Scored on {words.counted(heldout.get('documents'), 'document')} held out, "
        f"{words.size(heldout.get('bytes'))}. Brackets: 95 % interval."
    )
    name = str(found.model.get("name")) if found else "model"
    against = f"against {'the model' if name == 'model' else name}"
    return join(
        [
            table(
                ["method", "shorter is better", "bits per byte", against],
                [score_row(run, stage, r, longest, found.model if found else None) for r in rows],
                classes=(None, "bars", "number", "number wide"),
                caption=caption,
                class_="scores",
            ),
            # With one evaluation the page's first lines have said it.
            paragraphs(found.words() if found and len(run.of_kind("evaluate")) > 1 else None),
        ]
    )


def score_row(
    run: RunRecord, stage: StageRecord, score: Row, longest: float, model: Row | None
) -> Html:
    """One method: name and note, bar, number, difference to the model."""
    value, interval, role = score["bits_per_byte"], score["interval"], run.role(stage, score)
    span = f"{words.digits(interval[0])} – {words.digits(interval[1])}" if interval else None
    own = model["bits_per_byte"] if model and score is not model else 0
    share = f"{100 * (value - own) / own:+.1f} %".replace("-", "−") if own else ""
    name = "this model" if score.get("name") == "model" else str(score.get("name"))
    notes = ["before training" if role == "before" else "", str(score.get("note") or "")]
    note = ", ".join(filter(None, notes))
    cells = [
        join([name, element("small", note) if note else None]),
        bar(value, interval, longest),
        join([words.digits(value), element("small", span) if span else None]),
        share,
    ]
    classes = (None, "bars", "number", "number wide")
    return row(cells, classes=classes, class_=ROW_CLASSES[role])


def curves(run: RunRecord) -> Html:
    """The curves of every training stage that has begun."""
    found = [stage for stage in run.of_kind(*TRAINING_KINDS) if stage.series("loss")[0]]
    if not found:
        return element("p", words.waiting(run, "Training", *TRAINING_KINDS), class_="quiet")
    return join(stage_curves(run, stage, index) for index, stage in enumerate(found))


def stage_curves(run: RunRecord, stage: StageRecord, index: int) -> Html:
    """The network's numbers, its charts or the line that replaces them, and a table."""
    try:
        pictures = element("div", *charts(run, stage, f"c{index}"), class_="charts")
    except ResourceError as error:
        pictures = element("p", f"Without pictures: {error}.", class_="quiet")
    several = len(run.of_kind(*TRAINING_KINDS)) > 1
    return join(
        [
            element("h3", stage.name) if several else None,
            paragraphs(
                beginning_words(stage),
                network_words(stage) if stage.part("model") and not index else None,
                loss_words(stage),
                report_translations.loss_words(stage),
                class_="quiet",
            ),
            pictures,
            folded("Numbers behind the curves", number_table(stage)),
        ]
    )


def beginning_words(stage: StageRecord) -> str:
    """What a stage began from, and how much of it was trained."""
    if not stage.config.get("init"):
        return ""
    trained, total = (stage.summary.get(key) for key in ("trained_parameters", "parameters"))
    part = ""
    if is_finite(trained) and is_finite(total):
        all_of_it = trained == total
        part = (
            " All of it was trained."
            if all_of_it
            else (f" {words.short(trained)} of its {words.short(total)} parameters were trained.")
        )
    new = " with new weights" if stage.config.get("weights") == "new" else ""
    return f"It began as {stage.config['init']}{new}.{part}"


def loss_words(stage: StageRecord) -> str:
    """The loss of held-out answers before and after."""
    losses = stage.part("heldout_loss")
    before, after = losses.get("before"), losses.get("after")
    if not is_finite(before) or not is_finite(after):
        return ""
    change = f" ({100 * (after - before) / before:+.1f} %)".replace("-", "−") if before else ""
    return (
        f"Loss of held-out answers: {words.digits(before)} nats per token before the first step, "
        f"{words.digits(after)} after the last{change}."
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
    small = [
        ("learning_rate", "learning rate", None),
        ("gradient_norm", "gradient norm before clipping", 2),
        ("tokens_per_second", f"{unit_of(stage)} per second", None),
    ]
    made = [large_chart(run, stage, key, name) for name in LARGE]
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
            unit=unit_of(stage),
        )
        made.append(picture(chart, "small") if values else Html())
    return made


def unit_of(stage: StageRecord) -> str:
    """What the log of a stage counts."""
    return UNITS.get(stage.kind, "tokens")


def titled(stage: StageRecord, name: str) -> str:
    """What a curve shows, in the unit of its stage."""
    title = LARGE[name][0]
    return title.replace("token", "text") if stage.kind == "classify" else title


def large_chart(run: RunRecord, stage: StageRecord, key: str, name: str) -> Html:
    """One of the curves that matter; nothing where the log does not have it."""
    title, colour = titled(stage, name), LARGE[name][1]
    tokens, values = stage.series(name)
    if not values:
        return Html()
    shown = guides(run) if name == "heldout_bits_per_byte" else []
    dashed = "The curve: a part of the held-out text. Dashed: scores on the whole of it."
    if name == "heldout_masked_loss" and is_finite(guess := unigram_loss(stage)):
        shown, dashed = [("unigram", number(guess))], "Dashed: what guessing by frequency costs."
    own = stage.name if len(run.of_kind(*TRAINING_KINDS)) > 1 else "this model"
    chart = Chart(
        key=f"{key}-{name}",
        words=title,
        line=Line(tokens, values, colour),
        guides=shown,
        margin=124 if shown else 50,
        end_name=own if shown else "",
        unit=unit_of(stage),
        dashed=dashed,
    )
    return picture(chart, None)


def unigram_loss(stage: StageRecord) -> object:
    """What guessing hidden tokens by their frequency costs."""
    return mapping(stage.part("heldout").get("unigram")).get("loss")


def picture(chart: Chart, class_: str | None) -> Html:
    """A chart with what it shows in words."""
    caption = element("figcaption", chart_words(chart))
    return element("figure", draw(chart), caption, class_=class_)


def guides(run: RunRecord) -> list[tuple[str, float]]:
    """Baselines of the last evaluation of documents, and models from before the run."""
    stage = run.scored
    if stage is None:
        return []
    named = [(run.role(stage, r), str(r.get("name")), r["bits_per_byte"]) for r in stage.scores]
    return [
        (f"{name}, before training" if role == "before" else name, value)
        for role, name, value in named
        if role != "model"
    ]


def chart_words(chart: Chart) -> str:
    """A chart in words: how the curve goes, and which level lines do not fit."""
    values, tokens = chart.line.values, words.short(chart.line.tokens[-1])
    if chart.from_zero:
        middle = level(statistics.median(values), chart)
        return f"Highest {level(max(values), chart)}, median {middle}."
    start = f"From {level(values[0], chart)} to " if len(values) > 1 else ""
    said = f"{start}{level(values[-1], chart)} after {tokens} {chart.unit}."
    lowest = min(range(len(values)), key=lambda place: values[place])
    if chart.line.colour == MODEL and level(values[lowest], chart) != level(values[-1], chart):
        said += f" Lowest: {level(values[lowest], chart)}"
        said += f" after {words.short(chart.line.tokens[lowest])}."
    if not chart.guides:
        return said
    top = visible_range(chart)[1]
    above = [f"{name} ({level(bar, chart)})" for name, bar in chart.guides if bar > top]
    said += f" {chart.dashed}"
    return said + (f" Above the picture: {words.listed(above)}." if above else "")


def number_table(stage: StageRecord) -> Html:
    """Some points of the curves, evenly spread, as numbers."""
    held = HELD.get(stage.kind, "heldout_bits_per_byte")
    losses, scored = stage.series("loss"), stage.series(held)
    rates, measured = stage.series("learning_rate"), dict(zip(*scored, strict=True))
    rows = [
        row(
            [
                words.whole(tokens),
                words.digits(at(losses, tokens)),
                words.digits(measured.get(tokens)),
                f"{rate:.3g}" if (rate := at(rates, tokens)) is not None else words.NOTHING,
            ],
            classes=["number"] * 4,
        )
        for tokens in picked(scored[0] if len(scored[0]) > 2 else losses[0], SHOWN_NUMBERS)
    ]
    heads = [unit_of(stage), *(titled(stage, name) for name in ("loss", held)), "learning rate"]
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
    """What the models wrote along training, in the order of the steps."""
    found = [stage for stage in run.of_kind(*TRAINING_KINDS) if stage.samples]
    if not found:
        return (
            element("p", words.waiting(run, "Samples", *TRAINING_KINDS), class_="quiet")
            if not run.last(*TRAINING_KINDS)
            else element("p", "The recipe asks for no samples.", class_="quiet")
        )
    return join(stage_samples(run, stage) for stage in found)


def stage_samples(run: RunRecord, stage: StageRecord) -> Html:
    """The samples of a stage, by prompt."""
    by_prompt: dict[str, list[Row]] = {}
    for sample in stage.samples:
        by_prompt.setdefault(str(sample.get("prompt", "")), []).append(sample)
    blocks: list[Html] = []
    continued, several = stage.kind == "pretrain", len(run.of_kind(*TRAINING_KINDS)) > 1
    for prompt, made in list(by_prompt.items())[:SHOWN_PROMPTS]:
        made.sort(key=lambda sample: number(sample.get("step")))
        cards = (sample_text(s, continued=continued) for s in picked(made, SHOWN_SAMPLES))
        title = "Text" if stage.kind in SAID else "Prompt"
        heading = element("h4" if several else "h3", prompt_words(prompt, title))
        blocks += [heading, element("ol", *cards, class_="texts")]
    shown = sum(min(len(m), SHOWN_SAMPLES) for m in list(by_prompt.values())[:SHOWN_PROMPTS])
    last = stage.samples[-1]
    written = (
        f"Written by the model at temperature {last.get('temperature')} with seed "
        f"{last.get('seed')}"
    )
    said = (
        f"{SAID.get(stage.kind, written)}; nothing was chosen by hand. {shown} of "
        f"{len(stage.samples)} shown, all are in {stage.name}/samples.jsonl."
    )
    return join([element("h3", stage.name) if several else None, element("p", said), *blocks])


def prompt_words(prompt: str, title: str = "Prompt") -> Html:
    """A prompt as a heading."""
    if not prompt:
        return escape("Without a prompt")
    return join(
        [f"{title}: ", element("span", words.shortened(prompt, 200), class_="prompt", dir="auto")]
    )


def sample_text(sample: Row, *, continued: bool) -> Html:
    """One sample: when it was written, and the text; a prompt that it continues is set apart."""
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    text += f" (right: {sample['label']})" if "label" in sample else ""
    head = f"step {words.whole(sample.get('step'))} · {words.short(sample.get('tokens'))} tokens"
    if not continued:
        return card(head, text)
    return card(head, text.removeprefix(prompt) if prompt else text, prompt)


def card(head: Html | str, text: str, prompt: str = "") -> Html:
    """A text that a model wrote under a line that says when or by whom."""
    said = element(
        "blockquote",
        element("span", words.shortened(prompt, 400), class_="prompt") if prompt else None,
        words.shortened(text, SHOWN_CHARACTERS),
        dir="auto",
        tabindex="0",
    )
    return element("li", element("p", head, class_="quiet"), said)
