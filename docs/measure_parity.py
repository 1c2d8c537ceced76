"""Measures how equal our networks are to their oracles, and writes docs/parity.md.

    python docs/measure_parity.py                      measure every case and write the page
    python docs/measure_parity.py --random 20 --seed 7 [--family llama]
                                                       measure networks drawn at random; no page

The cases are those of the tests (`tests/models/oracles`, `oracles_encdec` and `parity_own.py`), and
so is what measures them: the page and the tests cannot disagree. Needs the extra `test`.
"""

import argparse
import importlib.metadata
import math
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests are found from here whatever the folder

import torch  # noqa: E402

from docs.generate import code, defined_cases, table  # noqa: E402
from stemma import api  # noqa: E402
from tests.models import parity, parity_encdec, parity_own, parity_random  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
NOTE = "<!-- Written by docs/measure_parity.py: run `make parity`. -->"
LIMIT = parity.LIMIT
COLUMNS = (
    "logits",
    "gradients",
    "cached",
    "row alone",
    "padded left",
    "padded right",
    "ragged",
    "round trip",
)
TELLING = {
    "logits": "three rows of random tokens against the oracle; BERT: the outputs of all its heads",
    "gradients": "of a random sum over the logits against the oracle's, for every parameter: the "
    "worst one, named",
    "cached": "decoding with a cache, at once, token by token and in uneven pieces, against one "
    "full pass: the worst",
    "row alone": "each row alone against the batch",
    "padded left": "rows of different lengths in one batch, padded on the left, against the oracle",
    "padded right": "the same, padded on the right",
    "ragged": "prompts of different lengths, padded on either side, and tokens after them with a "
    "cache, against each row alone: the worse",
    "round trip": "a folder written by us and opened by the oracle's library, or by us where no "
    "library has the family: every tensor must be as it was; the logits are measured",
}

# what is ours on purpose: a module that holds it, what differs, and why
DEVIATIONS = (
    (
        "`nn.moe`",
        "The balance loss is taken for one layer and divides by the choices of a token; "
        "transformers pools the layers of Mixtral and does not divide.",
        "Two uneven layers may cancel in a pool. Both weights are in the config; logits are equal.",
    ),
    (
        "`nn.moe`",
        "With a cache no capacity holds, so decoding drops no token; where one binds, decoding "
        "differs from a pass without a cache. Switch's column `cached` compares with a pass that "
        "has a cache too.",
        "Otherwise the answer would depend on how the text is cut into passes.",
    ),
    (
        "`nn.moe`",
        "Padding takes no place at an expert and counts in no loss, whatever "
        "`router_ignore_padding_tokens` says.",
        "A row answers in a batch as it does alone.",
    ),
    (
        "`nn.router`",
        "With one expert a token Mixtral's router gets no gradient but that of the balance loss; "
        "transformers leaves rounding there.",
        "The one weight is always 1, so its gradient is zero.",
    ),
    (
        "`interop.mixtral`",
        "`router_jitter_noise` of a file is not used, and said so in the log.",
        "transformers disturbs what the experts read as well; it changes training alone.",
    ),
    (
        "`nn.attention`",
        "A query that sees no key gives zeros; transformers gives the mean of all values, or NaN.",
        "Only padding sees nothing, and no number of it may reach a real token.",
    ),
    (
        "`nn.rope_scaling`",
        "Dynamic NTK: each row of a batch has the factor of its own length; transformers takes "
        "the longest of the batch, and keeps the factor of texts that it has read before.",
        "A row answers in a batch as it does alone, and a model as it does afresh.",
    ),
    (
        "`nn.rope_scaling`",
        "Angles that grow with the text: keys are kept as they are and turn when they are read.",
        "All keys that a token sees have the angles of one length. Beyond the trained context a "
        "text read at once and one read in parts still differ, as in every implementation.",
    ),
    (
        "`nn.rope_scaling`",
        "NTK with one factor is written to a folder as the larger base that it is.",
        "No library has a word for it; the angles are equal.",
    ),
    (
        "`nn.embedding`",
        "Sines of absolute positions are computed in double precision, then rounded once; "
        "transformers keeps a table in single precision.",
        "Far positions are exact. It is the largest part of the transformer's gradient errors.",
    ),
    (
        "`nn.feature_map`",
        "The Performer's random directions are drawn once, from the config's seed and the layer; "
        "the paper may draw them again while training.",
        "A model is its config and its weights: nothing random is left out of a file.",
    ),
    (
        "`nn.cells`",
        "GRUs reset the finished product, as torch does; only Bahdanau's network has the cell of "
        "arXiv:1406.1078.",
        "One product serves all gates; the first cell is kept where its paper needs it.",
    ),
    (
        "`nn.cells`",
        "The bias of an LSTM's forget gate begins at one, not at zero.",
        "What was carried is kept from the first step on; a trained network is the same.",
    ),
    (
        "`models.seq2seq`",
        "With GRU cells the source's summary is where the decoder begins, and no input of every "
        "step, as arXiv:1406.1078 has it.",
        "One class serves both papers' idea of a translation through one state.",
    ),
    (
        "`nn.seq2seq`",
        "Bahdanau's output reads the state after the step, as equation 4 of arXiv:1409.0473 has "
        "it; appendix A.2.2 writes the state before.",
        "The two contradict each other; the equation is in the paper's main part.",
    ),
    (
        "`models.qwen`",
        "Scores of texts beyond the trained context are not sharpened (`use_logn_attn`); the log "
        "says so.",
        "Within the context the factor is one; beyond it the answers of Qwen 1 differ.",
    ),
    (
        "`models.baichuan`",
        "Baichuan 2's loss on the largest logit is not computed.",
        "It is part of its makers' training alone.",
    ),
    (
        "`interop.baichuan`",
        "Which positions and which head a folder has is told from `max_position_embeddings`, "
        "`z_loss_weight` and the vocabulary of 125696.",
        "It stands in code that lies with the model, and such code is never run.",
    ),
    (
        "`interop.chatglm`",
        "A `rope_ratio` other than 1 is refused.",
        "It multiplies the base in ChatGLM3's code and divides positions in ChatGLM2's, and "
        "nothing in the file says which. Hugging Face's form of the model is read.",
    ),
    (
        "`interop.gpt3`",
        "A GPT-3 with scaled scores, biases of query, key and value, or several band widths is "
        "written in our own form.",
        "The one GPT-3 of transformers is GPT-Neo, which has none of them.",
    ),
    (
        "`models.gemma3`",
        "The factor sqrt(width) on the embedding is not rounded; transformers rounds it to the "
        "precision of the weights.",
        "It matters in half precision alone, where ours is nearer to single precision.",
    ),
    (
        "`interop.gemma3`",
        "YaRN whose ramp ends between two pairs (`truncate` false) is refused in a file, and "
        "written in our own form.",
        "transformers does not read the key in the objects that Gemma 3 has.",
    ),
    (
        "`interop.transformer`",
        "A Transformer with sines and cosines side by side, with norms before the sublayers or "
        "in two streams, or with another epsilon, is written in our own form.",
        "Marian puts all sines first and norms after the sublayers.",
    ),
    (
        "`interop.switch`",
        "A Switch whose capacity is a share of the load, or has no limit, is written in our own "
        "form.",
        "transformers counts a capacity in tokens.",
    ),
    (
        "`interop.t5`",
        "Whether the head scales by 1 / sqrt(width) and whether it is tied are two facts; a head "
        "that lies in the file beside a config that calls it tied is its own.",
        "transformers 5 calls every head tied; T5 1.1 has one of its own that does not scale.",
    ),
    (
        "`models.neox`",
        "A share of a head that gives an odd number of features to rotate is refused.",
        "Features rotate in pairs; transformers rotates one feature more than the share says.",
    ),
    (
        "all tables",
        "One rate of dropout holds wherever training drops; where a file has several, the log "
        "says which one counts.",
        "It changes training alone, and a file's rates are nearly always the same.",
    ),
    (
        "all tables",
        "A setting of a `config.json` that would change the equation and that nothing here "
        "computes is refused by name.",
        "A network that is nearly right is worse than none.",
    ),
)


@dataclass(frozen=True)
class Figures:
    """What was measured of one network: errors by column, and the gradient that is worst."""

    errors: dict[str, float]
    worst: str

    @property
    def largest(self) -> float:
        """The largest error; what is no number is larger than any."""
        return max(math.inf if math.isnan(error) else error for error in self.errors.values())


class Measure(NamedTuple):
    """How a kind of network is measured: all but its folder, and its folder."""

    inside: Callable[[Any], Figures]
    round_trip: Callable[[Any, Path], float]

    def __call__(self, pair: Any) -> Figures:
        found = self.inside(pair)
        folder = Path(tempfile.mkdtemp())
        return Figures({**found.errors, "round trip": self.round_trip(pair, folder)}, found.worst)


def measure_decoder(pair: Any, *, floor: float = 0.0) -> Figures:
    """A network that continues a text, against a class of transformers."""
    gradients = parity.gradient_errors(pair, floor=floor)
    return figures(
        gradients,
        {
            "logits": parity.logits_error(pair),
            **laws(parity, pair),
            "row alone": parity.single_error(pair),
        },
    )


def measure_pair(pair: Any) -> Figures:
    """A network that reads a source and writes a target, against a class of transformers."""
    gradients = parity_encdec.gradient_errors(pair)
    return figures(
        gradients,
        {
            "logits": parity_encdec.logits_error(pair),
            **laws(parity_encdec, pair),
            "row alone": pair_alone_error(pair),
        },
    )


def measure_encoder(pair: Any) -> Figures:
    """BERT: a network without a state between tokens, so nothing is cached."""
    gradients = parity_encdec.heads_gradient_errors(pair)
    errors = {"logits": parity_encdec.heads_error(pair)}
    for side in parity_encdec.SIDES:
        errors[f"padded {side}"] = parity_encdec.heads_padded_error(pair, side)
    errors["row alone"] = heads_alone_error(pair)
    return figures(gradients, errors)


def measure_own(pair: Any) -> Figures:
    """A family of ours alone, against layers of torch or equations."""
    translates = pair.config.family in parity_own.PAIRS
    return figures(
        parity_own.gradient_errors(pair),
        {
            "logits": parity_own.logits_error(pair),
            **laws(parity_own.laws(pair), pair),
            "row alone": pair_alone_error(pair) if translates else parity.single_error(pair),
        },
    )


def figures(gradients: dict[str, float], errors: dict[str, float]) -> Figures:
    worst = max(gradients, key=lambda name: gradients[name])
    return Figures({**errors, "gradients": gradients[worst]}, worst)


def laws(module: Any, pair: Any) -> dict[str, float]:
    """What caches and padding may not change."""
    sides = ("left", "right")
    return {
        "cached": max(module.cached_error(pair, chunks) for chunks in module.CHUNKS),
        **{f"padded {side}": module.padded_error(pair, side) for side in sides},
        "ragged": max(module.ragged_error(pair, side) for side in sides),
    }


@torch.no_grad()
def pair_alone_error(pair: Any) -> float:
    """Each pair of texts alone against the batch."""
    source_BS, target_BT = parity_encdec.draw_source(pair), parity_encdec.draw_target(pair)
    rows = zip(source_BS, target_BT, strict=True)
    alone = torch.cat([pair.ours(source[None], target[None]) for source, target in rows])
    return parity.relative_error(alone, pair.ours(source_BS, target_BT))


@torch.no_grad()
def heads_alone_error(pair: Any) -> float:
    """Each text alone against the batch, for every head."""
    tokens_BT, segments_BT = parity_encdec.draw_pair(pair)
    whole = heads(pair, tokens_BT, segments_BT)
    rows = [slice(row, row + 1) for row in range(len(tokens_BT))]
    parts = [heads(pair, tokens_BT[row], segments_BT[row]) for row in rows]
    return max(
        parity_encdec.close(torch.cat([part[name] for part in parts]), expected)
        for name, expected in whole.items()
    )


def heads(pair: Any, tokens_BT: torch.Tensor, segments_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    context = parity_encdec.Context(segments_BT=segments_BT)
    found: dict[str, torch.Tensor] = parity_encdec.heads(pair, tokens_BT, context)
    return found


DECODER = Measure(measure_decoder, parity.round_trip_error)
PAIR = Measure(measure_pair, parity_encdec.round_trip_error)
ENCODER = Measure(measure_encoder, parity_encdec.heads_round_trip_error)
OWN = Measure(measure_own, parity_own.round_trip_error)
# a drawn network may be so narrow, or see so little, that some gradients are only rounding
DRAWN = Measure(partial(measure_decoder, floor=1e-3), parity.round_trip_error)


# The page


@dataclass(frozen=True)
class Row:
    """One case with its oracle and what was measured."""

    case: str
    oracle: str
    figures: Figures

    @property
    def family(self) -> str:
        return self.case.split()[0]


def measure_of(case: str) -> tuple[Any, Measure]:
    """The networks of a case, and what measures them."""
    if case in parity_own.CASES:
        return parity_own.pair_of(case), OWN
    if case in parity.cases():
        return parity.pair_of(case), DECODER
    reads = api.does(case.split()[0]) == "read"
    return parity_encdec.pair_of(case), ENCODER if reads else PAIR


def oracle_of(pair: Any) -> str:
    """How the other side is called on the page."""
    if isinstance(pair.theirs, parity_own.Oracle):
        return str(pair.theirs.named)
    kind = type(pair.theirs)
    if kind.__module__.startswith("transformers."):
        return code(f"transformers.{kind.__name__}")
    parts = {"baichuan": "LlamaForCausalLM and BLOOM's biases", "qwen": "Qwen2ForCausalLM"}
    return f"`{kind.__name__}` made of transformers' {parts[pair.ours.config.family]}"


def measured(case: str) -> Row:
    pair, measure = measure_of(case)
    return Row(case, oracle_of(pair), measure(pair))


def written(rows: Sequence[Row]) -> str:
    """The whole page."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    parts = [
        "# Parity",
        NOTE,
        "How equal every family is to an independent implementation of it, and to itself when it "
        "decodes with a cache or reads a padded batch. `make parity` measures this page again; "
        "`make test` measures the same and fails above the limit.",
        f"Python {platform.python_version()}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, on a CPU. Classes of transformers are compared in single "
        "precision, gradients of encoder-decoders and of BERT in double; families that no other "
        "library has are compared in double precision throughout.",
        "All weights are drawn wide (norms 1 ± 0.3, biases N(0, 0.3), matrices so that the logits "
        "deviate by one or more), since small ones would hide mistakes. An error is the largest "
        "difference over the largest logit, for gradients the norm of the difference over the "
        f"norm. The limit is {LIMIT:.0e}. Another machine may give other last digits.",
        table(("column", "what is compared"), TELLING.items()),
        "## Families",
        summary(rows),
        *sections(rows),
        "## Deviations on purpose",
        "Where ours differs from a paper or from another implementation, and why.",
        table(("where", "what differs", "why"), DEVIATIONS),
    ]
    return "\n\n".join(parts) + "\n"


def summary(rows: Sequence[Row]) -> str:
    lines = []
    for family in api.families():
        its = [row for row in rows if row.family == family]
        worst = max(its, key=lambda row: row.figures.largest)
        place = max(worst.figures.errors, key=lambda name: worst.figures.errors[name])
        error = f"{number(worst.figures.largest)} ({place}, {worst.case})"
        lines.append((family, len(its), error, verdict(worst.figures)))
    return table(("family", "cases", "largest error", "verdict"), lines)


def sections(rows: Sequence[Row]) -> Iterable[str]:
    """Each family's cases."""
    for family in api.families():
        its = [row for row in rows if row.family == family]
        lines = [(row.case, row.oracle, *cells(row.figures), verdict(row.figures)) for row in its]
        yield f"### {family}"
        yield table(("case", "compared with", *COLUMNS, "verdict"), lines)


def cells(found: Figures) -> Iterable[str]:
    for column in COLUMNS:
        if column not in found.errors:
            yield "–"
        elif column == "gradients":
            yield f"{number(found.errors[column])} ({code(found.worst)})"
        else:
            yield number(found.errors[column])


def number(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}"


def verdict(found: Figures) -> str:
    return "equal" if found.largest <= LIMIT else "**beyond the limit**"


# Networks drawn at random


def measure_random(family: str, count: int, seed: int) -> None:
    """Draw networks of a family, and print the worst error of every column.

    What is beyond the limit is measured again in double precision: weights as wide as these may
    magnify a rounding a thousandfold, but never a rounding of 1e-16 to an error.
    """
    worst: dict[str, tuple[float, str]] = {}
    for index in range(count):
        told = f"{family}:{seed}:{index}"
        theirs = parity_random.DRAWS[family](random.Random(told))
        try:
            pair, measure = drawn(family, theirs)
            found = measure(pair)
            if found.largest > LIMIT:
                with parity_random.unrounded():
                    exact = measure.inside(parity_random.in_double(pair))
                what = f"{found.largest:.1e} in single precision, {exact.largest:.1e} in double"
                say(f"{told}: {what}\n    {short(theirs)}")
                found = Figures({**found.errors, **exact.errors}, exact.worst)
        except Exception as error:  # whatever it is, it is what we look for
            say(f"{told} {type(error).__name__}: {error}\n    {short(theirs)}")
            continue
        for column, value in found.errors.items():
            worst[column] = max(worst.get(column, (0.0, "")), (value, told))
    said = ", ".join(
        f"{column} {number(value)}" + (f" ({told})" if value > LIMIT / 10 else "")
        for column, (value, told) in worst.items()
    )
    say(f"{family}: {said}")


def drawn(family: str, theirs: Any) -> tuple[Any, Measure]:
    """An oracle that was drawn, with weights so wide that its logits speak up, and ours."""
    if family not in parity_random.PAIRED:
        theirs = parity.scatter(theirs)
        parity_random.raise_voice(theirs, deviation(theirs, paired=False))
        return parity.pair_with(theirs), DRAWN
    folder, theirs = Path(tempfile.mkdtemp()), parity_encdec.scatter(theirs)
    reads = api.does(family) == "read"
    if not reads:
        parity_random.raise_voice(theirs, deviation(theirs, paired=True))
    theirs.save_pretrained(folder)
    pair = parity_encdec.Pair(parity.stemma.load(folder)[0], theirs, folder)
    return pair, ENCODER if reads else PAIR


@torch.no_grad()
def deviation(theirs: Any, *, paired: bool) -> float:
    """How far the logits of an oracle deviate, on tokens as they are drawn for the measures."""
    config, generator = theirs.config, torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, config.vocab_size, (3, 13), generator=generator)
    given = {"decoder_input_ids": tokens_BT % theirs.get_output_embeddings().out_features}
    return float(theirs(tokens_BT, **(given if paired else {})).logits.std())


def short(theirs: Any) -> str:
    """What was drawn, as the oracle's config differs from its class's defaults."""
    return str(theirs.config.to_diff_dict())


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def measure_page() -> int:
    """Measure every case and write the page; 1 where an error is beyond the limit."""
    rows, start = [], time.monotonic()
    for case in defined_cases():
        rows.append(measured(case))
        error = rows[-1].figures.largest
        say(f"{time.monotonic() - start:5.0f} s  {case}: {number(error)}")
    PAGE.write_text(written(rows), "utf-8")
    return 0 if all(row.figures.largest <= LIMIT for row in rows) else 1


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description="measure how equal our networks are to others")
    parser.add_argument("--random", type=int, help="draw so many networks of each family")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--family", action="append", help="only this family; may be repeated")
    chosen = parser.parse_args(arguments)
    parity.transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        if chosen.random is None:
            return measure_page()
        for family in chosen.family or sorted(parity_random.DRAWS):
            measure_random(family, chosen.random, chosen.seed)
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
