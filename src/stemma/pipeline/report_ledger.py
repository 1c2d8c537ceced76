"""The report's ledger: where documents, bytes and tokens went, and whether the account balances.

The checks do not trust the stages' own word: they add up the numbers again, and compare the tokens
of the ledger with the end of the training log.
"""

from dataclasses import dataclass
from typing import Any

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import RunRecord, StageRecord, is_finite, number
from stemma.pipeline.report_markup import Html, element, join, paragraphs, row, table

SHOWN_GROUPS = 40
SIDES = ("read", "train", "heldout")

TOKEN_ROWS = {
    "store_tokens": ("stored", "tokens of the training text, once"),
    "masked": ("masked", "stored tokens that nothing predicts, such as the first of a document"),
    "cropped": ("cropped", "stored tokens left out because they fitted in no sample"),
    "epochs": ("passes", "how often training went over the stored tokens"),
    "trained": ("trained", "predictions that counted in the loss, over all passes"),
    "padded": ("padded", "places of samples that held nothing, over all passes"),
    "places": ("places", "all places of all steps"),
}


@dataclass(frozen=True)
class Check:
    """One law of the ledger in words, and whether the run keeps it."""

    words: str
    holds: bool


def dropped_documents(stage: StageRecord) -> dict[str, float]:
    """Reasons for which documents were dropped, with how many each."""
    return {str(reason): number(count) for reason, count in stage.part("dropped").items()}


def bytes_left(stage: StageRecord) -> float:
    """Bytes read that are neither for training nor held out."""
    read, train, heldout = (number(stage.part(p).get("bytes")) for p in SIDES)
    return read - train - heldout


def document_checks(stage: StageRecord) -> list[Check]:
    """Documents, and bytes, that were read = for training + held out + dropped.

    Where the stage did not count the bytes it dropped, the rest must at least make sense.
    """
    dropped = sum(dropped_documents(stage).values())
    amounts = [("documents", dropped)]
    left, counted = bytes_left(stage), stage.summary.get("dropped_bytes")
    amounts += [("bytes", number(counted))] if is_finite(counted) else []
    made = []
    for unit, gone in amounts:
        read, train, heldout = (number(stage.part(p).get(unit)) for p in SIDES)
        said = f"{read:,} {unit} read = {train:,} for training + {heldout:,} held out"
        made.append(Check(f"{said} + {gone:,} dropped", read == train + heldout + gone))
    if len(amounts) == 1:
        where = "in dropped documents" if dropped else "though no document was dropped"
        said = f"{left:,} bytes are neither for training nor held out, {where}"
        made.append(Check(said, left == 0 or (left > 0 and dropped > 0)))
    return made


def token_checks(stage: StageRecord) -> list[Check]:
    """Places = trained + padded; places of one epoch hold what is stored and not masked.

    A place is where the network predicts one token. An epoch's places are the stored tokens less
    those masked or cropped, rounded up to whole samples of `context` places.
    """
    ledger, checks = stage.part("ledger"), []
    given = {key: number(value) for key, value in ledger.items()}
    if {"places", "trained", "padded"} <= given.keys():
        places, trained, padded = given["places"], given["trained"], given["padded"]
        said = f"{places:,} places = {trained:,} trained + {padded:,} padded"
        checks.append(Check(said, places == trained + padded))
    context = number(stage.config.get("context"))
    if context and given.get("epochs") and {"places", "store_tokens", "masked"} <= given.keys():
        once = given["store_tokens"] - given["masked"] - given.get("cropped", 0)
        room = round(given["places"] / given["epochs"])
        said = (
            f"{given['store_tokens']:,} stored − {given['masked']:,} masked − "
            f"{given.get('cropped', 0):,} cropped fit the {room:,} places of one pass"
        )
        checks.append(Check(said, room - context < once <= room))
    logged = stage.series("loss")[0]
    if logged and "trained" in given:
        said = f"the log ends at {logged[-1]:,} tokens, the ledger says {given['trained']:,}"
        checks.append(Check(said, logged[-1] == given["trained"]))
    return checks


def document_ledgers(run: RunRecord) -> list[Html]:
    """The ledgers of documents and of their tokens, as far as they are there."""
    parts = [document_ledger(s) for s in run.of_kind("curate") if s.part("read")]
    return parts + [token_ledger(s) for s in run.of_kind("pretrain") if s.part("ledger")]


def checks(made: list[Check]) -> Html:
    """Laws that hold with a tick, laws that do not in red."""
    return element(
        "ul",
        *(
            element("li", f"✓ {check.words}")
            if check.holds
            else element("li", f"Does not balance: {check.words}", class_="broken")
            for check in made
        ),
        class_="checks",
    )


def stack(entries: list[tuple[str, float, str]]) -> Html:
    """Parts of a whole as one bar with its key."""
    total = sum(max(0.0, value) for _, value, _ in entries) or 1.0
    shown = [(name, max(0.0, value), kind) for name, value, kind in entries]
    pieces = (
        element("i", class_=kind, style=f"width:{100 * value / total:.3f}%")
        for _, value, kind in shown
        if value
    )
    key = (
        element("li", element("i", class_=kind), f"{name} {100 * value / total:.3g} %")
        for name, value, kind in shown
    )
    return join(
        [
            element("div", *pieces, class_="stack", aria_hidden="true"),
            element("ul", *key, class_="key"),
        ]
    )


def document_ledger(stage: StageRecord) -> Html:
    """Documents and bytes of a curate stage."""
    kinds = (None, "number", "number")
    counts = [(stage.part(p).get("documents"), stage.part(p).get("bytes")) for p in SIDES]
    dropped, left = dropped_documents(stage), bytes_left(stage)
    lines: list[tuple[str, Any, Any]] = [
        ("for training", *counts[1]),
        ("held out", *counts[2]),
        *((f"dropped: {reason}", count, None) for reason, count in dropped.items()),
        ("dropped, all", sum(dropped.values()), left),
    ]
    rows = [row([n, words.whole(d), words.whole(b)], classes=kinds) for n, d, b in lines]
    total = ["read", *map(words.whole, counts[0])]
    whole = [("training", counts[1][1], "first"), ("held out", counts[2][1], "second")]
    return join(
        [
            element("h3", f"{stage.name}: documents"),
            stack([*((n, number(b), k) for n, b, k in whole), ("dropped", left, "third")]),
            table(
                ["", "documents", "bytes"],
                [*rows, row(total, classes=kinds, class_="total")],
                classes=kinds,
                caption="Documents and bytes",
            ),
            checks(document_checks(stage)),
            paragraphs(*document_notes(stage), class_="quiet"),
        ]
    )


def document_notes(stage: StageRecord) -> list[str]:
    """What the table of documents does not say."""
    notes, groups = [], stage.summary.get("heldout_groups")
    sources = stage.summary.get("heldout_sources", groups)
    named = [str(source) for source in sources] if isinstance(sources, list) else []
    if named:
        count = int(number(stage.summary.get("heldout_source_count")))
        left = max(count, len(named)) - len(named[:SHOWN_GROUPS])
        more = f" and {left:,} more" if left else ""
        notes.append(f"Held out: {', '.join(named[:SHOWN_GROUPS])}{more}.")
    elif number(groups):
        total = words.counted(stage.summary.get("groups"), "group")
        notes.append(
            f"Held out: {words.whole(groups)} of {total} of documents that belong together."
        )
    if number(stage.part("cut").get("documents")):
        size = words.size(stage.part("cut").get("bytes"))
        notes.append(
            f"One document was cut: its beginning is for training, its last {size} are held out. "
            "It counts once, under training."
        )
    rejected = stage.summary.get("rejected_lines", stage.summary.get("rejected"))
    if number(rejected):
        lines = words.counted(rejected, "line")
        notes.append(f"{lines} could not be read and went to {stage.name}/rejects.jsonl.")
    return notes


def token_ledger(stage: StageRecord) -> Html:
    """Tokens of a training stage."""
    found = stage.part("ledger")
    rows = [
        row(
            [
                join([name, element("small", what)]),
                f"{found[key]:.4g}" if key == "epochs" else words.whole(found[key]),
            ],
            classes=(None, "number"),
        )
        for key, (name, what) in TOKEN_ROWS.items()
        if is_finite(found.get(key))
    ]
    return join(
        [
            element("h3", f"{stage.name}: tokens"),
            table(["", "tokens"], rows, classes=(None, "number"), caption="Tokens"),
            checks(token_checks(stage)),
        ]
    )
