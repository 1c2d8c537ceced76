"""One self-contained page about a run: what was made, how good it is, and how to repeat it.

`report.html` needs no network, no script and no other file. It is computed from the files of the
run folder alone, at any moment of the run: stages that have not run are shown as such. Pictures
need matplotlib; without it the page has every number and one line that says how to get pictures.
Nothing from the run reaches the page unescaped (`report_markup`), and a content policy in the
page's head forbids scripts and requests in any case.
"""

import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from stemma.core.files import write_text
from stemma.pipeline import (
    report_answers,
    report_conversations,
    report_encoders,
    report_ledger,
    report_lineage,
    report_lineage_words,
    report_results,
    report_translations,
)
from stemma.pipeline import report_facts as facts
from stemma.pipeline import report_words as words
from stemma.pipeline.report_facts import TRAINING_KINDS, RunRecord, StageRecord
from stemma.pipeline.report_markup import (
    Html,
    element,
    folded,
    join,
    pairs,
    paragraphs,
    row,
    table,
)

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
SHOWN_FILES = 400
SHOWN_RECIPE = 60_000  # characters
SAMPLING = ", max_new_tokens=100, seed=0"  # settings in an example


def write_report(run_folder: Path) -> Path:
    """Write `report.html` of a run folder and return its path.

    Raises UsageError where the folder is no run's, DataError where one of its files is damaged.
    """
    run = facts.read_run(Path(run_folder))
    path = run.folder / "report.html"
    write_text(path, page(run))
    return path


def page(run: RunRecord) -> str:
    """The whole page."""
    sections = contents(run)
    style = (resources.files("stemma.pipeline") / "report.css").read_text("utf-8")
    head = element(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", f"{run.name}: run report"),
        element("style", Html(style)),
    )
    body = (
        element("section", element("h2", title), content, id=key)
        for key, title, content in sections
    )
    links = (element("a", title, href=f"#{key}") for key, title, _ in sections)
    version = facts.mapping(run.about.get("versions")).get("stemma")
    footer = element("p", f"Written by stemma {version or ''}".strip() + ".", class_="quiet")
    main = element("main", header(run, links), *body, element("footer", footer))
    document = element("html", head, element("body", main), lang="en")
    return f"<!doctype html>\n{document}\n"


def contents(run: RunRecord) -> list[tuple[str, str, Html]]:
    """Key, title and content of every section, in their order."""
    talks = bool(run.of_kind("sft")) or any(s.answers for s in run.of_kind("evaluate"))
    answers = [("answers", "Answers side by side", report_answers.side_by_side(run))]
    last = run.last(*TRAINING_KINDS)
    reads = last is not None and last.kind in report_encoders.KINDS
    translates = last is not None and last.kind == report_translations.KIND
    using = "Talk with the model" if talks else "Write with the model"
    using = "Translate with the model" if translates else using
    translated = [("translations", "Translations", report_translations.translations(run))]
    compares, alone = bool(run.of_kind("lineage")), compares_only(run)
    learned = [
        ("curves", "Learning curves", report_results.curves(run)),
        ("samples", "Samples along training", report_results.samples(run)),
    ]
    return [
        *([("lineage", "Lineage", report_lineage.section(run))] if compares else []),
        *([] if alone else [("scores", "Scores", scores(run))]),
        *(answers if talks else []),
        *(translated if run.of_kind(report_translations.KIND) else []),
        *([] if alone else learned),
        ("ledger", "Ledger", ledger(run)),
        ("stages", "Stages", stages(run)),
        *([] if alone else [("use", "Use the model" if reads else using, use(run))]),
        ("repeat", "Repeat the run", repeat(run)),
        ("machine", "Machine and versions", machine(run)),
        ("files", "Files and recipe", files(run)),
    ]


def compares_only(run: RunRecord) -> bool:
    """Whether the run compares networks and keeps none: there is no model to score or to use."""
    return bool(run.of_kind("lineage")) and not run.of_kind(*TRAINING_KINDS, "evaluate")


def header(run: RunRecord, links: Any) -> Html:
    """Name, the summary in a few sentences, the main figures, and the contents."""
    unfinished = words.progress_words(run)
    said = (
        words.made_words(run),
        report_lineage.lead(run),
        report_translations.made_words(run),
        report_translations.score_words(run),
        " ".join(report_encoders.made_words(run)),
        report_encoders.score_words(run),
        words.score_words(run),
        words.answer_words(run),
        words.cost_words(run),
    )
    return element(
        "header",
        element("p", "Run report", class_="over"),
        element("h1", run.name),
        element("p", unfinished, class_="state") if unfinished else None,
        element("div", paragraphs(*map(words.unbroken, said)), class_="lead"),
        element("dl", *main_figures(run), class_="figures"),
        element("nav", *links, aria_label="Contents"),
    )


Figure: TypeAlias = tuple[str, str, str | None]
"""What a number is, the number, and the class of its box."""


def main_figures(run: RunRecord) -> list[Html]:
    """The few numbers that a reader looks for first; those not there yet are left out."""
    entries = [*answer_figures(run), *score_figures(run), *encoder_figures(run)]
    entries += report_translations.figures(run) + report_lineage.figures(run)
    entries += training_figures(run)
    if run.stages:
        entries += [
            ("all stages together", words.duration(run.seconds), None),
            ("most memory at once", words.size(run.peak_memory), None),
        ]
    return [
        element("div", element("dt", term), element("dd", value), class_=kind)
        for term, value, kind in entries
    ]


def answer_figures(run: RunRecord) -> list[Figure]:
    """How the model answers: the share that ends, and the loss of held-out answers."""
    stage, tuned = run.answered, run.last("sft")
    if stage is not None:
        score = words.answering(run, stage)
        share, loss = words.stopped_share(score), score.get("answer_loss")
    else:
        share, loss = None, tuned.part("heldout_loss").get("after") if tuned else None
    entries: list[Figure] = []
    if share is not None:
        entries.append(("of its answers end by themselves", words.percent(share), "own"))
    if facts.is_finite(loss):
        entries.append(("nats per token, held-out answers", words.digits(loss), "own"))
    return entries


def score_figures(run: RunRecord) -> list[Figure]:
    """Bits per byte of the model and of the best baseline."""
    stage = run.scored
    found = words.standing(run, stage) if stage else None
    if stage is None or found is None:
        return []
    name = words.model_name(run, stage, found.model)
    of = "" if name == "it" else f", {name}"
    value = words.digits(found.model["bits_per_byte"])
    entries: list[Figure] = [(f"bits per byte, held-out text{of}", value, "own")]
    if found.baseline:
        bar = words.digits(found.baseline["bits_per_byte"])
        entries.append((f"best baseline, {found.baseline['name']}", bar, None))
    return entries


def encoder_figures(run: RunRecord) -> list[Figure]:
    """The share of held-out texts that are labelled right, and of hidden tokens foretold."""
    shares = {"classify": "of held-out texts labelled right", "masked": "of hidden tokens foretold"}
    entries: list[Figure] = []
    for kind, said in shares.items():
        stage = run.last(kind)
        found = stage.part("heldout") if stage else {}
        found = facts.mapping(found.get("model")) if kind == "masked" else found
        if facts.is_finite(found.get("accuracy")):
            entries.append((said, words.percent(found["accuracy"]), "own"))
    return entries


def training_figures(run: RunRecord) -> list[Figure]:
    """Size of the model, and how much it was trained on."""
    base, tuned, last = run.last("pretrain"), run.last("sft"), run.last(*TRAINING_KINDS)
    entries: list[Figure] = []
    if last:
        entries.append(("parameters", words.short(last.summary.get("parameters")), None))
    if base:
        entries.append(("tokens trained on", words.short(base.summary.get("tokens")), None))
    if tuned:
        count = tuned.part("conversations").get("train")
        entries.append(("conversations tuned on", words.short(count), None))
    return entries


def scores(run: RunRecord) -> Html:
    """Scores on documents and on conversations, whichever there are."""
    kinds = (report_results, report_answers, report_translations, report_encoders)
    found = [kind.scores(run) for kind in kinds]
    if any(found):
        return join(found)
    return element("p", words.waiting(run, "Scores", "evaluate"), class_="quiet")


def ledger(run: RunRecord) -> Html:
    """Where documents, conversations and tokens went, and whether the accounts balance."""
    parts = report_ledger.document_ledgers(run) + report_conversations.conversation_ledgers(run)
    parts += report_translations.ledgers(run) + report_encoders.ledgers(run)
    if not parts:
        kinds = ("curate", *TRAINING_KINDS)
        return element("p", words.waiting(run, "Ledger", *kinds), class_="quiet")
    intro = "Everything that was read and every token that was stored, accounted for."
    told = compares_only(run) or run.last(*TRAINING_KINDS)
    missing = None if told else words.waiting(run, "Tokens", *TRAINING_KINDS)
    return join([element("p", intro), *parts, paragraphs(missing, class_="quiet")])


def stages(run: RunRecord) -> Html:
    """Every stage of the recipe with its cost."""
    classes = (None, None, "number", "number", "what", "mono")
    rows = []
    for name in run.order:
        stage = run.stages.get(name)
        if stage is None:
            rows.append(row([name, "not run yet", *[""] * 4], classes=classes, class_="waiting"))
            continue
        cells = [
            name,
            stage.status,
            words.duration(stage.seconds),
            words.size(stage.peak_memory),
            result_words(run, stage),
            str(stage.record.get("fingerprint", ""))[:12],
        ]
        rows.append(row(cells, classes=classes))
    total = ["together", "", words.duration(run.seconds), words.size(run.peak_memory), "", ""]
    return table(
        ["stage", "state", "time", "peak memory", "result", "fingerprint"],
        [*rows, row(total, classes=classes, class_="total")],
        classes=(None, None, "number", "number"),
        caption="Stages in their order",
    )


def result_words(run: RunRecord, stage: StageRecord) -> str:
    """What a stage brought, in a few words."""
    if stage.kind in report_encoders.KINDS and stage.summary:
        return report_encoders.result_words(stage)
    if stage.kind == report_translations.KIND and stage.summary:
        return report_translations.result_words(stage)
    if stage.kind == "lineage":
        return report_lineage_words.result_words(stage)
    return words.result_words(run, stage)


def use(run: RunRecord) -> Html:
    """How to talk or write with the model, at the command line and in Python."""
    last = run.last(*TRAINING_KINDS)
    if last is None:
        return element("p", words.waiting(run, "A model", *TRAINING_KINDS), class_="quiet")
    place, prompt = shown_place(run.folder), example_prompt(last)
    if last.kind in report_encoders.KINDS:
        return code(report_encoders.use(f"{place}/{last.name}", last.kind))
    if last.kind == report_translations.KIND:  # searches as its recipe says
        return write_with(place, report_translations.example(last.part("translation")), "")
    if last.kind != "sft":
        return write_with(place, prompt)
    base = run.last("pretrain")
    quoted = json.dumps(prompt, ensure_ascii=False)  # Python reads it too
    return join(
        [
            code(f"stemma chat {shlex.quote(place)}"),
            element("p", "One answer in Python:"),
            code(python(place, f'[{{"role": "user", "content": {quoted}}}]')),
            *(
                [
                    element("p", f"The stage {base.name} still continues texts:"),
                    code(generate_command(f"{place}/{base.name}", example_prompt(base))),
                ]
                if base
                else []
            ),
        ]
    )


def write_with(place: str, prompt: str, settings: str = SAMPLING) -> Html:
    """How to let a model continue a text, or translate one."""
    return join(
        [
            code(generate_command(place, prompt)),
            element("p", "The same in Python:"),
            code(python(place, repr(prompt), settings)),
        ]
    )


def generate_command(place: str, prompt: str) -> str:
    """The command that continues a prompt."""
    return f"stemma generate {shlex.quote(place)} --prompt {shlex.quote(prompt)}"


def python(place: str, asked: str, settings: str = SAMPLING) -> str:
    """Lines of Python that load the model and print what it writes; `asked` is an expression."""
    return (
        "import stemma\n\n"
        f"model, tokenizer = stemma.load({place!r})\n"
        f"print(stemma.generate(model, tokenizer, {asked}{settings}))"
    )


def repeat(run: RunRecord) -> Html:
    """The exact commands that made the run."""
    given = [run.about.get("command")]
    for stage in run.stages.values():
        found = stage.record.get("commands")
        given += found if isinstance(found, list) else []
    commands = list(dict.fromkeys(str(command) for command in given if command))
    said = (
        f"Seed {run.about.get('seed')}. On another machine or with other versions, numbers may "
        "differ in their last digits."
    )
    return join(
        [
            code("\n".join(commands)) if commands else None,
            *(element("p", change) for change in changes_of_data(run)),
            element("p", said, class_="quiet"),
        ]
    )


def changes_of_data(run: RunRecord) -> list[str]:
    """What the commands alone do not tell: where training went on with other data."""
    found = []
    for stage in run.stages.values():
        resets = stage.record.get("data_resets")
        steps = [str(one.get("step")) for one in resets or [] if isinstance(one, dict)]
        if steps:
            where = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps)}"
            found.append(
                f"The stage {stage.name} went on with other data from {where} (--reset-data): "
                "its model comes from more than what the commands name last."
            )
    return found


def code(text: str) -> Html:
    """Lines to type."""
    return element("pre", element("code", text), tabindex="0")


def shown_place(folder: Path) -> str:
    """The run folder as one would type it from here."""
    folder = folder.resolve()
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def example_prompt(stage: StageRecord) -> str:
    """The first prompt of the stage's samples that fits on a line, else one of our own."""
    prompts = [sample.get("prompt") for sample in stage.samples]
    fitting = [p for p in prompts if isinstance(p, str) and 0 < len(p) <= 60 and p.isprintable()]
    own = "Hello, who are you?" if stage.kind == "sft" else "Once upon a time"
    return fitting[0] if fitting else own


MACHINE_ROWS = {
    "platform": "platform",
    "processor": "processor",
    "cores": "cores",
    "threads": "threads",
    "memory_bytes": "memory",
    "accelerator": "accelerator",
    "mkl_cbwr": "MKL_CBWR",
}


def machine(run: RunRecord) -> Html:
    """Where the run was made and with what."""
    found = facts.mapping(run.about.get("machine"))
    versions = facts.mapping(run.about.get("versions"))
    about = [
        (name, words.size(found[key]) if key == "memory_bytes" else str(found[key]))
        for key, name in MACHINE_ROWS.items()
        if found.get(key)
    ]
    lists = [pairs(about), pairs((str(name), str(v)) for name, v in versions.items())]
    return element("div", *lists, class_="columns")


def files(run: RunRecord) -> Html:
    """Hashes of what the stages wrote, and the recipe as it was run."""
    rows = [
        row(
            [f"{stage.name}/{path}", words.size(about.get("bytes")), str(about.get("sha256"))],
            classes=(None, "number", "mono"),
        )
        for stage in run.stages.values()
        for path, about in facts.mapping(stage.record.get("outputs")).items()
        if isinstance(about, dict)
    ]
    cut = element("p", f"{len(rows) - SHOWN_FILES} more files are listed in stage.json.")
    listed = table(
        ["file", "size", "sha256"],
        rows[:SHOWN_FILES],
        classes=(None, "number", None),
        caption="Files of the run",
    )
    recipe = (
        code(words.shortened(run.recipe, SHOWN_RECIPE))
        if run.recipe
        else element("p", "No recipe.")
    )
    return join(
        [
            folded(
                f"Sizes and hashes of {words.counted(len(rows), 'file')}",
                listed,
                cut if len(rows) > SHOWN_FILES else None,
            ),
            folded("The recipe as it was run", recipe),
        ]
    )
