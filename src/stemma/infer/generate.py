"""Generation: a ragged batch decoded with a cache, streamed token by token.

Prompts are padded on the left, so that every row's newest token stands in the last slot; after
that every row has its own positions. Rows leave the batch when they end. A text is a pure
function of (model, prompt, sampling): what else is in the batch changes at most the last bits of
the scores. `generate` only collects what `stream` yields, so the two cannot differ.

Axes: B batch, T time, V vocabulary, C model width
"""

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stemma.core.errors import ModelError, UsageError
from stemma.infer.sampling import Sampling, distribution, draw, penalise, uniform
from stemma.infer.text import Cutter, Detokenizer, Tokenizer
from stemma.nn.context import Context
from stemma.nn.mode import evaluating
from stemma.nn.stack import LanguageModel

FinishReason = Literal["stop", "length"]
Prompt = str | Sequence[int]
CHUNK = 128  # tokens of prompts, of all rows together, in one pass: nobody waits for more


def go_on() -> None:
    """Nothing stands against another pass."""


@dataclass(frozen=True)
class Logprob:
    """Natural log-probabilities under the model's own distribution, before any sampling setting.

    `best` holds the likeliest tokens and their log-probabilities, best first.
    """

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """One token of one row. `text` is what became certain with it, and may be empty."""

    row: int
    text: str
    token_id: int
    logprob: Logprob | None
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Generation:
    """The whole answer to one prompt.

    `token_ids` are all tokens that the model made, with the end token or the tokens of the stop
    string; `text` has neither. `seed` is the one used: drawn where none was given.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int
    logprobs: list[Logprob] | None


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling | Sequence[Sampling],
    *,
    end_ids: Collection[int] | None = None,
    between: Callable[[], None] = go_on,
) -> Iterator[Piece]:
    """Continue every prompt; yields one piece for each token of each row, rows taking turns.

    A text begins with `bos_id` where the tokenizer's documents do; token ids are taken as they
    stand; nothing at all starts from `bos_id` or else `eos_id`. With one sampling for all rows
    and a seed, equal prompts give equal texts: for several answers hand in several seeds.
    Each of `end_ids` ends a text, or the tokenizer's `eos_id` where none are given.
    Prompt and answer together never exceed the model's context: there the answer ends with
    "length". `between` is called before every pass through the model; what it raises ends the work.

    Raises UsageError, before the first piece, for prompts that do not fit the model, and
    ModelError where the model's scores are not numbers.
    """
    return _decode(model, _rows(model, tokenizer, prompts, sampling, end_ids), between)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling | Sequence[Sampling],
    *,
    end_ids: Collection[int] | None = None,
) -> list[Generation]:
    """Continue every prompt and return the answers in order; see `stream` for the rules."""
    rows = _rows(model, tokenizer, prompts, sampling, end_ids)
    pieces: list[list[Piece]] = [[] for _ in rows]
    for piece in _decode(model, rows, go_on):
        pieces[piece.row].append(piece)
    return [_collect(row, made) for row, made in zip(rows, pieces, strict=True)]


class _Row:
    """One text in flight."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        end_ids: Collection[int],
        room: int,
    ) -> None:
        self.index, self.prompt, self.sampling = index, prompt, sampling
        self.length = len(prompt)
        self.last = self.length + min(sampling.max_new_tokens, room)
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.end_ids = end_ids
        self.detokenizer = Detokenizer(tokenizer, prompt)
        self.cutter = Cutter(sampling.stop)
        s = sampling
        self.filter = (s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty)

    def take(self, token_id: int, logprob: Logprob | None) -> Piece:
        """Append a token; the piece says what it shows and whether the text ends with it."""
        self.length += 1
        ended = token_id in self.end_ids
        text = "" if ended else self.cutter.add(self.detokenizer.add(token_id))
        if not self.cutter.found and (ended or self.length == self.last):
            text += self.cutter.add(self.detokenizer.end()) + self.cutter.end()
        reason: FinishReason | None = None
        if ended or self.cutter.found:
            reason = "stop"
        elif self.length == self.last:
            reason = "length"
        return Piece(self.index, text, token_id, logprob, reason)


class _Batch:
    """The rows in flight with their cache; logits go in and out as (B, V) in double precision."""

    def __init__(self, model: LanguageModel, rows: list[_Row]) -> None:
        self.model, self.rows = model, rows
        self.device = model.embedding.weight.device
        self.modules = list(model.modules())  # walking the tree at every step would cost
        longest = max(row.length for row in rows)
        self.even = all(row.length == longest for row in rows)
        # the last token of a text is never fed back, so it needs no slot
        steps = max(row.last - row.length for row in rows) - 1
        self.cache = model.new_cache(longest + steps)
        self.seen_BV: Tensor | None = None
        if any(row.sampling.repetition_penalty != 1 for row in rows):
            self.seen_BV = torch.zeros(
                len(rows), model.config.vocab_size, dtype=torch.bool, device=self.device
            )
            for seen_V, row in zip(self.seen_BV, rows, strict=True):
                seen_V[row.prompt] = True

    def prefill(self, between: Callable[[], None]) -> Tensor:
        """Read all prompts, padded on the left, `CHUNK` tokens at a time; equal ones once."""
        count, first = len(self.rows), self.rows[0].prompt
        same = count > 1 and all(row.prompt == first for row in self.rows)
        rows = self.rows[:1] if same else self.rows
        longest, size = max(row.length for row in rows), max(1, CHUNK // len(rows))
        padded = [[0] * (longest - row.length) + row.prompt for row in rows]
        real = [[False] * (longest - row.length) + [True] * row.length for row in rows]
        real_BT = torch.tensor(real, device=self.device)
        positions_BT = (real_BT.long().cumsum(1) - 1).masked_fill(~real_BT, -1)
        for start in range(0, longest, size):
            between()
            cut = slice(start, start + size)
            positions = None if self.even else positions_BT[:, cut]
            x_BTC = self._read(
                [tokens[cut] for tokens in padded],
                Context(caches=self.cache, positions_BT=positions),
            )
        if same:
            self.cache.select(torch.zeros(count, dtype=torch.long, device=self.device))
            x_BTC = x_BTC.expand(count, -1, -1)
        return self._scores(x_BTC)

    def step(self, tokens: list[int]) -> Tensor:
        """Read the newest token of every row."""
        positions_BT = None
        if not self.even:
            positions = [[row.length - 1] for row in self.rows]
            positions_BT = torch.tensor(positions, device=self.device)
        if self.seen_BV is not None:
            self.seen_BV[list(range(len(tokens))), tokens] = True
        return self._scores(
            self._read(
                [[token] for token in tokens], Context(caches=self.cache, positions_BT=positions_BT)
            )
        )

    def keep(self, rows: list[int]) -> None:
        """Let only these rows go on."""
        if len(rows) == len(self.rows):
            return
        self.rows = [self.rows[row] for row in rows]
        chosen = torch.tensor(rows, device=self.device)
        self.cache.select(chosen)
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[chosen]

    def choose(self, logits_BV: Tensor) -> list[int]:
        """The next token of every row; rows with the same settings are filtered together."""
        groups: dict[tuple[float, ...], list[int]] = {}
        for place, row in enumerate(self.rows):
            groups.setdefault(row.filter, []).append(place)
        tokens = [0] * len(self.rows)
        for places in groups.values():
            whole = len(places) == len(self.rows)
            chosen = self._choose(logits_BV if whole else logits_BV[places], places)
            for place, token in zip(places, chosen, strict=True):
                tokens[place] = token
        return tokens

    def _choose(self, logits_BV: Tensor, places: list[int]) -> list[int]:
        rows = [self.rows[place] for place in places]
        sampling = rows[0].sampling
        if self.seen_BV is not None and sampling.repetition_penalty != 1:
            logits_BV = penalise(logits_BV, self.seen_BV[places], sampling.repetition_penalty)
        if sampling.temperature == 0:
            return logits_BV.argmax(-1).tolist()
        noise = [uniform(row.seed, row.length) for row in rows]
        noise_B = torch.tensor(noise, dtype=torch.float64, device=logits_BV.device)
        return draw(distribution(logits_BV, sampling), noise_B).tolist()

    def _read(self, tokens: list[list[int]], context: Context) -> Tensor:
        """The stream behind the last block, (B, T, C)."""
        tokens_BT = torch.tensor(tokens, device=self.device)
        # for one pass only: between two pieces the caller finds the model as it was
        with evaluating(self.modules), torch.inference_mode():
            x_BTC, _ = self.model.hidden(tokens_BT, context)
        return x_BTC

    def _scores(self, x_BTC: Tensor) -> Tensor:
        """The logits of each row's newest token, (B, V)."""
        with evaluating(self.modules), torch.inference_mode():
            logits_BV = self.model.logits(x_BTC[:, -1])
            if logits_BV.device.type == "mps":  # has no double precision
                logits_BV = logits_BV.cpu()
            logits_BV = logits_BV.double()
        if not logits_BV.amax(-1).isfinite().all():
            raise ModelError(
                "the model's scores are not finite numbers",
                fix="check its weights for NaN, or load it in float32",
            )
        return logits_BV


def _decode(model: LanguageModel, rows: list[_Row], between: Callable[[], None]) -> Iterator[Piece]:
    if not rows:
        return
    batch = _Batch(model, rows)
    logits_BV = batch.prefill(between)
    while True:
        tokens = batch.choose(logits_BV)
        scores = _logprobs(logits_BV, batch.rows, tokens)
        made = zip(batch.rows, tokens, scores, strict=True)
        pieces = [row.take(token, logprob) for row, token, logprob in made]
        yield from pieces
        going = [place for place, piece in enumerate(pieces) if piece.finish_reason is None]
        if not going:
            return
        batch.keep(going)
        between()
        logits_BV = batch.step([tokens[place] for place in going])


def _logprobs(logits_BV: Tensor, rows: list[_Row], tokens: list[int]) -> list[Logprob | None]:
    """What each row asked for; nothing is computed for rows that asked for nothing."""
    found: list[Logprob | None] = [None] * len(rows)
    for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.sampling.logprobs:
            log_V = logits_BV[place].log_softmax(-1)
            best = log_V.topk(min(row.sampling.logprobs, len(log_V)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found[place] = Logprob(token, log_V[token].item(), tuple(pairs))
    return found


def _collect(row: _Row, pieces: list[Piece]) -> Generation:
    reason = pieces[-1].finish_reason
    assert reason is not None  # a row's pieces end only with a reason
    logprobs = [piece.logprob for piece in pieces if piece.logprob is not None]
    return Generation(
        text="".join(piece.text for piece in pieces),
        token_ids=[piece.token_id for piece in pieces],
        finish_reason=reason,
        prompt_tokens=len(row.prompt),
        completion_tokens=len(pieces),
        seed=row.seed,
        logprobs=logprobs if row.sampling.logprobs else None,
    )


def _rows(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling | Sequence[Sampling],
    end_ids: Collection[int] | None,
) -> list[_Row]:
    """Check everything at the door and set up one row for each prompt."""
    if isinstance(prompts, str):
        raise UsageError("prompts is one text", fix="hand in a list: [prompt]")
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    if len(each) != len(prompts):
        raise UsageError(f"{len(prompts)} prompts but {len(each)} samplings")
    if end_ids is None:
        end_ids = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    rows = []
    for index, (prompt, settings) in enumerate(zip(prompts, each, strict=True)):
        ids = _checked(prompt_ids(tokenizer, prompt), model, index)
        room = model.config.context - len(ids)
        rows.append(_Row(index, ids, settings, tokenizer, end_ids, room))
    return rows


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, never none, as `stream` says."""
    ids = list(prompt) if not isinstance(prompt, str) else tokenizer.encode(prompt)
    if isinstance(prompt, str) and tokenizer.adds_bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    if ids:
        return ids
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start is None:
        raise UsageError(
            "the prompt is empty and the tokenizer has no token to start from",
            fix="give a prompt of at least one token",
        )
    return [start]


def _checked(ids: list[int], model: LanguageModel, index: int) -> list[int]:
    """The ids of prompt number `index`, if they fit the model's context and vocabulary."""
    place, context, size = f"prompt {index}", model.config.context, model.config.vocab_size
    if len(ids) >= context:
        raise UsageError(
            f"{len(ids)} tokens leave no room in the model's context of {context}",
            place=place,
            fix=f"shorten it to at most {context - 1} tokens",
        )
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise UsageError(
            f"token id {wrong} is not in the vocabulary", place=place, fix=f"use 0 to {size - 1}"
        )
    return ids
