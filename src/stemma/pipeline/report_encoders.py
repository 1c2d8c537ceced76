"""The report of encoders: how hidden tokens are foretold, how texts are labelled, and the accounts.

Each score stands beside the simplest guess: the frequency of tokens, the commonest label.
"""

from typing import Any

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import (
    Row,
    RunRecord,
    StageRecord,
    is_finite,
    mapping,
    number,
    usable_interval,
)
from stemma.pipeline.report_ledger import Check, checks, stack
from stemma.pipeline.report_markup import Html, bar, element, join, row, table

KINDS = ("masked", "classify")
SHOWN_LABELS = 12  # of a confusion matrix
CLASSES = (None, "number")

MASKED_ROWS = {
    "trained": ("foretold", "tokens that were chosen: predictions that counted in the loss"),
    "masked": ("read", "tokens that were read and not foretold, and marks"),
    "padded": ("padded", "places of samples that held nothing"),
}
LABELLED_ROWS = {
    "read": ("read", "tokens of texts, their marks included"),
    "padded": ("padded", "places of samples that held nothing"),
}


def scores(run: RunRecord) -> Html:
    """The held-out scores of every stage that trains an encoder; nothing where there are none."""
    parts = [
        labels_score(stage) if stage.kind == "classify" else masked_score(stage)
        for stage in run.of_kind(*KINDS)
        if stage.part("heldout")
    ]
    return join(parts)


def accuracy_row(name: str, score: Row, class_: str, loss: object) -> Html:
    """One guesser: its name, its accuracy as a bar and in digits, and its loss."""
    value, interval = number(score.get("accuracy")), usable_interval(score.get("interval"))
    span = f"{words.percent(interval[0])} – {words.percent(interval[1])}" if interval else None
    cells = [
        name,
        bar(value, interval, 1.0),
        join([words.percent(score.get("accuracy")), element("small", span) if span else None]),
        words.digits(loss),
    ]
    return row(cells, classes=(None, "bars", "number", "number wide"), class_=class_)


def accuracy_table(rows: list[Html], unit: str, caption: str) -> Html:
    """Guessers beside each other."""
    heads = ["method", "longer is better", "right", unit]
    classes = (None, "bars", "number", "number wide")
    return table(heads, rows, classes=classes, caption=caption, class_="scores")


def masked_score(stage: StageRecord) -> Html:
    """How held-out tokens are foretold, beside the unigram model."""
    found = stage.part("heldout")
    own, guess = mapping(found.get("model")), mapping(found.get("unigram"))
    said = (
        f"Of {words.counted(own.get('tokens'), 'token')} hidden in held-out text, how many are "
        "foretold right. The masks never change; the unigram model says what is frequent."
    )
    rows = [
        accuracy_row("this model", own, "own", own.get("loss")),
        accuracy_row("unigram", guess, "other", guess.get("loss")),
    ]
    caption = "Every full bar is 100 %. Brackets: 95 % interval."
    title = element("h3", f"{stage.name}: hidden tokens")
    return join([title, element("p", said), accuracy_table(rows, "nats per token", caption)])


def labels_score(stage: StageRecord) -> Html:
    """How held-out texts are labelled, beside the commonest label, and what was mistaken."""
    found = stage.part("heldout")
    texts = number(found.get("texts"))
    share = number(found.get("majority")) / texts if texts else None
    rows = [
        accuracy_row("this model", found, "own", found.get("loss")),
        accuracy_row("the commonest label", {"accuracy": share}, "other", None),
    ]
    said = f"How many of {words.counted(texts, 'held-out text')} get the right label."
    caption = "Every full bar is 100 %. Brackets: 95 % interval."
    return join(
        [
            element("h3", f"{stage.name}: labels"),
            element("p", said),
            accuracy_table(rows, "nats per text", caption),
            confusion(found),
        ]
    )


def confusion(found: Row) -> Html:
    """The confusion matrix, with as many labels as a page has room for."""
    names, matrix = listing(found.get("labels")), listing(found.get("matrix"))
    shown = [str(name) for name in names[:SHOWN_LABELS]]
    rows = []
    for name, counts in zip(shown, matrix, strict=False):
        cells = [words.whole(count) for count in listing(counts)[:SHOWN_LABELS]]
        rows.append(row([name, *cells], classes=(None, *["number"] * len(cells))))
    if not rows:
        return Html()
    left = len(names) - len(shown)
    more = f" {words.counted(left, 'more label')} are in stage.json." if left > 0 else ""
    said = f"Rows: the right label. Columns: the label that was given.{more}"
    heads = ["right label", *shown]
    classes = (None, *["number"] * len(shown))
    return join(
        [
            element("p", said, class_="quiet"),
            table(heads, rows, classes=classes, caption="Confusion matrix"),
        ]
    )


def listing(value: object) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def place_checks(stage: StageRecord) -> list[Check]:
    """Places are the sum of their parts; the log ends where the account does."""
    given = {key: number(value) for key, value in stage.part("ledger").items()}
    parts = MASKED_ROWS if stage.kind == "masked" else LABELLED_ROWS
    made = []
    if given.keys() >= {"places", *parts}:
        said = " + ".join(f"{given[key]:,} {name}" for key, (name, _) in parts.items())
        holds = given["places"] == sum(given[key] for key in parts)
        made.append(Check(f"{given['places']:,} places = {said}", holds))
    counted, logged = "trained" if stage.kind == "masked" else "labelled", stage.series("loss")[0]
    if logged and counted in given:
        said = f"the log ends at {logged[-1]:,}, the ledger says {given[counted]:,}"
        made.append(Check(said, logged[-1] == given[counted]))
    return made


def example_checks(stage: StageRecord) -> list[Check]:
    """Examples read = for training + held out + dropped."""
    found = stage.part("examples")
    read, train, heldout = (number(found.get(key)) for key in ("read", "train", "heldout"))
    dropped = sum(map(number, mapping(found.get("dropped")).values()))
    said = f"{read:,} examples read = {train:,} for training + {heldout:,} held out"
    return [Check(f"{said} + {dropped:,} dropped", read == train + heldout + dropped)]


def ledgers(run: RunRecord) -> list[Html]:
    """The accounts of every stage that trains an encoder, as far as they are there."""
    parts = []
    for stage in run.of_kind(*KINDS):
        if stage.part("examples"):
            parts.append(examples(stage))
        if stage.part("ledger"):
            parts.append(places(stage))
    return parts


def examples(stage: StageRecord) -> Html:
    """Where every labelled text went."""
    found = stage.part("examples")
    dropped = mapping(found.get("dropped"))
    labels = mapping(found.get("labels"))
    lines: list[tuple[str, object]] = [
        *((f"for training: {name}", mapping(n).get("train")) for name, n in labels.items()),
        *((f"held out: {name}", mapping(n).get("heldout")) for name, n in labels.items()),
        *((f"dropped: {reason}", count) for reason, count in dropped.items()),
    ]
    rows = [row([name, words.whole(count)], classes=CLASSES) for name, count in lines]
    total = row(["read", words.whole(found.get("read"))], classes=CLASSES, class_="total")
    heads = ["", "examples"]
    return join(
        [
            element("h3", f"{stage.name}: labelled texts"),
            table(heads, [*rows, total], classes=CLASSES, caption="Labelled texts"),
            checks(example_checks(stage)),
        ]
    )


def places(stage: StageRecord) -> Html:
    """Where the places of all steps went."""
    found = stage.part("ledger")
    parts = MASKED_ROWS if stage.kind == "masked" else LABELLED_ROWS
    kinds = zip(parts.items(), ("first", "second", "third"), strict=False)
    rows = [
        row([join([name, element("small", what)]), words.whole(found.get(key))], classes=CLASSES)
        for key, (name, what) in parts.items()
    ]
    total = row(["places", words.whole(found.get("places"))], classes=CLASSES, class_="total")
    passes = words.passes_words(stage)
    title = f"{stage.name}: places of all steps{f', {passes}' if passes else ''}"
    cut = number(found.get("cut"))
    note = f"{words.counted(cut, 'text')} had to be cut to the context." if cut else ""
    return join(
        [
            element("h3", title),
            stack([(name, number(found.get(key)), kind) for (key, (name, _)), kind in kinds]),
            table(["", "places"], [*rows, total], classes=CLASSES, caption="Places"),
            checks(place_checks(stage)),
            element("p", note, class_="quiet") if note else None,
        ]
    )


def made_words(run: RunRecord) -> list[str]:
    """What encoders learned, a sentence each."""
    said: list[str] = []
    for stage in run.of_kind(*KINDS):
        if stage.status != "complete" or not stage.summary:
            continue
        network = words.network_words(stage)
        if stage.kind == "masked":
            count = words.spoken(stage.summary.get("tokens"))
            passes = words.passes_words(stage)
            over = f", {passes} over the text" if passes else ""
            what = f"trained {stage.name}, a {network}, to foretell {count} hidden tokens{over}"
        else:
            began, found = stage.config.get("init"), stage.part("examples")
            new = " with new weights" if stage.config.get("weights") == "new" else ""
            count = words.counted(found.get("train"), "text")
            labels = words.counted(len(mapping(found.get("labels"))), "label")
            what = f"taught {stage.name}, made from {began}{new}, to give {labels} to {count}"
        said.append(f"{'It then' if said else 'This run'} {what}.")
    return said


def score_words(run: RunRecord) -> str:
    """How good the last encoder is, beside the simplest guess."""
    stages = [s for s in run.of_kind(*KINDS) if s.status == "complete" and s.part("heldout")]
    if not stages:
        return ""
    stage, found = stages[-1], stages[-1].part("heldout")
    if stage.kind == "classify":
        right, texts = words.whole(found.get("right")), words.whole(found.get("texts"))
        share = words.percent(found.get("accuracy"))
        majority = words.whole(found.get("majority"))
        return (
            f"{stage.name} labels {right} of {texts} held-out texts right ({share}"
            f"{span_words(found)}); the commonest label would get {majority}."
        )
    own, guess = mapping(found.get("model")), mapping(found.get("unigram"))
    return (
        f"{stage.name} foretells {words.percent(own.get('accuracy'))} of hidden tokens of held-out "
        f"text{span_words(own)}; by frequency alone it would be "
        f"{words.percent(guess.get('accuracy'))}."
    )


def span_words(score: Row) -> str:
    """' (95 % interval …)' as the rest of a phrase; empty where there is none."""
    ends = usable_interval(score.get("interval"))
    return f", 95 % interval {words.percent(ends[0])} to {words.percent(ends[1])}" if ends else ""


def result_words(stage: StageRecord) -> str:
    """What a stage brought, in a few words."""
    found = stage.part("heldout")
    if stage.kind == "classify" and found:
        right, texts = words.whole(found.get("right")), words.whole(found.get("texts"))
        return f"{right} of {texts} held-out texts right"
    own = mapping(found.get("model"))
    if is_finite(own.get("accuracy")):
        return f"{words.percent(own['accuracy'])} of hidden held-out tokens right"
    return words.training_words(stage)


def outcome_words(found: Row) -> str:
    """What an encoder's held-out score is, beside the simplest guess."""
    if "matrix" in found:
        of = found["texts"]
        return f"{found['right']} of {of} texts right, the commonest label {found['majority']}"
    own, guess = found["model"], found["unigram"]
    return (
        f"{own['loss']:.3f} nats and {100 * own['accuracy']:.1f} % of hidden tokens right, "
        f"by frequency {guess['loss']:.3f} and {100 * guess['accuracy']:.1f} %"
    )


def use(place: str, kind: str) -> str:
    """Lines of Python that use an encoder."""
    load = f"import stemma\n\nmodel, tokenizer = stemma.load({place!r})\n"
    if kind == "masked":
        ask = '["The [MASK] sat."]'
        return f"from stemma.infer.encoders import fill\n{load}print(fill(model, tokenizer, {ask}))"
    ask = '["A text to label."]'
    return f"from stemma.infer.encoders import label\n{load}print(label(model, tokenizer, {ask}))"
