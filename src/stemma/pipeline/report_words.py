"""Numbers and verdicts in words: what a report says about a run, computed from its files.

Sizes are decimal (1 MB = 1,000,000 bytes). A value that is missing or not a number is shown as a
dash, so that a half-done or damaged record never stops a report.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.pipeline.report_facts import (
    TRAINING_KINDS,
    Row,
    RunRecord,
    StageRecord,
    is_finite,
    number,
)

NOTHING = "–"


def whole(value: Any) -> str:
    """Every digit, in groups of three: 4123456 -> '4,123,456'."""
    return f"{value:,.0f}" if is_finite(value) else NOTHING


def digits(value: Any, places: int = 3) -> str:
    """A fixed number of decimals."""
    return f"{value:,.{places}f}" if is_finite(value) else NOTHING


def scaled(value: Any, units: tuple[str, ...]) -> str:
    """Three significant digits with the unit that keeps them short: 4123456 -> '4.12 M'."""
    if not is_finite(value):
        return NOTHING
    size, power = float(value), 0
    while abs(size) >= 999.5 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    text = f"{size:.3g}" if abs(size) < 999.5 else f"{size:,.0f}"
    return f"{text} {units[power]}".rstrip()


def short(value: Any) -> str:
    """A count in few characters."""
    return scaled(value, ("", "k", "M", "B", "T"))


def spoken(value: Any) -> str:
    """A count as a sentence has it: '4.12 million'."""
    if is_finite(value) and abs(value) < 10_000:
        return whole(value)
    return scaled(value, ("", "thousand", "million", "billion", "trillion"))


def size(value: Any) -> str:
    """Bytes: 5_320_000 -> '5.32 MB'."""
    return scaled(value, ("bytes", "kB", "MB", "GB", "TB"))


def duration(seconds: Any) -> str:
    """Seconds as people say them: '42 s', '11 min 5 s', '2 h 3 min'."""
    if not is_finite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def counted(number: Any, thing: str) -> str:
    """'1 document', '72 documents'."""
    return f"{whole(number)} {thing}{'' if number == 1 else 's'}"


def percent(share: Any) -> str:
    """A share of one: 0.914 -> '91.4 %'."""
    return f"{100 * share:.1f} %" if is_finite(share) else NOTHING


def unbroken(text: str) -> str:
    """Text in which a number and the unit after it stay on one line."""
    return re.sub(r"(?<=\d) (?=%|[kMGT]B\b|min\b|[hs]\b)", "\u00a0", text)


def listed(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class Standing:
    """How a model stands in one evaluation, in bits per byte: against the baselines, and beside
    the `others`, which are models too.
    """

    model: Row
    baseline: Row | None
    num_better: int
    num_baselines: int
    others: Sequence[Row] = ()

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `even` where the baseline lies inside the model's interval."""
        if self.baseline is None:
            return ""
        value, bar = self.model["bits_per_byte"], self.baseline["bits_per_byte"]
        interval = self.model.get("interval")
        low, high = interval if interval else (value, value)
        if low <= bar <= high:
            return "even"
        return "better" if value < bar else "worse"

    def words(self) -> str:
        """The comparison as the rest of a sentence."""
        if self.baseline is None:
            return "" if self.others else "There is no baseline to compare it with."
        value, bar = self.model["bits_per_byte"], self.baseline["bits_per_byte"]
        share = f"{100 * abs(value - bar) / bar:.1f} %" if bar else NOTHING
        best = f"{self.baseline['name']} ({digits(bar)})"
        if self.verdict == "better":
            return f"That is {share} below the best baseline, {best}."
        if self.verdict == "even":
            return f"That is not clearly different from the best baseline, {best}."
        beaten = self.num_baselines - self.num_better
        rest = f"it is better than {beaten} of the {self.num_baselines} baselines"
        return f"That is {share} above the best baseline, {best}: {rest}."


def standing(run: RunRecord, stage: StageRecord) -> Standing | None:
    """Compare the model's score with the baselines; None where there is no score."""
    rows = stage.scores
    own = [r for r in rows if run.role(stage, r) == "model"]
    if not own:
        return None
    model = subject(run, stage, own)
    value = model["bits_per_byte"]
    baselines = sorted(
        (r for r in rows if run.role(stage, r) == "baseline"), key=lambda r: r["bits_per_byte"]
    )
    better = sum(r["bits_per_byte"] < value for r in baselines)
    others = [r for r in rows if r is not model and run.role(stage, r) != "baseline"]
    return Standing(model, baselines[0] if baselines else None, better, len(baselines), others)


def subject(run: RunRecord, stage: StageRecord, own: list[Row]) -> Row:
    """The score that an evaluation of documents is about.

    It is that of the last stage that learned from documents: to foretell them is what it learned.
    """
    learned = [s.name for s in reversed(run.of_kind("pretrain"))]
    for name in (*learned, stage.config.get("model"), "model"):
        for score in own:
            if score.get("name") == name:
                return score
    return min(own, key=lambda score: float(score["bits_per_byte"]))


def model_name(run: RunRecord, stage: StageRecord, score: Row) -> str:
    """A model in a sentence: its name, or 'it' in a run that made one alone."""
    if score.get("name") == "model":
        several = len(run.of_kind(*TRAINING_KINDS)) > 1
        return str(stage.config.get("model", "it")) if several else "it"
    return str(score.get("name"))


def made_words(run: RunRecord) -> str:
    """What was made, from what."""
    corpus = run.last("curate")
    train = corpus.part("train") if corpus else {}
    text = f"{counted(train.get('documents'), 'document')} ({size(train.get('bytes'))} of text)"
    said: list[str] = []
    base = run.last("pretrain")
    if base is not None and base.summary:
        source = f" from {text}" if train else ""
        how = f"{spoken(base.summary.get('tokens'))} tokens"
        passes = passes_words(base)
        how += f", {passes} over the text" if passes else ""
        began = base.config.get("init")
        begun = f"went on training {began}, a" if began else "trained a"
        comma = "," if began else ""
        said.append(f"This run {begun} {network_words(base)}{comma}{source}, on {how}.")
    for stage in run.of_kind("sft"):
        if stage.status == "complete" and stage.summary:
            said.append(tuned_words(stage, first=not said))
    if not said and train:
        said.append(f"This run has read {text} for training.")
    return " ".join(said)


def network_words(stage: StageRecord) -> str:
    """'llama model with 4.12 million parameters'."""
    family = stage.part("model").get("family", "a")
    return f"{family} model with {spoken(stage.summary.get('parameters'))} parameters"


def passes_words(stage: StageRecord) -> str:
    """'1 pass', '2.1 passes'; empty where the ledger does not tell."""
    epochs = stage.part("ledger").get("epochs")
    return f"{epochs:.3g} {'pass' if epochs == 1 else 'passes'}" if is_finite(epochs) else ""


def tuned_words(stage: StageRecord, *, first: bool) -> str:
    """What was fine-tuned on how much."""
    began = str(stage.config.get("init", "a model"))
    what = f"{began}, a {network_words(stage)}," if first else began
    passes = passes_words(stage)
    count = counted(stage.part("conversations").get("train"), "conversation")
    return (
        f"{'This run' if first else 'Then it'} fine-tuned {what} on {count}: "
        f"{spoken(stage.summary.get('tokens'))} tokens of answers"
        f"{f' in {passes}' if passes else ''}."
    )


def score_words(run: RunRecord) -> str:
    """How good the model is, against the baselines and beside the other models."""
    stage = run.scored
    found = standing(run, stage) if stage else None
    if stage is None or found is None:
        return ""
    text = size(stage.part("heldout").get("bytes"))
    value = digits(found.model["bits_per_byte"])
    name = model_name(run, stage, found.model)
    said = [
        f"On {text} of text that it has not seen, {name} needs {value} bits per byte"
        f"{interval_words(found.model, digits)}.",
        found.words(),
    ]
    if found.others:
        others = [
            f"{r['name']}{note} needs {digits(r['bits_per_byte'])}"
            for r in found.others
            for note in [", before training," if run.role(stage, r) == "before" else ""]
        ]
        said.append(f"On the same text {listed(others)}.")
    return " ".join(filter(None, said))


def interval_words(score: Row, written: Callable[[Any], str]) -> str:
    """' (95 % interval 1.9 to 2.1)'; empty where there is none."""
    ends = score.get("interval")
    return f" (95 % interval {written(ends[0])} to {written(ends[1])})" if ends else ""


def answering(run: RunRecord, stage: StageRecord) -> Row:
    """The answers that an evaluation is about: those of its `model`, which comes last."""
    named = [r for r in stage.answers if r.get("name") == stage.config.get("model")]
    return [*stage.answers, *named][-1]


def answer_words(run: RunRecord) -> str:
    """How the model answers: what share ends by itself, and the loss of held-out answers."""
    stage, tuned = run.answered, run.last("sft")
    if stage is None:
        ends = tuned.part("heldout_loss") if tuned else {}
        before, after = ends.get("before"), ends.get("after")
        if not is_finite(before) or not is_finite(after):
            return ""
        loss = f"from {digits(before)} to {digits(after)} nats per token"
        return f"Its loss on answers that it has not seen went {loss}."
    score = answering(run, stage)
    others = [r for r in stage.answers if r is not score]
    said = []
    if number(score.get("answers")):
        limit = counted(stage.part("chat").get("max_new_tokens"), "token")
        stops = [f"{r.get('name')} {stopped_words(r)}" for r in others]
        beside = f"; {listed(stops)}" if stops else ""
        said.append(
            f"Within {limit}, {score.get('name')} ends {stopped_words(score)} answers to unseen "
            f"questions by itself{interval_words(score, percent)}{beside}."
        )
    losses = [f"{r.get('name')} {digits(r.get('answer_loss'))}" for r in others]
    beside = f" ({listed(losses)})" if losses else ""
    loss = digits(score.get("answer_loss"))
    said.append(f"Its loss on held-out answers is {loss} nats per token{beside}.")
    return " ".join(said)


def stopped_words(score: Row) -> str:
    """'97 of 100'."""
    return f"{whole(score.get('stopped'))} of {whole(score.get('answers'))}"


def stopped_share(score: Row) -> float | None:
    """The share of the answers that end by themselves; None where there are none."""
    total, count = score.get("answers"), score.get("stopped")
    if not is_finite(total) or not is_finite(count) or not number(total):
        return None
    return number(count) / number(total)


def cost_words(run: RunRecord) -> str:
    """Time and memory."""
    if not run.stages:
        return ""
    machine = run.about.get("machine", {})
    cores = machine.get("cores") if isinstance(machine, dict) else None
    place = f" on {counted(cores, 'core')}" if is_finite(cores) else ""
    memory = f"at most {size(run.peak_memory)} of memory"
    start = "So far it took" if progress_words(run) else "It took"
    return f"{start} {duration(run.seconds)}{place} and {memory}."


def progress_words(run: RunRecord) -> str:
    """What is still to do; empty for a run that is complete."""
    waiting = [name for name in run.order if name not in run.stages]
    running = [s.name for s in run.stages.values() if s.status != "complete"]
    if not waiting and not running:
        return ""
    words = ["This run is not finished."]
    if running:
        words.append(f"Begun and not complete: {listed(running)}.")
    if waiting:
        words.append(f"Not run yet: {listed(waiting)}.")
    return " ".join(words)


def result_words(run: RunRecord, stage: StageRecord) -> str:
    """What a stage brought, in a few words."""
    summary = stage.summary
    if not summary:
        return NOTHING
    if stage.kind == "curate":
        train, heldout = (stage.part(name).get("documents") for name in ("train", "heldout"))
        return f"{counted(train, 'document')} to train on, {whole(heldout)} held out"
    if stage.kind == "tokenizer":
        compression = digits(summary.get("bytes_per_token"), 2)
        return f"{whole(summary.get('vocab_size'))} entries, {compression} bytes per token"
    if stage.kind in ("pretrain", "sft"):
        return training_words(stage)
    if stage.kind == "evaluate":
        return evaluation_words(run, stage)
    if stage.kind == "export":
        return f"{summary.get('format')}, {size(summary.get('bytes'))}"
    return NOTHING


def training_words(stage: StageRecord) -> str:
    """What a stage that trains brought."""
    losses = stage.part("heldout_loss")
    if is_finite(losses.get("after")):
        count = counted(stage.part("conversations").get("train"), "conversation")
        span = f"{digits(losses.get('before'))} before, {digits(losses.get('after'))} after"
        return f"{count}, loss of held-out answers {span}"
    size_words = short(stage.summary.get("parameters"))
    loss = digits(stage.summary.get("final_loss"))
    return f"{size_words} parameters, last loss {loss} nats per token"


def evaluation_words(run: RunRecord, stage: StageRecord) -> str:
    """What an evaluation found."""
    found, said = standing(run, stage), []
    if found:
        name = model_name(run, stage, found.model)
        of = f"{name}: " if name != "it" else ""
        said.append(f"{of}{digits(found.model['bits_per_byte'])} bits per byte")
    if stage.answers:
        score = answering(run, stage)
        said.append(f"{score.get('name')}: {stopped_words(score)} answers end by themselves")
    return "; ".join(said) or NOTHING


def waiting(run: RunRecord, what: str, *kinds: str) -> str:
    """What stands in a section whose stages have not brought anything yet."""
    state = "begun and not complete" if run.of_kind(*kinds) else "not run yet"
    return f"{what}: {state}."


def shortened(text: str, limit: int) -> str:
    """Text up to a length, with a mark where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
