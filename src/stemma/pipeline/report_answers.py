"""How models answer: what share of answers ends, the loss of held-out answers, and the answers.

Every model of an evaluation was asked the same questions, so what they wrote stands side by side:
columns where the screen is wide, one below the other where it is narrow.
"""

from collections import Counter

from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import Row, RunRecord, StageRecord, is_finite, mapping
from stemma.pipeline.report_markup import (
    Html,
    bar,
    element,
    folded,
    join,
    paragraphs,
    row,
    table,
)
from stemma.pipeline.report_results import ROW_CLASSES, card, prompt_words

SHOWN_QUESTIONS = 4  # the others open on a click
CLASSES = (None, "bars", "number")
ENDS = {"stop": "ended by itself", "length": "cut at the limit"}

Question = tuple[str, int]
"""A prompt, and how many equal ones came before it: beginnings that differ may end alike."""


def scores(run: RunRecord) -> Html:
    """Every evaluation's tables of how held-out first turns are answered."""
    found = [stage for stage in run.of_kind("evaluate") if stage.answers]
    several = len(run.of_kind("evaluate")) > 1
    titled = several or any(stage.scores for stage in run.of_kind("evaluate"))
    return join(
        join(
            [
                element("h3", f"{s.name}: answers" if several else "Answers") if titled else None,
                stop_table(run, s),
                loss_table(run, s),
            ]
        )
        for s in found
    )


def stop_table(run: RunRecord, stage: StageRecord) -> Html:
    """What share of its answers each model ended by itself, with bars up to all of them."""
    shares = [(r, words.stopped_share(r)) for r in stage.answers]
    rows = [stop_row(run, stage, score, share) for score, share in shares if share is not None]
    if not rows:
        return Html()
    limit = words.counted(stage.part("chat").get("max_new_tokens"), "token")
    return join(
        [
            element(
                "p",
                "What share of its answers a model ends by itself, and does not talk on until it "
                "is cut. The questions begin conversations that were kept from training.",
            ),
            table(
                ["model", "longer is better", "answers that end"],
                rows,
                classes=CLASSES,
                caption=f"Within {limit}. The whole width is all answers. Brackets: 95 % interval.",
                class_="scores",
            ),
        ]
    )


def stop_row(run: RunRecord, stage: StageRecord, score: Row, share: float) -> Html:
    """One model: name and temperature, bar, share with count and interval."""
    ends = score["interval"]
    span = f"{words.percent(ends[0])} – {words.percent(ends[1])}" if ends else None
    heat = score.get("temperature")
    cells = [
        model_cell(run, stage, score, f"temperature {heat:.3g}" if is_finite(heat) else ""),
        bar(share, ends, 1.0),
        join(
            [
                words.percent(share),
                element("small", words.stopped_words(score)),
                element("small", span) if span else None,
            ]
        ),
    ]
    return row(cells, classes=CLASSES, class_=ROW_CLASSES[run.role(stage, score)])


def loss_table(run: RunRecord, stage: StageRecord) -> Html:
    """The loss of held-out answers under each model, with bars that start at zero."""
    rows = [r for r in stage.answers if is_finite(r.get("answer_loss"))]
    if not rows:
        return Html()
    longest = max([1e-9, *(r["answer_loss"] for r in rows)])
    count = words.counted(stage.part("chat").get("conversations"), "conversation")
    return join(
        [
            element(
                "p",
                "How surprising the answers of people are to a model: its loss on the assistant's "
                "turns of held-out conversations. Less is better.",
            ),
            table(
                ["model", "shorter is better", "nats per token"],
                [loss_row(run, stage, score, longest) for score in rows],
                classes=CLASSES,
                caption=f"Scored on {count} held out.",
                class_="scores",
            ),
        ]
    )


def loss_row(run: RunRecord, stage: StageRecord, score: Row, longest: float) -> Html:
    """One model: name and how many tokens were scored, bar, loss."""
    loss, tokens = score["answer_loss"], score.get("answer_tokens")
    cells = [
        model_cell(run, stage, score, words.counted(tokens, "token")),
        bar(loss, None, longest),
        words.digits(loss),
    ]
    return row(cells, classes=CLASSES, class_=ROW_CLASSES[run.role(stage, score)])


def model_cell(run: RunRecord, stage: StageRecord, score: Row, note: str) -> Html:
    """A model's name with a note in small."""
    before = "before training" if run.role(stage, score) == "before" else ""
    notes = ", ".join(filter(None, [before, note]))
    return join([str(score.get("name")), element("small", notes) if notes else None])


def side_by_side(run: RunRecord) -> Html:
    """What each model answers to the same questions, evaluation by evaluation."""
    found = [stage for stage in run.of_kind("evaluate") if stage.answers]
    if not found:
        return element("p", words.waiting(run, "Answers", "evaluate"), class_="quiet")
    several = len(found) > 1
    return join(
        join([element("h3", s.name) if several else None, stage_answers(run, s, several)])
        for s in found
    )


def stage_answers(run: RunRecord, stage: StageRecord, several: bool) -> Html:
    """The answers of one evaluation, question by question."""
    asked: dict[Question, list[Html]] = {}
    for score in stage.answers:
        seen: Counter[str] = Counter()
        samples = score.get("samples")
        for sample in map(mapping, samples if isinstance(samples, list) else []):
            prompt = str(sample.get("prompt", ""))
            asked.setdefault((prompt, seen[prompt]), []).append(answer_card(stage, score, sample))
            seen[prompt] += 1
    if not asked:
        return element("p", "No answers were kept.", class_="quiet")
    blocks = [
        join(
            [
                element("h4" if several else "h3", prompt_words(prompt)),
                element("ul", *cards, class_="texts"),
            ]
        )
        for (prompt, _), cards in asked.items()
    ]
    rest = blocks[SHOWN_QUESTIONS:]
    said = (
        "The same questions, put to each model by its own template. They are the first that begin "
        "held-out conversations; nothing was chosen by hand."
    )
    return join(
        [
            paragraphs(said),
            *blocks[:SHOWN_QUESTIONS],
            folded(f"{words.counted(len(rest), 'more question')}", *rest) if rest else None,
        ]
    )


def answer_card(stage: StageRecord, score: Row, sample: Row) -> Html:
    """One model's answer, and whether it ended."""
    ended = str(sample.get("ended", ""))
    how = ENDS.get(ended, ended)
    name = element("b", str(score.get("name")))
    head = join([name, element("small", how) if how else None])
    return card(head, str(sample.get("text", "")))
