"""The report's ledger of fine-tuning: where conversations, their tokens, and the places of the
steps went, and whether the three accounts balance by themselves and with one another.

As in `report_ledger`, the numbers are added up again: the stage's own `balanced` is not trusted.
"""

from collections import Counter
from collections.abc import Sequence

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import Row, RunRecord, StageRecord, is_finite, mapping, number
from stemma.pipeline.report_ledger import Check, checks, stack
from stemma.pipeline.report_markup import Html, element, join, pairs, paragraphs, row, table

CLASSES = (None, "number")
SHOWN_FILES = 40

ONCE_ROWS = {
    "trained": ("trained", "tokens of the assistant's answers, their ends included"),
    "masked": ("masked", "tokens that are read and not learned: questions, roles, beginnings"),
    "cropped": ("cropped", "tokens beyond the last whole answer that fits the context"),
}
PLACE_ROWS = {
    "trained": ("trained", "predictions that counted in the loss"),
    "masked": ("masked", "places whose next token is no answer's"),
    "padded": ("padded", "places of samples that held nothing"),
}
LOOK_ROWS = {
    "conversations": "conversations",
    "samples": "samples made of them",
    "shortened": "samples cut after their last whole answer that fits",
    "doubled_bos": "samples with two tokens that begin a text",
    "untrained_end": "samples with an answer whose end is not trained",
    "unrolled": "samples of one turn, as the template rewrites earlier turns",
    "seams": "samples with other ids than their text as a whole",
}


def conversation_checks(stage: StageRecord) -> list[Check]:
    """Conversations read = for training + held out + dropped, and = those of all files."""
    ledger = stage.part("conversations")
    read, train, heldout = (number(ledger.get(key)) for key in ("read", "train", "heldout"))
    dropped = sum(map(number, mapping(ledger.get("dropped")).values()))
    said = f"{read:,} conversations read = {train:,} for training + {heldout:,} held out"
    made = [Check(f"{said} + {dropped:,} dropped", read == train + heldout + dropped)]
    files = [mapping(about) for about in mapping(ledger.get("files")).values()]
    if files:
        held = sum(number(about.get("conversations")) for about in files)
        in_files = f"{words.counted(len(files), 'file')} with {held:,} conversations"
        made.append(Check(f"{in_files}, {read:,} read", held == read))
    looked = stage.part("preflight").get("conversations")
    if is_finite(looked):
        said = f"{number(looked):,} conversations rendered, {train:,} for training"
        made.append(Check(said, looked == train))
    return made


def once_checks(stage: StageRecord) -> list[Check]:
    """Tokens rendered = trained + masked + cropped; what was left out is not in the store."""
    seen, ledger = stage.part("preflight"), stage.part("ledger")
    rendered, *parts = (number(seen.get(key)) for key in ("rendered", *ONCE_ROWS))
    said = " + ".join(f"{n:,} {key}" for n, key in zip(parts, ONCE_ROWS, strict=True))
    made = [Check(f"{rendered:,} tokens rendered = {said}", rendered == sum(parts))]
    if is_finite(ledger.get("documents")):
        samples, stored = number(seen.get("samples")), number(ledger["documents"])
        said = f"{samples:,} samples made, {stored:,} stored"
        made.append(Check(said, samples == stored))
    if is_finite(ledger.get("store_tokens")):
        kept, stored = rendered - number(seen.get("cropped")), number(ledger["store_tokens"])
        dropped = sum(map(number, mapping(seen.get("dropped")).values()))
        holds = stored <= kept if dropped else stored == kept
        said = f"{kept:,} tokens trained or masked, {stored:,} stored"
        made.append(
            Check(f"{said}; the others are of samples left out" if dropped else said, holds)
        )
    return made


def place_checks(stage: StageRecord) -> list[Check]:
    """Places = trained + masked + padded over all passes; one pass has room for every sample."""
    found = {key: number(value) for key, value in stage.part("ledger").items()}
    made = []
    if found.keys() >= {"places", *PLACE_ROWS}:
        said = " + ".join(f"{found[key]:,} {key}" for key in PLACE_ROWS)
        holds = found["places"] == sum(found[key] for key in PLACE_ROWS)
        made.append(Check(f"{found['places']:,} places = {said}", holds))
    if found.get("epochs") and found.keys() >= {"places", "store_tokens", "documents"}:
        room = round(found["places"] / found["epochs"])
        needed = found["store_tokens"] - found["documents"]
        said = f"{needed:,} places that samples need, {room:,} in one pass"
        made.append(Check(said, 0 < needed <= room))
    logged = stage.series("loss")[0]
    if logged and "trained" in found:
        said = f"the log ends at {logged[-1]:,} tokens, the ledger says {found['trained']:,}"
        made.append(Check(said, logged[-1] == found["trained"]))
    return made


def conversation_ledgers(run: RunRecord) -> list[Html]:
    """The ledgers of every stage that fine-tunes, as far as they are there."""
    return [
        part
        for stage in run.of_kind("sft")
        for part in (conversations(stage), once(stage), places(stage))
        if part
    ]


def conversations(stage: StageRecord) -> Html:
    """Where every conversation went."""
    ledger = stage.part("conversations")
    if not ledger:
        return Html()
    dropped = {str(why): number(n) for why, n in mapping(ledger.get("dropped")).items()}
    gone = sum(dropped.values())
    lines = [
        ("for training", ledger.get("train")),
        ("held out", ledger.get("heldout")),
        *((f"dropped: {reason}", count) for reason, count in dropped.items()),
        ("dropped, all", gone),
    ]
    parts = [("training", "train", "first"), ("held out", "heldout", "second")]
    shares = [(name, number(ledger.get(key)), kind) for name, key, kind in parts]
    return join(
        [
            element("h3", f"{stage.name}: conversations"),
            stack([*shares, ("dropped", gone, "third")]),
            counts(lines, ("read", ledger.get("read")), "conversations"),
            checks(conversation_checks(stage)),
            paragraphs(*conversation_notes(stage, ledger), class_="quiet"),
        ]
    )


def conversation_notes(stage: StageRecord, ledger: Row) -> list[str]:
    """Formats that were found, and what the table of conversations does not say."""
    notes = [format_words(mapping(ledger.get("files")))]
    if number(ledger.get("groups")):
        turns = words.counted(ledger["groups"], "different first turn")
        notes.append(
            f"Held out are the conversations of {words.whole(ledger.get('heldout_groups'))} of "
            f"{turns}."
        )
    if number(ledger.get("trimmed")):
        lost = words.counted(ledger.get("trailing_messages"), "message")
        who = words.counted(ledger["trimmed"], "conversation")
        notes.append(f"{who} lost {lost} after the last answer.")
    if number(ledger.get("rejected")):
        bad = words.counted(ledger["rejected"], "conversation")
        where = f"{stage.name}/conversations/rejects.jsonl"
        notes.append(f"{bad} could not be read and went to {where}.")
    shared = mapping(ledger.get("overlap"))
    if number(shared.get("first_turns")) or number(shared.get("conversations")):
        notes.append(
            f"{words.whole(shared.get('first_turns'))} held-out conversations begin like one in "
            f"training, {words.whole(shared.get('conversations'))} are in it whole: "
            "the scores on them flatter."
        )
    return [note for note in notes if note]


def format_words(files: Row) -> str:
    """'Formats found: messages in 2 files, alpaca in qa.json.'"""
    known: dict[str, list[str]] = {}
    for name, about in files.items():
        known.setdefault(str(mapping(about).get("format")), []).append(str(name))
    said = [
        f"{form} in {names[0] if len(names) == 1 else words.counted(len(names), 'file')}"
        for form, names in known.items()
    ]
    plural = "s" if len(said) > 1 else ""
    return f"Format{plural} found: {words.listed(said[:SHOWN_FILES])}." if said else ""


def once(stage: StageRecord) -> Html:
    """What became of the tokens of the conversations, for one pass; the look before training."""
    seen = stage.part("preflight")
    if not seen:
        return Html()
    lines = [
        (join([name, element("small", what)]), seen.get(key))
        for key, (name, what) in ONCE_ROWS.items()
    ]
    kinds = zip(ONCE_ROWS, ("first", "second", "third"), strict=True)
    looked = [(what, words.whole(seen.get(key))) for key, what in LOOK_ROWS.items() if key in seen]
    left = Counter({str(why): number(n) for why, n in mapping(seen.get("dropped")).items()})
    looked += [(f"samples left out: {why}", words.whole(n)) for why, n in left.items()]
    return join(
        [
            element("h3", f"{stage.name}: tokens of the training conversations, once"),
            stack([(key, number(seen.get(key)), kind) for key, kind in kinds]),
            counts(lines, ("rendered", seen.get("rendered")), "tokens"),
            checks(once_checks(stage)),
            element("p", "The look at every conversation before the first step found:"),
            pairs(looked),
        ]
    )


def places(stage: StageRecord) -> Html:
    """Where the places of all steps went."""
    found = stage.part("ledger")
    if not found:
        return Html()
    lines = [
        (join([name, element("small", what)]), found.get(key))
        for key, (name, what) in PLACE_ROWS.items()
    ]
    kinds = zip(PLACE_ROWS, ("first", "second", "third"), strict=True)
    passes = words.passes_words(stage)
    title = f"{stage.name}: places of all steps{f', {passes}' if passes else ''}"
    return join(
        [
            element("h3", title),
            stack([(key, number(found.get(key)), kind) for key, kind in kinds]),
            counts(lines, ("places", found.get("places")), "places"),
            checks(place_checks(stage)),
        ]
    )


def counts(
    lines: Sequence[tuple[Html | str, object]], total: tuple[str, object], unit: str
) -> Html:
    """A table of counts that add up to its last line."""
    rows = [row([name, words.whole(count)], classes=CLASSES) for name, count in lines]
    last = row([total[0], words.whole(total[1])], classes=CLASSES, class_="total")
    return table(["", unit], [*rows, last], classes=CLASSES, caption=unit.capitalize())
