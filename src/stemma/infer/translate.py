"""Translating texts with an encoder-decoder, by beam search.

Sources are read as in training: their tokens and the end; a target begins with the token that
begins documents, or else with the end token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from stemma.core.config import StrictModel
from stemma.core.errors import ModelError, UsageError
from stemma.data.tokenizer import Tokenizer
from stemma.infer.beam import Hypothesis, beam_search

TOGETHER = 32  # sentences translated at once
# what the fields are called in generation_config.json. transformers' `length_penalty` is another
# formula, log probability / length^penalty: ours has a name of its own, and theirs is not read
RECOMMENDED = {
    "beams": "num_beams",
    "alpha": "length_penalty_alpha",
    "max_new_tokens": "max_new_tokens",
}


class BeamSearch(StrictModel):
    """How a source is translated."""

    beams: int = Field(default=4, ge=1, le=64, description="paths looked along; 1: greedy")
    alpha: float = Field(default=0.6, ge=0, description="exponent of the penalty on length")
    max_new_tokens: int = Field(default=128, ge=1, description="tokens of a translation, at most")


def recommendation(search: BeamSearch) -> dict[str, Any]:
    """Search settings as a model's `generation_config.json` has them.

    >>> recommendation(BeamSearch(beams=5, alpha=1.0))
    {'num_beams': 5, 'length_penalty_alpha': 1.0, 'max_new_tokens': 128}
    """
    return {name: getattr(search, key) for key, name in RECOMMENDED.items()}


def recommended(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `BeamSearch` that a model's generation settings say."""
    return {
        key: generation[name]
        for key, name in RECOMMENDED.items()
        if generation.get(name) is not None
    }


def ends_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens that begin and end a target. Raises ModelError where there is no end token."""
    end = tokenizer.eos_id
    if end is None:
        what = "a translator's tokenizer needs an end-of-text token"
        raise ModelError(what, fix="set eos_token in tokenizer_config.json")
    return end if tokenizer.bos_id is None else tokenizer.bos_id, end


def nothing(done: int) -> None:
    """Told how many texts are done, and does nothing."""


def translate(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    search: BeamSearch,
    *,
    update: Callable[[int], None] = nothing,
) -> list[str]:
    """The translations of texts in order; `update` is told how many are done.

    Raises UsageError for a text that is longer than the model's context, and ModelError where the
    model's scores are not numbers.
    """
    found = hypotheses(model, tokenizer, texts, search, update=update)
    return [tokenizer.decode(one.token_ids).strip() for one in found]


def hypotheses(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    search: BeamSearch,
    *,
    update: Callable[[int], None] = nothing,
) -> list[Hypothesis]:
    """The same as tokens, with their scores.

    Sources of like length go together, so that little is padded.
    """
    start, end = ends_of(tokenizer)
    sources = [[*tokenizer.encode(text), end] for text in texts]
    for text, source in zip(texts, sources, strict=True):
        if len(source) > model.config.context:
            what = f"{len(source)} tokens do not fit the model's context of {model.config.context}"
            raise UsageError(what, place=f"{text!r:.60}", fix="cut it into sentences")
    order = sorted(range(len(texts)), key=lambda place: -len(sources[place]))
    found: dict[int, Hypothesis] = {}
    for first in range(0, len(order), TOGETHER):
        places = order[first : first + TOGETHER]
        together = [sources[place] for place in places]
        best = beam_search(model, together, start_id=start, end_id=end, **search.model_dump())
        found |= dict(zip(places, best, strict=True))
        update(len(found))
    return [found[place] for place in range(len(texts))]
