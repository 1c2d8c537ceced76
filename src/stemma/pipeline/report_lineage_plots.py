"""Pictures of many networks at once: one line for each, named at its end.

Colour says the kind of network, the dash which one of its kind. The names stand in a column on the
right, moved apart where lines end close together, each with a thin leader from its line's end. The
same drawing serves the page, whose colours are CSS variables, and a PNG with colours of its own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from stemma.pipeline import report_plots as plots
from stemma.pipeline.report_markup import Html, clean
from stemma.pipeline.report_words import duration, scaled, shortened, size

Kind: TypeAlias = Literal["recurrent", "attention", "linear", "experts"]
Measure: TypeAlias = Literal[
    "tokens", "flops", "seconds", "lengths", "bytes", "milliseconds", "bits"
]

PAGE = {  # colours that the page replaces by its own
    "ink": plots.INK,
    "muted": plots.MUTED,
    "rule": plots.RULE,
    "baseline": plots.BASELINE,
    "recurrent": plots.RECURRENT,
    "attention": plots.ATTENTION,
    "linear": plots.LINEAR,
    "experts": plots.EXPERTS,
}
WHITE = {  # colours on white
    "ink": "#1c1e21",
    "muted": "#5c6067",
    "rule": "#deded8",
    "baseline": "#8b8f96",
    "recurrent": "#b04a00",
    "attention": "#0b5fa5",
    "linear": "#17744a",
    "experts": "#8a359c",
}
DASHES: Sequence[Any] = (
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (7, 2, 1.5, 2, 1.5, 2)),
)
NAME = 15  # characters of a network's name beside its line
LABEL = 14.0  # height of a name, in SVG units
CHARACTER = 6.1  # width of one, about
LEADER = 32  # from the axes to the names
MOST_TICKS = 6
DOTS = 180  # of a PNG, an inch
GAP = 16  # around the panels of a PNG
SHOWN_ABOVE = 0.8  # how far above the worst end a picture goes, in spans from the lowest
ROUND = (1.0, 2.0, 5.0)
TIMES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 18000, 36000, 86400)


@dataclass(frozen=True)
class Course:
    """One network's line. `place` counts the networks of its kind; `span` is lowest and highest."""

    name: str
    kind: Kind
    place: int
    xs: Sequence[float]
    values: Sequence[float]
    span: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Panel:
    """What to draw. `levels` are level lines with names; sizes are in SVG units."""

    key: str
    words: str
    across: str
    courses: Sequence[Course]
    measures: tuple[Measure, Measure]
    levels: Sequence[tuple[str, float]] = ()
    log_x: bool = True
    log_y: bool = False
    width: int = 430

    @property
    def margin(self) -> int:
        """Room for the longest name at the right."""
        names = (name for name, *_ in line_ends(self))
        return LEADER + math.ceil(CHARACTER * max(map(len, names))) + 8

    @property
    def height(self) -> int:
        """Tall enough for all names, one under the other."""
        names = len(self.courses) + len(shown_levels(self))
        return max(300, plots.TOP + plots.BOTTOM + math.ceil(LABEL * (names + 5)))

    @property
    def inner(self) -> tuple[float, float]:
        """Width and height of the part between the axes."""
        return (
            self.width - plots.LEFT - self.margin,
            self.height - plots.TOP - plots.BOTTOM,
        )


def draw(panel: Panel) -> Html:
    """The panel as an `<svg>` element. Raises ResourceError where matplotlib is not installed."""
    with plots.blank(panel.key, panel.width, panel.height) as figure:
        add(figure, panel, PAGE)
        words = f"{panel.words}, {panel.across}"
        return plots.tidy(plots.written(figure), panel.key, words, (panel.width, panel.height))


def add(
    figure: Any,
    panel: Panel,
    colours: Mapping[str, str],
    corner: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Draw a panel into a figure, `corner` units from its left and upper edges."""
    width, height = (inches / plots.POINT for inches in figure.get_size_inches())
    left, top = corner
    inner = panel.inner
    axes = figure.add_axes(
        (
            (left + plots.LEFT) / width,
            1 - (top + plots.TOP + inner[1]) / height,
            inner[0] / width,
            inner[1] / height,
        )
    )
    place = (left / width, 1 - (top + 5) / height)
    figure.text(*place, panel.words, color=colours["ink"], va="top", size=11)
    style_axes(axes, panel, colours)
    for course in panel.courses:
        add_course(axes, course, colours)
    for _, level in shown_levels(panel):
        axes.axhline(level, color=colours["baseline"], lw=1, ls=(0, (4, 3)))
    add_names(axes, panel, colours)


def add_course(axes: Any, course: Course, colours: Mapping[str, str]) -> None:
    """A line, and behind it the band of the seeds."""
    colour = colours[course.kind]
    if course.span:
        axes.fill_between(course.xs, *course.span, color=colour, alpha=0.13, lw=0)
    dash = DASHES[course.place % len(DASHES)]
    axes.plot(course.xs, course.values, color=colour, lw=1.4, ls=dash)
    axes.plot(course.xs[-1:], course.values[-1:], color=colour, marker="o", ms=3, clip_on=False)


def style_axes(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """Limits, scales and ticks."""
    plots.quieten(axes, colours["rule"], colours["muted"])
    axes.set_xlabel(panel.across, color=colours["muted"], labelpad=5)
    across = [x for course in panel.courses for x in course.xs]
    low, high = min(across), max(across)
    if panel.log_x:
        axes.set_xscale("log")
        low, high = (low, high) if high > low else (low / 2, high * 2)
    else:
        low, high = 0.0, round_end(high)
    axes.set_xlim(low, high)
    if panel.measures[0] == "lengths" and len(set(across)) <= MOST_TICKS:
        measured = sorted(set(across))
        axes.xaxis.set_ticks(measured, labels=[f"{length:,.0f}" for length in measured])
        axes.xaxis.set_ticks([], minor=True)
    else:
        set_ticks(axes.xaxis, (low, high), panel.measures[0], log=panel.log_x)
    if panel.log_y:
        axes.set_yscale("log")
    axes.set_ylim(*visible_range(panel))
    set_ticks(axes.yaxis, visible_range(panel), panel.measures[1], log=panel.log_y)


def round_end(high: float) -> float:
    """The end of an axis from zero: the next tick, where it is as good as reached.

    >>> round_end(3_999_100.0), round_end(3_500_000.0)
    (4000000.0, 3500000.0)
    """
    tick = linear_ticks(0.0, 1.02 * high)[-1]
    return max(high, tick)


def set_ticks(axis: Any, ends: tuple[float, float], measure: Measure, *, log: bool) -> None:
    """A few round numbers within the ends, named with their units."""
    if log:
        round_times = [t for t in TIMES if ends[0] <= t <= ends[1]] if measure == "seconds" else []
        ticks = few(round_times) if len(round_times) > 1 else log_ticks(*ends)
    else:
        ticks = linear_ticks(*ends)
    axis.set_ticks(ticks, labels=[named(tick, measure) for tick in ticks])
    axis.set_ticks([], minor=True)


def few(ticks: Sequence[float]) -> list[float]:
    """Every n-th of many ticks, so that at most MOST_TICKS are left.

    >>> few([1, 2, 3, 4, 5, 6, 7])
    [1, 3, 5, 7]
    """
    return list(ticks[:: math.ceil(len(ticks) / MOST_TICKS)])


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis: 1, 2, 5 of each power of ten, or powers alone.

    >>> log_ticks(0.9, 12.0), log_ticks(3.0, 3e4)
    ([1.0, 2.0, 5.0, 10.0], [10.0, 100.0, 1000.0, 10000.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step:g}e{p}") for p in powers for step in ROUND]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) <= MOST_TICKS:
        return inside or [low, high]
    return few([tick for tick in inside if f"{tick:e}".startswith("1.0")])


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers of a linear axis, at most MOST_TICKS and one.

    >>> linear_ticks(0.0, 4e6)
    [0.0, 1000000.0, 2000000.0, 3000000.0, 4000000.0]
    """
    rough = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size for r in (*ROUND, 10.0) if (size := r * power) >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def named(value: float, measure: Measure) -> str:
    """A tick's name, in few characters: '10 G', '30 min', '4.1 kB'."""
    if measure == "seconds" and value >= 1:
        return duration(value).replace(".0 s", " s").replace(" 0 s", "").replace(" 0 min", "")
    if measure == "seconds":
        return f"{value:g} s"
    if measure in ("tokens", "lengths"):
        return scaled(value, ("", "k", "M", "B", "T"))
    if measure == "flops":
        return scaled(value, ("", "k", "M", "G", "T", "P", "E"))
    return size(value).replace("bytes", "B") if measure == "bytes" else f"{value:.3g}"


def visible_range(panel: Panel) -> tuple[float, float]:
    """All ends and most of the lines; a steep beginning would flatten what matters."""
    values = [v for course in panel.courses for v in course.values]
    low, high = min(values), max(values)
    if panel.log_y:
        return low / 1.25, high * 1.25
    ends = [course.values[-1] for course in panel.courses]
    bottom = min([*ends, *(level for _, level in panel.levels)])
    if max(ends) > bottom:
        high = min(high, max(ends) + SHOWN_ABOVE * (max(ends) - bottom))
    low = min([low, *(level for _, level in panel.levels if level <= high)])
    room = 0.04 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room


def shown_levels(panel: Panel) -> list[tuple[str, float]]:
    """Level lines inside the picture; those above it would flatten the curves."""
    if not panel.levels:
        return []
    low, high = visible_range(panel)
    return [(name, value) for name, value in panel.levels if low <= value <= high]


def cut_above(panel: Panel) -> bool:
    """Whether a part of a line lies above the picture."""
    top = visible_range(panel)[1]
    return any(value > top for course in panel.courses for value in course.values)


def add_names(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    """Names in a column at the right, each with a leader from where its line ends."""
    inner = panel.inner
    to_axes = axes.transData + axes.transAxes.inverted()
    found = []
    for name, kind, x, value in line_ends(panel):
        across, up = to_axes.transform((x, value))
        found.append((up * inner[1], across, name, colours[kind]))
    found.sort(key=lambda entry: entry[0])
    heights = [LABEL] * len(found)
    middles = kept_inside(plots.spread([entry[0] for entry in found], heights), inner[1])
    near, far = 1 + 4 / inner[0], 1 + (LEADER - 3) / inner[0]
    for middle, (up, across, name, colour) in zip(middles, found, strict=True):
        places = ([across, near, far], [up / inner[1], up / inner[1], middle / inner[1]])
        style = {"color": colour, "transform": axes.transAxes, "clip_on": False}
        axes.plot(*places, lw=0.6, alpha=0.6, solid_joinstyle="round", **style)
        axes.text(far + 3 / inner[0], middle / inner[1], name, va="center", **style)


def line_ends(panel: Panel) -> Iterator[tuple[str, str, float, float]]:
    """Name, colour's name and end of every line, level lines too."""
    for course in panel.courses:
        name = shortened(clean(course.name), NAME)
        yield name, course.kind, course.xs[-1], course.values[-1]
    for name, value in shown_levels(panel):
        x = max(x for course in panel.courses for x in course.xs)
        yield f"{clean(name)} {value:.2f}", "muted", x, value


def kept_inside(middles: Sequence[float], height: float) -> list[float]:
    """Middles of names, ascending and apart, pushed from both edges into a column of a height.

    >>> kept_inside([-3.0, 11.0, 99.0], 100.0)
    [7.0, 21.0, 93.0]
    """
    kept, floor = [], LABEL / 2
    for middle in middles:
        kept.append(max(middle, floor))
        floor = kept[-1] + LABEL
    ceiling = height - LABEL / 2
    for index in range(len(kept) - 1, -1, -1):
        kept[index] = min(kept[index], ceiling)
        ceiling = kept[index] - LABEL
    return kept


def save(panels: Sequence[Panel], path: Path) -> None:
    """Panels side by side, on white, as a PNG."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) + 1)
    height = max(panel.height for panel in panels) + GAP
    with plots.blank(path.stem, width, height) as figure:
        left = GAP
        for panel in panels:
            add(figure, panel, WHITE, (left, GAP / 2))
            left += panel.width + GAP
        figure.savefig(path, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
