"""Numbers and verdicts in words: what a report says about a run, computed from its files.

Sizes are decimal (1 MB = 1,000,000 bytes). A value that is missing or not a number is shown as a
dash, so that a half-done or damaged record never stops a report.
"""

from dataclasses import dataclass
from typing import Any

from stemma.pipeline.report_facts import RunRecord, StageRecord, is_finite

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


def listed(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@dataclass(frozen=True)
class Standing:
    """How the model stands against the baselines of one evaluation, in bits per byte."""

    model: dict[str, Any]
    baseline: dict[str, Any] | None
    num_better: int
    num_baselines: int

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
            return "There is no baseline to compare it with."
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
    rows = [r for r in stage.scores if is_finite(r.get("bits_per_byte"))]
    own = sorted((r for r in rows if run.is_model(r)), key=lambda r: r["bits_per_byte"])
    others = sorted((r for r in rows if not run.is_model(r)), key=lambda r: r["bits_per_byte"])
    if not own:
        return None
    better = sum(r["bits_per_byte"] < own[0]["bits_per_byte"] for r in others)
    return Standing(own[0], others[0] if others else None, better, len(others))


def made_words(run: RunRecord) -> str:
    """What was made, from what."""
    stage, corpus = run.last("pretrain"), run.last("curate")
    train = corpus.part("train") if corpus else {}
    text = f"{counted(train.get('documents'), 'document')} ({size(train.get('bytes'))} of text)"
    if stage is None or not stage.summary:
        return f"This run has read {text} for training." if train else ""
    model, summary = stage.part("model"), stage.summary
    what = f"{model.get('family', 'a')} model with {spoken(summary.get('parameters'))} parameters"
    source = f" from {text}" if train else ""
    tokens = f"{spoken(summary.get('tokens'))} tokens"
    epochs = stage.part("ledger").get("epochs")
    if is_finite(epochs):
        tokens += f", {epochs:.3g} {'pass' if epochs == 1 else 'passes'} over the text"
    return f"This run trained a {what}{source}, on {tokens}."


def score_words(run: RunRecord) -> str:
    """How good the model is, against the baselines."""
    stage = run.last("evaluate")
    found = standing(run, stage) if stage else None
    if stage is None or found is None:
        return ""
    interval = found.model.get("interval")
    span = f" (95 % interval {digits(interval[0])} to {digits(interval[1])})" if interval else ""
    text = size(stage.part("heldout").get("bytes"))
    value = digits(found.model["bits_per_byte"])
    return f"On {text} of text it has not seen it needs {value} bits per byte{span}. " + (
        found.words()
    )


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
    if stage.kind == "pretrain":
        loss = digits(summary.get("final_loss"))
        return f"{short(summary.get('parameters'))} parameters, last loss {loss} nats per token"
    if stage.kind == "evaluate":
        found = standing(run, stage)
        return f"{digits(found.model['bits_per_byte'])} bits per byte" if found else NOTHING
    if stage.kind == "export":
        return f"{summary.get('format')}, {size(summary.get('bytes'))}"
    return NOTHING


def waiting(run: RunRecord, kind: str, what: str) -> str:
    """What stands in a section whose stage has not brought anything yet."""
    state = "begun and not complete" if run.of_kind(kind) else "not run yet"
    return f"{what}: {state}."


def shortened(text: str, limit: int) -> str:
    """Text up to a length, with a mark where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
