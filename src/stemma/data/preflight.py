"""Conversations on their way into training, with a look at each before any step is taken.

What goes wrong in fine-tuning goes wrong silently: an answer cut before its end, a turn whose end
is never trained so that the model talks on for ever, a sample in which nothing counts. Here every
conversation is rendered once, fitted into the context, and counted.

A conversation that is too long ends after the last whole answer that fits: an answer without its
end is never trained. One whose first answer does not fit is left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stemma.core.errors import DataError
from stemma.data.conversations import Example
from stemma.data.flaws import Flaw
from stemma.data.renderer import Renderer, Sample
from stemma.data.store import Row


@dataclass
class Preflight:
    """What became of the conversations. Tokens: rendered = trained + masked + cropped."""

    conversations: int = 0
    samples: int = 0
    rendered: int = 0
    trained: int = 0
    masked: int = 0
    cropped: int = 0
    shortened: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    doubled_bos: int = 0
    untrained_end: int = 0
    unrolled: int = 0
    seams: int = 0
    end_ids: set[int] = field(default_factory=set)

    def balanced(self) -> bool:
        """Whether every rendered token is trained on, masked or cropped."""
        return self.rendered == self.trained + self.masked + self.cropped

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object."""
        plain = {key: value for key, value in vars(self).items() if isinstance(value, int)}
        return plain | {
            "dropped": dict(sorted(self.dropped.items())),
            "end_ids": sorted(self.end_ids),
            "balanced": self.balanced(),
        }

    def words(self) -> list[str]:
        """What a person should know before the training, a sentence each."""
        said = [
            f"{self.samples} samples: {self.trained} tokens trained, {self.masked} masked, "
            f"{self.cropped} cropped"
        ]
        notes = {
            "cut after their last whole answer that fits the context": self.shortened,
            "with two tokens that begin a text": self.doubled_bos,
            "with an answer whose end is not trained": self.untrained_end,
            "trained turn by turn, because the template rewrites earlier turns": self.unrolled,
            "whose ids differ from those of the text as a whole": self.seams,
        }
        said += [f"{count} samples {what}" for what, count in notes.items() if count]
        return said + [f"{n} left out: {reason}" for reason, n in sorted(self.dropped.items())]


def fitted(sample: Sample, context: int) -> int:
    """How many tokens of a sample fit: all, or up to the end of the last answer that fits; 0: none.

    A sample of n tokens takes n - 1 places.
    """
    if len(sample.ids) <= context + 1:
        return len(sample.ids)
    ends = [
        place + 1
        for place in range(1, context + 1)
        if sample.trained[place] and not sample.trained[place + 1]
    ]
    return ends[-1] if ends else 0


def ends_trained(sample: Sample, length: int) -> bool:
    """Whether every stretch of trained tokens within `length` closes with an end-of-turn."""
    flags = [*sample.trained[:length], False]
    last = [place for place in range(length) if flags[place] and not flags[place + 1]]
    return bool(last) and all(sample.ids[place] in sample.end_ids for place in last)


def checked(
    examples: Iterable[Example],
    renderer: Renderer,
    context: int,
    preflight: Preflight,
    *,
    skip: bool = False,
) -> Iterator[Row]:
    """Rows for the token store, with `preflight` counting along.

    Raises DataError at a conversation that the template refuses; with `skip` it is left out.
    """
    for example in examples:
        preflight.conversations += 1
        try:
            samples = renderer.samples(example.conversation)
        except Flaw as flaw:
            if skip:
                preflight.dropped["refused by the template"] += 1
                continue
            place = f"{example.source}:{example.line}"
            fix = flaw.fix or "correct it, or use template: chatml"
            raise DataError(flaw.reason, place=place, fix=fix) from flaw
        for sample in samples:
            yield from row(sample, context, preflight)


def row(sample: Sample, context: int, preflight: Preflight) -> Iterator[Row]:
    """The row of one sample; none where nothing of it can be trained."""
    length = fitted(sample, context)
    preflight.rendered += len(sample.ids)
    preflight.cropped += len(sample.ids) - length
    trained = sum(sample.trained[1:length])  # nothing stands before the first token
    if not length or not trained:
        reason = "no answer fits the context" if not length else "no trained token"
        preflight.dropped[reason] += 1
        preflight.masked += length
        return
    preflight.samples += 1
    preflight.trained += trained
    preflight.masked += length - trained
    preflight.shortened += length < len(sample.ids)
    preflight.doubled_bos += sample.doubled_bos
    preflight.untrained_end += not ends_trained(sample, length)
    preflight.unrolled += sample.unrolled
    preflight.seams += sample.seam
    preflight.end_ids |= sample.end_ids
    yield Row(sample.ids[:length], 0, sample.trained[:length])
