"""The report's lineage: many networks on the same tokens, in words, a table, and five pictures.

The curves are scores of a small part of the held-out text, taken along training; the table has the
scores of a larger part, taken at the end. N-grams stand in both as what a network must beat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from stemma.core.errors import ResourceError
from stemma.pipeline import report_lineage_words as lineage
from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import (
    Row,
    RunRecord,
    StageRecord,
    is_finite,
    number,
    usable_interval,
)
from stemma.pipeline.report_lineage_plots import (
    Course,
    Measure,
    Panel,
    cut_above,
    draw,
    shown_levels,
)
from stemma.pipeline.report_lineage_words import KINDS, Network
from stemma.pipeline.report_markup import (
    Html,
    element,
    folded,
    join,
    paragraphs,
    row,
    table,
)

CURVES: dict[Measure, tuple[str, str]] = {  # what is along the axis, and what it is
    "tokens": ("tokens trained on", "All networks read the same text."),
    "flops": (
        "training compute, FLOPs",
        "Compute is counted from the layers, not measured: three forward passes for each token.",
    ),
    "seconds": ("wall time of training", "Wall time on the machine of this run, scoring left out."),
}
COSTS: dict[str, tuple[Measure, str]] = {  # a decode row's key
    "milliseconds": ("milliseconds", "time of the next token, ms"),
    "state_bytes": ("bytes", "kept between tokens, bytes"),
}
SHOWN_POINTS = 12  # columns of the table behind the curves
FAR_OFF = 1000  # bits per byte from which only the magnitude is of interest


@dataclass(frozen=True)
class Point:
    """A point of a network's curve: means over seeds, and the lowest and highest score."""

    tokens: float
    flops: float
    seconds: float
    bits: float
    lowest: float
    highest: float


def section(run: RunRecord) -> Html:
    """Every comparison of the run."""
    found = run.of_kind("lineage")
    several = len(found) > 1
    return join(
        join([element("h3", stage.name) if several else None, stage_section(stage, f"l{index}")])
        for index, stage in enumerate(found)
    )


def stage_section(stage: StageRecord, key: str) -> Html:
    """Words, the table, the pictures, the learning rates, and what all this does not show."""
    found = lineage.networks(stage)
    if not found:
        return element("p", lineage.progress_words(stage), class_="quiet")
    said = (
        f"{lineage.made_words(stage, found)} {lineage.rates_words(stage)}".strip(),
        f"{lineage.best_words(stage, found)} {lineage.behind_words(found)}".strip(),
        lineage.ngram_words(stage, found),
    )
    try:
        shown = pictures(stage, found, key)
    except ResourceError as error:
        shown = element("p", f"Without pictures: {error}.", class_="quiet")
    return join(
        [
            paragraphs(*map(words.unbroken, said)),
            network_table(stage, found),
            element("h3", "What this does not show"),
            element(
                "ul",
                *(element("li", one) for one in lineage.limits(stage, found)),
                class_="limits",
            ),
            shown,
            folded("Numbers behind the pictures", curve_table(found), cost_table(found)),
            sweep(stage, found),
        ]
    )


def lead(run: RunRecord) -> str:
    """The last comparison in two sentences, for the head of the page."""
    stage = run.last("lineage")
    found = lineage.networks(stage) if stage else []
    if stage is None or not found:
        return ""
    return f"{lineage.made_words(stage, found)} {lineage.best_words(stage, found)}"


def figures(run: RunRecord) -> list[tuple[str, str, str | None]]:
    """The main numbers of the last comparison."""
    stage = run.last("lineage")
    found = lineage.networks(stage) if stage else []
    if stage is None or not found:
        return []
    best, counted = found[0], lineage.ngrams(stage)
    entries: list[tuple[str, str, str | None]] = [("networks compared", str(len(found)), None)]
    if is_finite(best.bits):
        name = f"bits per byte, {best.name}, the best"
        entries.insert(0, (name, words.digits(best.bits), "own"))
    if counted:
        entries.insert(
            1, (f"{counted[0].name}, the best n-gram", words.digits(counted[0].bits), None)
        )
    return [*entries, ("tokens for each", words.short(stage.config.get("tokens")), None)]


def swatch(kind: str) -> Html:
    """A small square in the colour of a kind."""
    return element("i", class_=f"kind {kind}", aria_hidden="true")


NUMBERS = (None, *["number"] * 7)


def network_table(stage: StageRecord, found: Sequence[Network]) -> Html:
    """The networks, best first, and the n-grams below them."""
    level = stage.part("comparison").get("level")
    behind = f", of a difference {100 * (1 - number(level)):.3g} %" if is_finite(level) else ""
    several = lineage.num_seeds(found) > 1
    note = f"Intervals in small print: of a score 95 % over seeds{behind}. " if several else ""
    heads = [
        "network",
        "bits per byte",
        "behind the best",
        "significant",
        "parameters without embeddings",
        "training FLOPs per token",
        "tokens per second",
        "learning rate",
    ]
    rows = [*map(network_row, found), *(ngram_row(n, found[0]) for n in lineage.ngrams(stage))]
    return join(
        [
            table(heads, rows, classes=NUMBERS, caption="Networks, best first", class_="lineage"),
            element(
                "p", f"{note}Tokens per second in training: median over seeds.", class_="quiet"
            ),
        ]
    )


def network_row(network: Network) -> Html:
    """One network in numbers."""
    about, against = network.about, network.against
    speeds = [s for s in listed(about.get("tokens_per_second")) if is_finite(s)]
    verdict = ("yes" if network.significant else "no") if against else words.NOTHING
    family = str(about.get("family"))
    note = element("small", family) if family != network.name else None
    cells = [
        join([swatch(network.kind), network.name, note]),
        join([words.digits(network.bits), small_span("", network.interval)]),
        join(
            [
                words.digits(against.get("behind")) if against else "the best",
                small_span("seeds", usable_interval(against.get("over_seeds"))),
                small_span("text", usable_interval(against.get("over_text"))),
            ]
        ),
        verdict,
        words.short(about.get("without_embedding")),
        words.short(about.get("flops_per_token")),
        words.short(median(speeds)) if speeds else words.NOTHING,
        rate_words(about.get("learning_rate")),
    ]
    return row(cells, classes=NUMBERS, class_="other" if against else "own")


def ngram_row(ngram: lineage.Ngram, best: Network) -> Html:
    """One n-gram in numbers; it has no intervals, no layers and no training."""
    change = ngram.bits - best.bits if is_finite(best.bits) else None
    gap = words.digits(change).replace("-", "−")
    name = join([swatch("counted"), ngram.name, element("small", "counted")])
    cells = [name, words.digits(ngram.bits), gap, *[words.NOTHING] * 5]
    return row(cells, classes=NUMBERS)


def small_span(name: str, interval: Sequence[float] | None) -> Html | None:
    """An interval in small print."""
    if not interval:
        return None
    ends = " – ".join(words.digits(end).replace("-", "−") for end in interval)
    return element("small", f"{name} {ends}".strip())


def rate_words(rate: Any) -> str:
    """A learning rate: 0.003, 3e−5."""
    return f"{rate:.3g}".replace("e-0", "e−") if is_finite(rate) else words.NOTHING


def listed(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def points(network: Network) -> list[Point]:
    """The curve of a network, as far as all its seeds went."""
    keys = ("tokens", "flops", "seconds", "bits_per_byte")
    curves = [
        [r for r in lineage.rows_of(curve) if all(number(r.get(key)) > 0 for key in keys)]
        for curve in listed(network.about.get("curves"))
    ]
    found = []
    for rows in zip(*curves, strict=False):
        bits = [float(r["bits_per_byte"]) for r in rows]
        tokens, flops, seconds, mean = (fmean(r[key] for r in rows) for key in keys)
        found.append(Point(tokens, flops, seconds, mean, min(bits), max(bits)))
    return found


def pictures(stage: StageRecord, found: Sequence[Network], key: str) -> Html:
    """Curves over tokens, compute and time, and the cost of decoding."""
    curves = [
        element("figure", draw(panel), element("figcaption", curve_words(panel, said)))
        for measure, (_, said) in CURVES.items()
        if (panel := curve_panel(stage, found, measure, key))
    ]
    costs = [
        element("figure", draw(panel), element("figcaption", cost_words(panel)))
        for name in COSTS
        if (panel := cost_panel(found, name, key))
    ]
    watched = words.size(stage.config.get("watch_bytes"))
    said = (
        f"Each line is the mean of {lineage.seeds_words(lineage.num_seeds(found))}"
        f"{', its band from the lowest to the highest' if lineage.num_seeds(found) > 1 else ''}. "
        f"It is scored on a part of the held-out text, about {watched}, and so ends a little "
        "beside the table. Dashed level lines: n-grams, on the text of the table."
    )
    apart = (
        "Measured with new weights on the machine of this run. Times are medians over a few tokens."
    )
    return join(
        [
            element("h3", "Learning"),
            element("p", said) if curves else None,
            element("div", *curves, kind_key(found), class_="charts"),
            element("h3", "Decoding") if costs else None,
            element("p", apart) if costs else None,
            element("div", *costs, class_="charts") if costs else None,
        ]
    )


def curve_panel(
    stage: StageRecord, found: Sequence[Network], measure: Measure, key: str
) -> Panel | None:
    """All curves along one axis; None where there are none."""
    courses = []
    for network in found:
        curve = points(network)
        span = ([p.lowest for p in curve], [p.highest for p in curve])
        xs, bits = [float(getattr(p, measure)) for p in curve], [p.bits for p in curve]
        several = len(listed(network.about.get("curves"))) > 1
        if curve:
            courses.append(
                Course(
                    network.name, network.kind, network.place, xs, bits, span if several else None
                )
            )
    return (
        Panel(
            key=f"{key}-{measure}",
            words="held-out text, bits per byte",
            across=CURVES[measure][0],
            courses=courses,
            measures=(measure, "bits"),
            levels=[(ngram.name, ngram.bits) for ngram in lineage.ngrams(stage)],
            log_x=measure != "tokens",
        )
        if courses
        else None
    )


def curve_words(panel: Panel, said: str) -> str:
    """A picture of curves in words."""
    ends = sorted(panel.courses, key=lambda course: course.values[-1])
    low, high = ends[0], ends[-1]
    text = f"{said} From {low.name}, {words.digits(low.values[-1], 2)} at its end,"
    text += f" to {high.name}, {words.digits(high.values[-1], 2)}."
    inside = shown_levels(panel)
    above = [
        f"{name} ({words.digits(v, 2)})" for name, v in panel.levels if (name, v) not in inside
    ]
    beginning = ["the beginning of the lines"] if cut_above(panel) else []
    hidden = words.listed([*beginning, *above])
    return f"{text} Above the picture: {hidden}." if hidden else text


def cost_panel(found: Sequence[Network], name: str, key: str) -> Panel | None:
    """What a token costs against the length of the text; None where it was not measured."""
    measure, title = COSTS[name]
    courses = []
    for network in found:
        rows = [r for r in decode_rows(network) if number(r.get(name)) > 0]
        if rows:
            lengths = [float(r["length"]) for r in rows]
            costs = [float(r[name]) for r in rows]
            courses.append(Course(network.name, network.kind, network.place, lengths, costs))
    return (
        Panel(
            key=f"{key}-{name}",
            words=title,
            across="tokens before",
            courses=courses,
            measures=("lengths", measure),
            log_y=True,
        )
        if courses
        else None
    )


def decode_rows(network: Network) -> list[Row]:
    """The measured lengths of a network, ascending."""
    rows = [r for r in lineage.rows_of(network.about.get("decode")) if number(r.get("length")) > 0]
    return sorted(rows, key=lambda r: number(r["length"]))


def cost_words(panel: Panel) -> str:
    """A picture of costs in words."""
    ends = sorted(panel.courses, key=lambda course: course.values[-1])
    low, high = (f"{c.name} ({cost(c.values[-1], panel.measures[1])})" for c in (ends[0], ends[-1]))
    longest = words.whole(max(course.xs[-1] for course in panel.courses))
    return f"After {longest} tokens, from {low} to {high}. Both axes are logarithmic."


def cost(value: Any, measure: Measure) -> str:
    """Bytes or milliseconds with their unit."""
    return words.size(value) if measure == "bytes" else f"{words.digits(value, 2)} ms"


def kind_key(found: Sequence[Network]) -> Html:
    """Which colour is which kind, and which networks are of it."""
    lines = [
        element("li", swatch(kind), f"{said}: {words.listed(names)}")
        for kind, said in KINDS.items()
        if (names := [n.name for n in found if n.kind == kind])
    ]
    counted = element("li", swatch("counted"), "n-grams")
    return element("figure", element("ul", *lines, counted, class_="key"))


def curve_table(found: Sequence[Network]) -> Html:
    """The points of the curves, means over seeds."""
    curves = {network.name: points(network) for network in found}
    longest = max(curves.values(), key=len, default=[])
    step = max(1, -(-len(longest) // SHOWN_POINTS))
    places = sorted(range(len(longest) - 1, -1, -step))
    heads = ["network", *(words.short(longest[place].tokens) for place in places), "time"]
    rows = [
        row(
            [
                name,
                *(words.digits(curve[p].bits) if p < len(curve) else words.NOTHING for p in places),
                words.duration(curve[-1].seconds) if curve else words.NOTHING,
            ],
            classes=(None, *["number"] * (len(heads) - 1)),
        )
        for name, curve in curves.items()
    ]
    caption = "Bits per byte on the watched text after so many tokens, and the time of a trial"
    return table(heads, rows, classes=(None, *["number"] * (len(heads) - 1)), caption=caption)


def cost_table(found: Sequence[Network]) -> Html | None:
    """Time and kept bytes of a token at each length."""
    lengths = sorted({r["length"] for network in found for r in decode_rows(network)})
    if not lengths:
        return None
    rows = []
    for network in found:
        at = {r["length"]: r for r in decode_rows(network)}
        cells = [
            join(
                [
                    cost(at.get(length, {}).get("milliseconds"), "milliseconds"),
                    element("small", words.size(at.get(length, {}).get("state_bytes"))),
                ]
            )
            for length in lengths
        ]
        rows.append(row([network.name, *cells], classes=(None, *["number"] * len(lengths))))
    heads = ["network", *(f"after {words.whole(length)} tokens" for length in lengths)]
    caption = "Time of the next token, and bytes kept between tokens"
    return table(heads, rows, classes=(None, *["number"] * len(lengths)), caption=caption)


def sweep(stage: StageRecord, found: Sequence[Network]) -> Html | None:
    """What every learning rate reached; the one that was kept is marked."""
    tried = lineage.rows_of(stage.summary.get("sweep"))
    rates = sorted({r["learning_rate"] for r in tried if is_finite(r.get("learning_rate"))})
    if not rates:
        return None
    by_place = {(str(r.get("network")), r.get("learning_rate")): r for r in tried}
    classes = (None, *["number"] * len(rates), None)
    rows = []
    for network in found:
        best = network.about.get("learning_rate")
        kinds = ["number chosen" if rate == best else "number" for rate in rates]
        cells = [sweep_words(by_place.get((network.name, rate))) for rate in rates]
        note = edge_words(network, rates)
        rows.append(row([network.name, *cells, note], classes=(None, *kinds, None)))
    heads = ["network", *map(rate_words, rates), ""]
    caption = "Bits per byte on the watched text, by learning rate"
    share = f"{100 * number(stage.config.get('sweep_share')):.3g} %"
    said = f"Bits per byte after {share} of the tokens, from one seed. In bold: the rate kept."
    return join(
        [
            element("h3", "Learning rates"),
            element("p", said),
            table(heads, rows, classes=classes, caption=caption),
        ]
    )


def sweep_words(tried: Row | None) -> str:
    """What one rate reached."""
    if tried is None:
        return words.NOTHING
    if not is_finite(tried.get("bits_per_byte")):
        return "diverged"
    found = number(tried["bits_per_byte"])
    return words.digits(found) if found < FAR_OFF else f"{found:.1e}".replace("e+", "e")


def edge_words(network: Network, rates: Sequence[float]) -> str:
    """That the best rate is the lowest or the highest tried, and a better one may lie beyond."""
    best = network.about.get("learning_rate")
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return ""
    return f"the {'lowest' if best == rates[0] else 'highest'} tried: beyond it may be better"


def readme_panels(stage: StageRecord) -> list[Panel]:
    """Bits per byte against tokens and against compute: what is shown outside the page."""
    found = lineage.networks(stage)
    panels = (curve_panel(stage, found, measure, "readme") for measure in ("tokens", "flops"))
    return [panel for panel in panels if panel]
