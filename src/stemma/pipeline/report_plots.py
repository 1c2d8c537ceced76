"""Curves as inline SVG that takes its colours and its font from the page.

matplotlib draws with marker colours that are then replaced by the page's CSS variables, so one
picture serves light and dark. Everything a page could trip over is taken out: metadata, dates,
style sheets, names of groups, namespaces. The same numbers give the same bytes.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from stemma.core.extras import require
from stemma.pipeline.report_markup import Html, clean
from stemma.pipeline.report_words import digits, short

MAX_POINTS = 600  # of a curve; more than the pixels it is drawn on would not be seen
MARKED = 40  # a curve of so few points shows each of them
COLOURS = {  # marker colour -> what the page calls it
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--model)",
    "#050505": "var(--training)",
    "#060606": "var(--baseline)",
    "#070707": "var(--recurrent)",
    "#080808": "var(--attention)",
    "#090909": "var(--linear)",
    "#0a0a0a": "var(--experts)",
}
INK, MUTED, RULE, MODEL, TRAINING, BASELINE, RECURRENT, ATTENTION, LINEAR, EXPERTS = COLOURS
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": True,
    "font.size": 10.5,
    "axes.linewidth": 0.8,
}
POINT = 1 / 72  # inches
LEFT, TOP, BOTTOM = 44, 28, 38  # room around the axes, in SVG units


@dataclass(frozen=True)
class Line:
    """A curve: where it is over the tokens, and its colour."""

    tokens: Sequence[float]
    values: Sequence[float]
    colour: str = TRAINING


@dataclass(frozen=True)
class Chart:
    """What to draw. `guides` are level lines with names; sizes are in SVG units.

    `unit` is what the log counts: tokens, or texts. `dashed` says what the guides are.
    """

    key: str
    words: str
    line: Line
    guides: Sequence[tuple[str, float]] = ()
    width: int = 400
    height: int = 250
    margin: int = 50
    decimals: int | None = 2
    end_name: str = ""
    from_zero: bool = False
    unit: str = "tokens"
    dashed: str = ""

    @property
    def inner_width(self) -> int:
        return self.width - LEFT - self.margin

    @property
    def inner_height(self) -> int:
        return self.height - TOP - BOTTOM


def thin(line: Line, limit: int = MAX_POINTS) -> Line:
    """At most `limit` points: neighbours become their mean. The last point stays as it is.

    >>> thin(Line([1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 7.0, 2.0]), limit=3).values
    [2.0, 6.0, 2.0]
    """
    if len(line.values) <= limit:
        return line
    length = -(-(len(line.values) - 1) // (limit - 1))

    def means(numbers: Sequence[float]) -> list[float]:
        body, last = numbers[:-1], numbers[-1]
        groups = (body[i : i + length] for i in range(0, len(body), length))
        return [*(sum(group) / len(group) for group in groups), last]

    return Line(means(line.tokens), means(line.values), line.colour)


def draw(chart: Chart) -> Html:
    """The chart as an `<svg>` element. Raises ResourceError where matplotlib is not installed."""
    tickers = require("report", "matplotlib.ticker")
    with blank(chart.key, chart.width, chart.height) as figure:
        axes = place_axes(figure, chart)
        line = thin(chart.line)
        marker = "o" if len(line.values) <= MARKED else None
        axes.plot(line.tokens, line.values, color=line.colour, lw=1.7, marker=marker, ms=3.2)
        figure.text(0, 1 - 5 / chart.height, chart.words, color=INK, va="top", size=11)
        style_axes(axes, chart, tickers)
        label_levels(axes, chart)
        return tidy(written(figure), chart.key, chart.words, (chart.width, chart.height))


@contextmanager
def blank(key: str, width: int, height: int) -> Iterator[Any]:
    """An empty figure, with this house's settings while it is drawn, whatever the user's are."""
    matplotlib = require("report")
    figures = require("report", "matplotlib.figure")
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph missing here is no loss: the page has the font
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS | {"svg.hashsalt": key})
        yield figures.Figure(figsize=(width * POINT, height * POINT))


def written(figure: Any) -> str:
    """A figure as matplotlib writes it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def place_axes(figure: Any, chart: Chart) -> Any:
    """Axes at fixed distances from the edges, so that charts line up."""
    width, height = chart.width, chart.height
    inner = (chart.inner_width / width, chart.inner_height / height)
    return figure.add_axes((LEFT / width, BOTTOM / height, *inner))


def style_axes(axes: Any, chart: Chart, tickers: Any) -> None:
    """Names with units and few ticks."""
    quieten(axes)
    axes.xaxis.set_major_locator(tickers.MaxNLocator(4 if chart.width < 400 else 5))
    axes.yaxis.set_major_locator(tickers.MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    axes.set_xlabel(f"{chart.unit} trained on", color=MUTED, labelpad=5)
    low, high = visible_range(chart)
    axes.set_ylim(low, high)
    axes.set_xlim(0, max(chart.line.tokens) or 1)


def quieten(axes: Any, rule: str = RULE, muted: str = MUTED) -> None:
    """One grid direction, one spine, and ticks that do not shout."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(rule)
    axes.grid(axis="y", color=rule, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=muted, pad=6)
    axes.tick_params(axis="x", length=4, color=rule, pad=4)


def tick(value: float) -> str:
    """The name of a level, in few characters: 0.0005, 3e−5, 5.2 k."""
    text = short(value) if abs(value) >= 1000 else f"{value:.3g}"
    return re.sub(r"e-0?", "e−", text)


def visible_range(chart: Chart) -> tuple[float, float]:
    """From zero, or below the lowest value or guide, to above the highest value."""
    values = chart.line.values
    low, high = min(values), max(values)
    low = min([low, *(v for _, v in chart.guides if v <= high)])
    if chart.from_zero and low >= 0:
        return 0.0, 1.06 * high or 1.0
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def shown_guides(chart: Chart) -> list[tuple[str, float]]:
    """Guides inside the picture; those above it would flatten the curve."""
    low, high = visible_range(chart)
    return [(name, value) for name, value in chart.guides if low <= value <= high]


def label_levels(axes: Any, chart: Chart) -> None:
    """Draw the guides, and write names and values at the right end without overlap."""
    end = chart.line.values[-1]
    labels = [(end, f"{chart.end_name} {level(end, chart)}".strip(), chart.line.colour)]
    for name, value in shown_guides(chart):
        axes.axhline(value, color=BASELINE, lw=1, ls=(0, (4, 3)))
        labels.append((value, f"{clean(name)} {level(value, chart)}", BASELINE))
    labels.sort(key=lambda label: label[0])
    wrapped = [
        "\n".join(textwrap.wrap(text, max(8, (chart.margin - 10) // 6))[:3])
        for _, text, _ in labels
    ]
    heights = [13.0 * (text.count("\n") + 1) + 2 for text in wrapped]
    low, high = axes.get_ylim()
    inner = chart.inner_height
    wanted = [(value - low) / (high - low) * inner for value, _, _ in labels]
    middles = spread(wanted, heights)
    right = 1 + 10 / chart.inner_width
    for text, middle, (_, _, colour) in zip(wrapped, middles, labels, strict=True):
        weight = "bold" if colour != BASELINE else "normal"
        axes.text(
            right,
            middle / inner,
            text,
            color=colour if colour != BASELINE else MUTED,
            transform=axes.transAxes,
            va="center",
            weight=weight,
            linespacing=1.15,
        )


def level(value: float, chart: Chart) -> str:
    """A value at the end of a line."""
    return tick(value) if chart.decimals is None else digits(value, chart.decimals)


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Middles near the wanted ones (ascending) such that boxes of these heights do not overlap.

    >>> spread([10.0, 11.0], [8.0, 8.0])
    [6.5, 14.5]
    """
    groups: list[tuple[list[int], float]] = []  # members, lower edge of their common box
    for index, (middle, height) in enumerate(zip(wanted, heights, strict=True)):
        members, low = [index], middle - height / 2
        while groups and groups[-1][1] + sum(heights[i] for i in groups[-1][0]) > low:
            members = groups.pop()[0] + members
            tall = sum(heights[i] for i in members)
            low = sum(wanted[i] for i in members) / len(members) - tall / 2
        groups.append((members, low))
    middles = []
    for members, low in groups:
        for index in members:
            middles.append(low + heights[index] / 2)
            low += heights[index]
    return middles


def tidy(svg: str, key: str, words: str, size: tuple[int, int]) -> Html:
    """Rebuild matplotlib's SVG as an element of the page; `key` keeps its ids from all others."""
    root = ElementTree.fromstring(svg.encode())
    tidied = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {size[0]} {size[1]}",
            "role": "img",
            "aria-label": clean(words),
        },
    )
    copy_children(root, tidied, key)
    return Html(ElementTree.tostring(tidied, encoding="unicode"))


def copy_children(source: ElementTree.Element, target: ElementTree.Element, key: str) -> None:
    """Copy what is drawn; leave out metadata, style sheets and names of groups."""
    for child in source:
        name = child.tag.rpartition("}")[2]
        if name in ("metadata", "style"):
            continue
        kept = {}
        for attribute, value in child.attrib.items():
            attribute = attribute.rpartition("}")[2]
            if attribute == "id":
                if name == "g":
                    continue
                value = f"{key}-{value}"
            kept[attribute] = plain_value(attribute, value, key)
        copied = ElementTree.SubElement(target, name, kept)
        copied.text = child.text if name in ("text", "tspan") else None
        copy_children(child, copied, key)


def plain_value(attribute: str, value: str, key: str) -> str:
    """An attribute with the page's colours and font, its references renamed, its numbers short."""
    if attribute == "href":
        return value.replace("#", f"#{key}-")
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    if attribute == "style":
        for marker, variable in COLOURS.items():
            value = value.replace(marker, variable)
        value = re.sub(r"font-family:[^;]*", "font-family: inherit", value)
        return re.sub(r"font:([^;]*?px) [^;]*", r"font:\1 var(--sans)", value)
    if attribute in ("d", "x", "y", "transform"):
        value = re.sub(r"\d+\.\d+", lambda found: f"{float(found.group()):.1f}", value)
    return " ".join(value.split())
