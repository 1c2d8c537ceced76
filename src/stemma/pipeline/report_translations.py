"""The report of translators: BLEU and chrF with their signatures, translations, and the account.

A score of translations says little without how it was counted and how the search went: the table
says both. The page shows the first held-out sentences, whatever became of them.
"""

from collections.abc import Iterator, Mapping

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import Row, RunRecord, StageRecord, is_finite, mapping, number
from stemma.pipeline.report_ledger import Check, checks, stack
from stemma.pipeline.report_markup import Html, element, join, paragraphs, row, table

KIND = "translate"
CLASSES = (None, "number")
LONGEST = 400  # characters of a sentence in the table
TYPED = 60  # characters of an example that one would type
METRICS = {"bleu": "BLEU", "chrf": "chrF"}
SEARCH = {  # settings of the search, as the page calls them
    "beams": "beams",
    "alpha": "exponent of the penalty on length",
    "max_new_tokens": "tokens at most",
}
LINE_ROWS = {
    "train": ("for training", "pairs to learn from"),
    "empty": ("left out: empty", "lines with an empty side"),
    "too_long": ("left out: too long", "pairs with a side that does not fit the context"),
}
HELDOUT_ROWS = {
    "scored": ("scored", "pairs whose translation is compared with the one wanted"),
    "empty": ("not scored: empty", "lines with an empty side"),
}
PLACE_ROWS = {
    "trained": ("trained", "target tokens that counted in the loss"),
    "padded": ("padded", "places of bundles that held no target token"),
}


def complete(run: RunRecord) -> StageRecord | None:
    """The last complete translator that was scored."""
    stage = run.last(KIND)
    return stage if stage and is_finite(stage.part("translation").get("bleu")) else None


def shown_pairs(found: Row) -> list[Row]:
    """The translations that a result holds, those of them that are rows."""
    shown = found.get("shown")
    return [mapping(one) for one in shown if mapping(one)] if isinstance(shown, list) else []


def scores(run: RunRecord) -> Html:
    """The scores of every stage that translates, with signatures and how it searched."""
    return join(
        join([element("h3", f"{stage.name}: translations"), *score(stage.part("translation"))])
        for stage in run.of_kind(KIND)
        if stage.part("translation")
    )


def score(found: Row) -> list[Html]:
    """BLEU and chrF beside their signatures, then the settings of the search."""
    said = (
        f"Translations of {words.counted(found.get('sentences'), 'held-out sentence')}, compared "
        "with one wanted translation each. More is better; 100 is the same text. Scores with "
        "other signatures cannot be compared."
    )
    classes = (None, "number", "mono")
    rows = [
        row(
            [name, words.digits(found.get(key), 2), str(found.get(f"{key}_signature", ""))],
            classes=classes,
        )
        for key, name in METRICS.items()
    ]
    heads, search = ["", "score", "signature of sacrebleu"], mapping(found.get("search"))
    settings = [
        f"{name}: {search[key]:g}" for key, name in SEARCH.items() if is_finite(search.get(key))
    ]
    how = f"Found by beam search; {'; '.join(settings)}." if settings else None
    return [
        element("p", said),
        table(heads, rows, classes=(None, "number"), caption="Scores of translations"),
        paragraphs(how, class_="quiet"),
    ]


def translations(run: RunRecord) -> Html:
    """The first held-out sentences with the translation wanted and the one made."""
    found = [s for s in run.of_kind(KIND) if shown_pairs(s.part("translation"))]
    if not found:
        return element("p", words.waiting(run, "Translations", KIND), class_="quiet")
    return join(
        join([element("h3", stage.name) if len(found) > 1 else None, side_by_side(stage)])
        for stage in found
    )


def side_by_side(stage: StageRecord) -> Html:
    """One stage's translations in a table."""
    found = stage.part("translation")
    shown = shown_pairs(found)
    rows = [
        row([cut(one.get(key)) for key in ("source", "wanted", "made")], classes=("what",) * 3)
        for one in shown
    ]
    of = words.counted(found.get("sentences"), "held-out sentence")
    said = (
        f"The first {words.whole(len(shown))} of {of}, nothing was chosen by hand. "
        f"{stage.name}/translations.txt has a line for each line of the held-out file."
    )
    heads = ["source", "wanted", "made"]
    return join([element("p", said), table(heads, rows, caption="Translations")])


def cut(text: object) -> Html:
    """A sentence in a cell, in its own direction of writing; an empty one is told."""
    if not text:
        return element("small", "nothing")
    return element("span", words.shortened(str(text), LONGEST), dir="auto")


def line_checks(stage: StageRecord) -> list[Check]:
    """Lines of the training and of the held-out files = the parts they went to."""
    ledger, made = stage.part("ledger"), []
    sides = (("pairs", LINE_ROWS, "lines"), ("heldout", HELDOUT_ROWS, "held-out lines"))
    for key, parts, name in sides:
        given = {k: number(value) for k, value in mapping(ledger.get(key)).items()}
        if given.keys() >= {"lines", *parts}:
            said = " + ".join(f"{given[k]:,} {what}" for k, (what, _) in parts.items())
            holds = given["lines"] == sum(given[k] for k in parts)
            made.append(Check(f"{given['lines']:,} {name} = {said}", holds))
    scored = mapping(ledger.get("heldout")).get("scored")
    sentences = stage.part("translation").get("sentences")
    if is_finite(scored) and is_finite(sentences):
        said = f"{number(scored):,} held-out pairs, scores of {number(sentences):,}"
        made.append(Check(said, scored == sentences))
    return made


def place_checks(stage: StageRecord) -> list[Check]:
    """Places are the sum of their parts; the log ends where the account does."""
    given = {key: number(value) for key, value in stage.part("ledger").items()}
    made = []
    if given.keys() >= {"places", *PLACE_ROWS}:
        said = " + ".join(f"{given[key]:,} {name}" for key, (name, _) in PLACE_ROWS.items())
        holds = given["places"] == sum(given[key] for key in PLACE_ROWS)
        made.append(Check(f"{given['places']:,} places = {said}", holds))
    logged = stage.series("loss")[0]
    if logged and "trained" in given:
        said = f"the log ends at {logged[-1]:,} target tokens, the ledger says {given['trained']:,}"
        made.append(Check(said, logged[-1] == given["trained"]))
    return made


def ledgers(run: RunRecord) -> list[Html]:
    """The accounts of every stage that translates, as far as they are there."""
    parts = []
    for stage in run.of_kind(KIND):
        ledger = stage.part("ledger")
        if mapping(ledger.get("pairs")):
            parts.append(lines(stage))
        if is_finite(ledger.get("places")):
            parts.append(places(stage))
    return parts


def lines(stage: StageRecord) -> Html:
    """Where every line of the files went."""
    ledger = stage.part("ledger")
    train, heldout = mapping(ledger.get("pairs")), mapping(ledger.get("heldout"))
    return join(
        [
            element("h3", f"{stage.name}: lines of the training files"),
            stack([*shares(train, LINE_ROWS)]),
            counts(train, LINE_ROWS, ("lines", train.get("lines")), "Training lines"),
            element("h3", f"{stage.name}: held-out lines"),
            counts(heldout, HELDOUT_ROWS, ("lines", heldout.get("lines")), "Held-out lines"),
            checks(line_checks(stage)),
            paragraphs(*notes(heldout), class_="quiet"),
        ]
    )


def notes(heldout: Row) -> list[str]:
    """What the table of held-out lines does not say."""
    said = []
    if number(heldout.get("seen_sources")):
        sources = words.counted(heldout["seen_sources"], "held-out sentence")
        verb = "is" if heldout["seen_sources"] == 1 else "are"
        said.append(
            f"{sources} {verb} in training too, {words.whole(heldout.get('seen_pairs'))} with the "
            "same translation: the scores on them flatter."
        )
    if number(heldout.get("outside_loss")):
        longer = words.counted(heldout["outside_loss"], "held-out translation")
        said.append(f"The loss along training leaves out {longer} too long for the context.")
    return said


def places(stage: StageRecord) -> Html:
    """Where the places of all steps went."""
    ledger = stage.part("ledger")
    passes = words.passes_words(stage)
    title = f"{stage.name}: places for target tokens{f', {passes}' if passes else ''}"
    return join(
        [
            element("h3", title),
            stack([*shares(ledger, PLACE_ROWS)]),
            counts(ledger, PLACE_ROWS, ("places", ledger.get("places")), "Places"),
            checks(place_checks(stage)),
        ]
    )


def shares(found: Row, parts: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, float, str]]:
    """Parts of a whole for its bar."""
    kinds = ("first", "second", "third")
    for (key, (name, _)), kind in zip(parts.items(), kinds, strict=False):
        yield name, number(found.get(key)), kind


def counts(
    found: Row, parts: Mapping[str, tuple[str, str]], total: tuple[str, object], caption: str
) -> Html:
    """A table of counts that add up to its last line."""
    rows = [
        row([join([name, element("small", what)]), words.whole(found.get(key))], classes=CLASSES)
        for key, (name, what) in parts.items()
    ]
    last = row([total[0], words.whole(total[1])], classes=CLASSES, class_="total")
    return table(["", total[0]], [*rows, last], classes=CLASSES, caption=caption)


def made_words(run: RunRecord) -> str:
    """What learned to translate, from what."""
    said: list[str] = []
    for stage in run.of_kind(KIND):
        if stage.status != "complete" or not stage.summary:
            continue
        pairs_read = mapping(stage.part("ledger").get("pairs")).get("train")
        source = f" from {words.counted(pairs_read, 'sentence pair')}" if pairs_read else ""
        count, passes = words.spoken(stage.summary.get("tokens")), words.passes_words(stage)
        over = f", {passes} over them" if passes else ""
        what = f"trained {stage.name}, a {words.network_words(stage)}, to translate{source}"
        said.append(f"{'It then' if said else 'This run'} {what}, on {count} target tokens{over}.")
    return " ".join(said)


def score_words(run: RunRecord) -> str:
    """How good the last translator is."""
    stage = complete(run)
    if stage is None:
        return ""
    found = stage.part("translation")
    beams = mapping(found.get("search")).get("beams")
    how = f" by beam search along {words.counted(beams, 'path')}" if is_finite(beams) else ""
    sentences = words.counted(found.get("sentences"), "held-out sentence")
    return f"{stage.name} translates {sentences}{how} with {points(found)}."


def points(found: Row) -> str:
    """'BLEU 33.1 and chrF 58.3'."""
    return words.listed([f"{name} {words.digits(found.get(k), 1)}" for k, name in METRICS.items()])


def outcome_words(found: Row) -> str:
    """What a stage brought, in a few words."""
    return f"{points(found)} on {words.counted(found.get('sentences'), 'held-out sentence')}"


def result_words(stage: StageRecord) -> str:
    """What a stage brought, in a few words, also where nothing was scored yet."""
    found = stage.part("translation")
    return outcome_words(found) if found else words.training_words(stage)


def loss_words(stage: StageRecord) -> str:
    """Why the two curves of the loss do not meet."""
    share = stage.config.get("label_smoothing")
    if stage.kind != KIND or not number(share):
        return ""
    return (
        f"The training loss has label smoothing: {100 * number(share):g} % of the probability is "
        "spread over the vocabulary. The held-out loss has none."
    )


def figures(run: RunRecord) -> list[tuple[str, str, str | None]]:
    """BLEU and chrF on the held-out sentences, and how many pairs were learned from."""
    stage = complete(run)
    if stage is None:
        return []
    found = stage.part("translation")
    entries: list[tuple[str, str, str | None]] = [
        (f"{name}, held-out sentences", words.digits(found.get(key), 1), "own")
        for key, name in METRICS.items()
    ]
    learned = mapping(stage.part("ledger").get("pairs")).get("train")
    return [*entries, ("sentence pairs to learn from", words.short(learned), None)]


def example(found: Row) -> str:
    """A held-out sentence that one can type: the first that is short, else the shortest."""
    sources = [str(one.get("source") or "") for one in shown_pairs(found)]
    usable = [source for source in sources if source and source.isprintable()]
    short = [source for source in usable if len(source) <= TYPED]
    return (short or sorted(usable, key=len) or ["a sentence to translate"])[0]
