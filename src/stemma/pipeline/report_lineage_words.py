"""What a comparison of networks found, read from its stage and put into words.

The words must be right for every outcome: one seed and so no interval, nothing that stands out,
n-grams that beat the networks, a trial that diverged. What the comparison does not show is said as
plainly as what it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import (
    Row,
    StageRecord,
    is_finite,
    mapping,
    number,
    usable_interval,
)
from stemma.pipeline.report_lineage_plots import Kind

KINDS: dict[Kind, str] = {
    "recurrent": "recurrent",
    "attention": "softmax attention",
    "linear": "linear attention and fast weights",
    "experts": "mixture of experts",
}
ALIKE = 1.5  # sizes that differ by more than this factor are told of


@dataclass(frozen=True)
class Network:
    """A network of the comparison. `place` counts those of its kind, `against` is empty for the
    best."""

    name: str
    kind: Kind
    place: int
    about: Row
    bits: Any
    interval: list[float] | None
    against: Row

    @property
    def significant(self) -> bool:
        """Whether it is behind the best beyond chance."""
        return self.against.get("significant") is True


@dataclass(frozen=True)
class Ngram:
    """A model that only counts."""

    order: Any
    bits: float

    @property
    def name(self) -> str:
        return f"{self.order}-gram"


def rows_of(value: Any) -> list[Row]:
    """The mappings of a list; none where it is no list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def networks(stage: StageRecord) -> list[Network]:
    """The networks of a finished comparison, best first, those without a score last."""
    found, comparison = stage.part("networks"), stage.part("comparison")
    against = {str(r.get("network")): r for r in rows_of(comparison.get("against_best"))}
    scores = {str(r.get("network")): r for r in rows_of(comparison.get("order"))}
    counts: dict[Kind, int] = {}
    made = []
    for name, about in found.items():
        if not isinstance(about, dict):
            continue
        kind: Kind = next((k for k in KINDS if k == about.get("kind")), "attention")
        place = counts.get(kind, 0)
        counts[kind] = place + 1
        score = mapping(scores.get(name))
        interval = usable_interval(score.get("interval"))
        bits = score.get("bits_per_byte")
        made.append(Network(name, kind, place, about, bits, interval, mapping(against.get(name))))
    return sorted(made, key=lambda n: n.bits if is_finite(n.bits) else float("inf"))


def ngrams(stage: StageRecord) -> list[Ngram]:
    """The n-grams of a comparison, best first."""
    found = (Ngram(r.get("order"), r["bits_per_byte"]) for r in scored(stage, "ngrams"))
    return sorted(found, key=lambda ngram: ngram.bits)


def scored(stage: StageRecord, name: str) -> list[Row]:
    """Rows of a part of the summary that have a score."""
    rows = rows_of(stage.summary.get(name))
    return [row for row in rows if is_finite(row.get("bits_per_byte"))]


def num_seeds(found: Sequence[Network]) -> int:
    """Trials of each network."""
    first = found[0].about.get("bits_per_byte") if found else None
    return len(first) if isinstance(first, list) else 0


def seeds_words(count: int) -> str:
    """'one seed', '3 seeds'."""
    return "one seed" if count == 1 else words.counted(count, "seed")


def made_words(stage: StageRecord, found: Sequence[Network]) -> str:
    """How many networks were trained on how much."""
    tokens = words.spoken(stage.config.get("tokens"))
    return (
        f"{words.counted(len(found), 'network')} were each trained on {tokens} tokens from "
        f"{seeds_words(num_seeds(found))}. A seed decides the first weights, and the order of the "
        "text, which is the same for all networks."
    )


def rates_words(stage: StageRecord) -> str:
    """How the learning rates came about."""
    rates = stage.config.get("learning_rates")
    count = len(rates) if isinstance(rates, list) else 0
    if count < 2:
        return "All have the same learning rate." if count else ""
    share = f"{100 * number(stage.config.get('sweep_share')):.3g} %"
    return f"Each has the best of {count} learning rates, tried on {share} of the tokens."


def best_words(stage: StageRecord, found: Sequence[Network]) -> str:
    """Which network is best, with its interval over seeds."""
    best = found[0]
    if not is_finite(best.bits):
        return "No network has a score."
    text = words.size(stage.summary.get("heldout_bytes"))
    interval = words.interval_words({"interval": best.interval}, words.digits)
    return (
        f"On {text} of text that they have not seen, {best.name} is best with "
        f"{words.digits(best.bits)} bits per byte{interval}."
    )


def behind_words(found: Sequence[Network]) -> str:
    """Which networks are behind the best beyond chance, and which cannot be told apart from it."""
    others = [n for n in found[1:] if is_finite(n.bits)]
    without = [n.name for n in found if not is_finite(n.bits)]
    said = [f"Without a score: {words.listed(without)}."] if without else []
    if not others:
        return " ".join(said)
    if missing := missing_interval(others):
        gaps = words.listed([f"{n.name} by {words.digits(gap(n))}" for n in others])
        return " ".join([f"Behind it: {gaps}. {missing}", *said])
    behind = [f"{n.name} by {words.digits(gap(n))}" for n in others if n.significant]
    even = [f"{n.name} ({words.digits(gap(n))} behind)" for n in others if not n.significant]
    if not behind:
        said.insert(0, "No network is significantly behind it.")
    else:
        who = "All others are significantly behind it" if not even else "Significantly behind it"
        said.insert(0, f"{who}: {words.listed(behind)}.")
    if even:
        said.insert(1, f"These trials cannot tell apart from it: {words.listed(even)}.")
    return " ".join(said)


def gap(network: Network) -> Any:
    """Bits per byte that a network is behind the best; None for the best."""
    return network.against.get("behind")


def missing_interval(others: Sequence[Network]) -> str:
    """Why nothing can be called significant; empty where something could."""
    if not any(usable_interval(n.against.get("over_seeds")) for n in others):
        return "From one seed, no difference can be called significant."
    if not any(usable_interval(n.against.get("over_text")) for n in others):
        return "On one piece of text, no difference can be called significant."
    return ""


def ngram_words(stage: StageRecord, found: Sequence[Network]) -> str:
    """How the n-grams stand beside the networks."""
    counted = ngrams(stage)
    if not counted:
        return ""
    best = counted[0]
    ahead = [n.name for n in found if is_finite(n.bits) and n.bits < best.bits]
    if len(ahead) == len(found):
        verdict = "every network needs fewer"
    elif not ahead:
        verdict = "no network needs fewer"
    else:
        verdict = f"{len(ahead)} of the {len(found)} networks need fewer ({words.listed(ahead)})"
    among = "the only n-gram" if len(counted) == 1 else f"the best of {len(counted)} n-grams"
    return (
        f"A {best.name}, {among} that counted as many tokens of the same text, needs "
        f"{words.digits(best.bits)} bits per byte: {verdict}. Counting depends on no seed, so "
        "n-grams have no interval over seeds."
    )


def limits(stage: StageRecord, found: Sequence[Network]) -> list[str]:
    """What the comparison does not show, a sentence or two each."""
    seeds = num_seeds(found)
    sizes = sorted(number(n.about.get("without_embedding")) for n in found)
    size = " to ".join(dict.fromkeys(words.short(end) for end in (sizes[0], sizes[-1])))
    tokens = words.spoken(stage.config.get("tokens"))
    few = (
        "One seed says nothing about chance: another seed may turn the order."
        if seeds < 2
        else f"{words.counted(seeds, 'seed')} are few, so intervals over seeds are wide. That of a "
        "score is for one network by itself; whether two differ is judged seed by seed."
    )
    said = [
        f"This is one corpus, and networks of {size} parameters without embeddings on {tokens} "
        "tokens. With another text, larger networks or more tokens the order may be another.",
        few,
        significance_words(stage, found),
        "Beside the learning rate nothing was chosen for each network: rule and deviation of the "
        "first weights, batches and schedule are the same for all.",
        size_words(found),
    ]
    return [sentence for sentence in said if sentence]


def significance_words(stage: StageRecord, found: Sequence[Network]) -> str:
    """When a difference counts."""
    others, level = len(found) - 1, stage.part("comparison").get("level")
    if others < 1 or not is_finite(level) or missing_interval(found[1:]):
        return ""
    of = f"{100 * (1 - number(level)):.3g} %"
    corrected = (
        f"at {of}, because 5 % is the chance of any false difference among all pairs of "
        f"{others + 1} networks (Bonferroni): the best is found in the same data"
        if others > 1
        else f"at {of}"
    )
    return (
        "A difference counts as significant only where two intervals both leave out zero: over the "
        "seeds (Student, with the spread of all networks) and over pieces of the held-out text "
        f"(bootstrap). Both are taken {corrected}. Not told apart does not mean equal: more seeds "
        "or more text might tell."
    )


def size_words(found: Sequence[Network]) -> str:
    """That the networks differ in size, where they do."""
    sized = sorted(found, key=lambda n: number(n.about.get("without_embedding")))
    small, large = sized[0], sized[-1]
    least, most = (number(n.about.get("without_embedding")) for n in (small, large))
    if not least or most <= ALIKE * least:
        return ""
    return (
        f"{large.name} has {most / least:.2g} times the parameters of {small.name} without "
        "embeddings: the comparison is also one of size."
    )


def result_words(stage: StageRecord) -> str:
    """What the stage brought, in a few words."""
    found = networks(stage)
    if not found or not is_finite(found[0].bits):
        return words.NOTHING
    best = found[0]
    count = words.counted(len(found), "network")
    return f"{count}, best {best.name}: {words.digits(best.bits)} bits per byte"


def progress_words(stage: StageRecord) -> str:
    """How many trials of a comparison that is not complete are done."""
    planned = mapping(stage.config.get("networks"))
    rates = stage.config.get("learning_rates")
    each = number(stage.config.get("seeds")) + (len(rates) if isinstance(rates, list) else 0)
    done = sum(1 for _ in (stage.folder / "trials").glob("*/*/result.json"))
    total = words.whole(each * len(planned)) if each and planned else words.NOTHING
    return f"Lineage: begun and not complete, {done} of {total} trials are done."
