"""The chat renderer: a conversation to text, to the ids of a prompt, and to samples to train on.

The text is what the model's own Jinja template writes, the same in training, at the prompt and in
other programs. The ids are not those of that text as a whole: what people wrote and what the
template wrote are encoded apart, and control tokens are recognised in the template's part alone.
So no content can end a turn or open another. Wherever no merge would cross the seam and no content
holds a control string, the ids are also those of the whole text.

A sample's ids begin with exactly the ids that the model sees as a prompt, for every turn of the
assistant. Templates that rewrite the past, such as those that drop earlier reasoning, give a sample
for each turn instead of one for the conversation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import Any, get_args

from stemma.core.errors import ModelError
from stemma.data.flaws import Flaw
from stemma.data.messages import Conversation, Message, Role
from stemma.data.tainted import Tainted, literal, plain, runs
from stemma.data.template import FIX, PLACE, compiled, given, render
from stemma.data.tokenizer import Tokenizer, special_text

ROLES = get_args(Role)
Span = tuple[int, int]  # characters of a turn: where its prompt ends, where its text ends


@dataclass(frozen=True, slots=True)
class Sample:
    """What to train on.

    Attributes:
        ids: the tokens, from the first of the prompt to the last of the template.
        trained: for each token whether predicting it counts.
        end_ids: the tokens that end the trained turns.
        seam: whether the ids differ from those of the text as a whole.
        doubled_bos: whether two tokens that begin a text stand at the beginning.
        unrolled: whether it is one turn of a conversation whose past the template rewrites.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    end_ids: frozenset[int]
    seam: bool
    doubled_bos: bool
    unrolled: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of characters of one origin: where it starts in the text, and its tokens.

    `first` is the index of its first token; `before` is the token in front of it.
    """

    text: Tainted
    is_content: bool
    start: int
    ids: list[int]
    first: int
    before: int | None


class Renderer:
    """A chat template with the tokenizer that it was written for.

    `today` is the day that templates print which print one; None takes the clock. Raises
    ModelError where the tokenizer has no template, or one that is no template.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, *, today: date | None = None
    ) -> None:
        self.tokenizer, self.today = tokenizer, today
        source = tokenizer.template if template is None else template
        if source is None:
            raise ModelError("the model has no chat template", place=PLACE, fix=FIX)
        self.source = source
        self.tool_source = tokenizer.tool_template if template is None else None
        for text in (self.source, self.tool_source):
            if text is not None:
                compiled(text)
        self.words = special_words(tokenizer.config)

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reply: bool,
    ) -> str:
        """The text of a conversation; with `reply` it ends where the assistant has to go on.

        Raises Flaw where the template refuses the conversation, ModelError where the template
        is at fault.
        """
        return plain(self.rendered(messages, tools=tools, reply=reply))

    def prompt(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Ids of a conversation up to where the assistant has to go on. Raises as `text`."""
        return self.ids(self.rendered(messages, tools=tools, reply=True))

    def rendered(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reply: bool,
    ) -> Tainted:
        """The text of a conversation, and for each character who wrote it."""
        if not messages:
            raise Flaw("there are no messages", key="messages")
        source = self.tool_source if tools and self.tool_source is not None else self.source
        variables = {
            **self.words,
            "messages": [seen(message, at) for at, message in enumerate(messages)],
            "tools": given(list(tools)) if tools else None,
            "documents": None,
            "add_generation_prompt": reply,
        }
        return render(source, variables, today=self.today)

    def ids(self, text: Tainted) -> list[int]:
        """Ids of a rendered text."""
        return list(chain.from_iterable(piece.ids for piece in self.pieces(text)))

    def pieces(self, text: Tainted, cuts: Sequence[int] = ()) -> Iterator[Piece]:
        """Encode a text by runs of one origin; no run goes across one of the `cuts`."""
        first, before = 0, None
        for run, is_content, start in cut_runs(text, cuts):
            ids = self.tokenizer.encode_piece(plain(run), control=not is_content, before=before)
            yield Piece(run, is_content, start, ids, first, before)
            first += len(ids)
            before = ids[-1] if ids else before

    def samples(self, conversation: Conversation) -> list[Sample]:
        """What to train on: every turn of the assistant up to the token that ends it.

        What follows the last turn of the assistant is left out; a conversation without one gives
        nothing. Raises as `text`, and ModelError where the template does not begin a turn as
        its prompt does, or ends it with no control token.
        """
        messages, tools = conversation.messages, conversation.tools
        turns = [at for at, message in enumerate(messages) if message.role == "assistant"]
        if not turns:
            return []
        if turns[0] == 0:
            raise Flaw("the assistant speaks first, so it answers nothing", key="messages[0]")
        prompts = [self.rendered(messages[:at], tools=tools, reply=True) for at in turns]
        wholes = [self.rendered(messages[: at + 1], tools=tools, reply=False) for at in turns]
        for prompt, whole in zip(prompts, wholes, strict=True):
            if not begins(whole, prompt):
                what = "an answer's text does not begin with the prompt that asks for it"
                raise ModelError(what, place=PLACE, fix=FIX)
        spans = [(len(p), len(w)) for p, w in zip(prompts, wholes, strict=True)]
        if all(begins(wholes[-1], part) for part in wholes[:-1] + prompts):
            sample = self.sample(wholes[-1], spans, unrolled=False)
            if self.keeps_prompts(sample, wholes[-1], prompts):
                return [sample]
        return [
            self.sample(whole, [span], unrolled=True)
            for whole, span in zip(wholes, spans, strict=True)
        ]

    def sample(self, text: Tainted, spans: Sequence[Span], *, unrolled: bool) -> Sample:
        """A text with the turns that are trained."""
        pieces = list(self.pieces(text, [start for start, _ in spans]))
        ids = list(chain.from_iterable(piece.ids for piece in pieces))
        trained = [False] * len(ids)
        end_ids = set()
        for start, end in spans:
            last = self.end_of_turn(text, pieces, start, end)
            first = next(piece.first for piece in pieces if piece.start >= start)
            trained[first : last + 1] = [True] * (last + 1 - first)
            end_ids.add(ids[last])
        bos_id = self.tokenizer.bos_id
        return Sample(
            ids=tuple(ids),
            trained=tuple(trained),
            end_ids=frozenset(end_ids),
            seam=ids != self.tokenizer.encode_template(plain(text)),
            doubled_bos=bos_id is not None and ids[:2] == [bos_id, bos_id],
            unrolled=unrolled,
        )

    def end_of_turn(self, text: Tainted, pieces: Sequence[Piece], start: int, end: int) -> int:
        """The index of the token that ends the turn in `text[start:end]`.

        Behind the last character of content it is `eos_token` where that is there, else the last
        control token: what a model has to say for its turn to be over. An earlier one may close
        only a part of the turn, such as a tool call.
        """
        behind = max(start, text.marks.rfind(1, start, end) + 1)
        found: int | None = None
        for piece in pieces:
            if piece.is_content or not behind <= piece.start < end:
                continue
            within = plain(piece.text[: end - piece.start])
            ids = self.tokenizer.encode_piece(within, control=True, before=piece.before)
            said = [number for number in ids if number in self.tokenizer.control_ids]
            places = self.control_places(piece.ids)
            if self.tokenizer.eos_id in said:
                return piece.first + places[said.index(self.tokenizer.eos_id)]
            if said:
                found = piece.first + places[len(said) - 1]
        if found is not None:
            return found
        what = "no control token ends the assistant's turn, so a model could not learn to stop"
        raise ModelError(what, place=PLACE, fix=FIX)

    def control_places(self, ids: Sequence[int]) -> list[int]:
        """Where the control tokens are."""
        return [at for at, number in enumerate(ids) if number in self.tokenizer.control_ids]

    def keeps_prompts(self, sample: Sample, text: Tainted, prompts: Sequence[Tainted]) -> bool:
        """Whether the ids of each prompt begin the sample's ids.

        They do unless a cut between prompt and answer goes through a run of one origin, which is
        looked at, since most never do.
        """
        cuts = [len(prompt) for prompt in prompts]
        if all(text.marks[cut - 1 : cut] != text.marks[cut : cut + 1] for cut in cuts):
            return True
        return all(
            list(sample.ids[: len(ids)]) == ids for ids in (self.ids(prompt) for prompt in prompts)
        )


def cut_runs(text: Tainted, cuts: Sequence[int]) -> Iterator[tuple[Tainted, bool, int]]:
    """Runs of one origin between the cuts, each with whether it is content, and its start."""
    bounds = [0, *cuts, len(text)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        at = start
        for run, is_content in runs(text[start:end]):
            yield run, is_content, at
            at += len(run)


def begins(whole: Tainted, part: Tainted) -> bool:
    """Whether a text begins with another, and the same people wrote it."""
    return whole.startswith(part) and whole.marks.startswith(part.marks)


def seen(message: Message, at: int) -> dict[str, Any]:
    """A message as a template sees it: all of it content except the role, which is one of four."""
    if message.role not in ROLES:
        known = ", ".join(ROLES)
        raise Flaw(f"role {message.role!r} is none of {known}", key=f"messages[{at}].role")
    return {**given(message.to_json()), "role": literal(message.role)}


def special_words(config: Mapping[str, Any]) -> dict[str, Tainted]:
    """The words that templates know by name, such as `bos_token`."""
    found = {name: special_text(entry) for name, entry in config.items() if name.endswith("_token")}
    return {name: literal(word) for name, word in found.items() if word is not None}
