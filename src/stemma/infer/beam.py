"""Beam search: the likeliest target of a source, looked for along several paths at once.

Works with every network that has `encode`, `decode` and `new_cache`: recurrent or not. A finished
text is scored by its log probability over a penalty of its length, else short ones always win
(arXiv:1609.08144, section 7). With one beam this is greedy decoding: the likeliest token each time,
up to the first end, whatever the penalty.

Axes: B sources, K beams, S source tokens, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stemma.core.errors import ModelError
from stemma.nn.context import Context
from stemma.nn.mode import evaluating


@dataclass(frozen=True)
class Hypothesis:
    """A target text: its tokens without the end, the sum of their log probabilities, its score.

    `ended` is false where the limit of tokens came before the end token.
    """

    token_ids: list[int]
    logprob: float
    score: float
    ended: bool


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6)^alpha, arXiv:1609.08144, equation 14; the end token counts.

    >>> length_penalty(1, alpha=0.6), length_penalty(7, alpha=1.0)
    (1.0, 2.0)
    """
    return float(((5 + length) / 6) ** alpha)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor (B, S), padded right, and where they are real."""
    longest = max(map(len, rows))
    tokens = [[*row, *[0] * (longest - len(row))] for row in rows]
    real = [[place < len(row) for place in range(longest)] for row in rows]
    return torch.tensor(tokens, device=device), torch.tensor(real, device=device)


class _Search:
    """The beams of a batch of sources in flight."""

    def __init__(self, model: Any, context: Context, count: int, beams: int) -> None:
        self.model, self.context, self.beams = model, context, beams
        self.device = model.embedding.weight.device
        self.sources = list(range(count))  # which source each group of K rows is of
        self.live: list[list[int]] = [[] for _ in range(count * beams)]
        self.scores_BK = torch.full((count, beams), -torch.inf, dtype=torch.float64)
        self.scores_BK[:, 0] = 0.0  # all beams begin alike: only one of them may be continued
        self.select([source for source in range(count) for _ in range(beams)])

    def select(self, rows: list[int]) -> None:
        """Let these rows go on, in this order."""
        chosen, c = torch.tensor(rows, device=self.device), self.context
        assert c.caches is not None
        c.caches.select(chosen)
        memory, real = c.memory_BMC, c.memory_padding_BM
        self.context = replace(
            c,
            memory_BMC=None if memory is None else memory[chosen],
            memory_padding_BM=None if real is None else real[chosen],
        )

    def step(self, tokens: list[int]) -> Tensor:
        """Log probabilities of what follows the newest token of every row, (B, K, V).

        Raises ModelError where the model's scores are not numbers.
        """
        tokens_BT = torch.tensor(tokens, device=self.device)[:, None]
        logits_BV: Tensor = self.model.decode(tokens_BT, self.context)[:, -1].cpu().double()
        if not logits_BV.amax(-1).isfinite().all():
            raise ModelError(
                "the model's scores are not finite numbers",
                fix="check its weights for NaN, or load it in float32",
            )
        return logits_BV.log_softmax(-1).view(len(self.sources), self.beams, -1)


@torch.inference_mode()
def beam_search(
    model: Any,
    sources: Sequence[Sequence[int]],
    *,
    start_id: int,
    end_id: int,
    max_new_tokens: int,
    beams: int = 1,
    alpha: float = 0.0,
) -> list[Hypothesis]:
    """The best target of each source, found along `beams` paths.

    `sources` are token ids as the network was trained to read them, padded here. A source is done
    when it has `beams` finished texts and no path still alive could beat the worst of them; with
    one beam when a text ends, as there is no second path. Raises ValueError for no beam, and for a
    source without a token; ModelError where the model's scores are not numbers.
    """
    if beams < 1:
        raise ValueError(f"{beams} beams find nothing; at least 1")
    if not all(sources):
        raise ValueError("a source without a token cannot be read")
    if not sources:
        return []
    with evaluating(model.modules()):
        source_BS, real_BS = pad(sources, model.embedding.weight.device)
        context = model.encode(source_BS, Context(memory_padding_BM=real_BS))
        context = replace(context, caches=model.new_cache(max_new_tokens + 1))
        search = _Search(model, context, len(sources), beams)
        finished: list[list[Hypothesis]] = [[] for _ in sources]
        tokens = [start_id] * len(search.live)
        for length in range(1, max_new_tokens + 1):
            logprobs_BKV = search.step(tokens)
            penalties = [length_penalty(n, alpha) for n in (length, max_new_tokens)]
            tokens = _advance(search, logprobs_BKV, finished, end_id, penalties)
            if not tokens:
                break
        _give_up(search, finished, max_new_tokens, alpha)
    return [max(found, key=lambda text: (text.ended, text.score)) for found in finished]


def _advance(
    search: _Search,
    logprobs_BKV: Tensor,
    finished: list[list[Hypothesis]],
    end_id: int,
    penalties: list[float],
) -> list[int]:
    """Choose the next tokens of all beams; sources that are done leave. Returns the new tokens."""
    beams, size = search.beams, logprobs_BKV.shape[-1]
    total_BKV = search.scores_BK[..., None] + logprobs_BKV
    # twice as many as beams: at most half of them end, once for each path; an end that is not
    # among the best `beams` itself is no better a text than those that go on
    best = total_BKV.flatten(1).topk(min(2 * beams, beams * size), dim=-1)
    rows, tokens, scores, sources = [], [], [], []
    for place, source in enumerate(search.sources):
        kept: list[tuple[int, int, float]] = []
        pairs = zip(best.values[place].tolist(), best.indices[place].tolist(), strict=True)
        for rank, (score, index) in enumerate(pairs):
            row, token = place * beams + index // size, index % size
            if score == -torch.inf:
                continue
            if token == end_id and rank < beams:
                text = search.live[row]
                finished[source].append(Hypothesis(text, score, score / penalties[0], True))
            elif token != end_id and len(kept) < beams:
                kept.append((row, token, score))
        if not kept or _done(finished[source], kept[0][2] / penalties[1], beams):
            continue
        while len(kept) < beams:  # fewer paths than beams: repeat one that can never win
            kept.append((*kept[0][:2], -torch.inf))
        sources.append(source)
        rows += [row for row, _, _ in kept]
        tokens += [token for _, token, _ in kept]
        scores.append([score for _, _, score in kept])
    search.live = [[*search.live[row], token] for row, token in zip(rows, tokens, strict=True)]
    search.sources = sources
    search.scores_BK = torch.tensor(scores, dtype=torch.float64)
    if tokens:
        search.select(rows)
    return tokens


def _done(finished: list[Hypothesis], best_possible: float, beams: int) -> bool:
    """Whether enough has ended that no path alive can beat the worst of the best `beams`.

    A lone path has gone where it was likeliest: once it ends, what is left of it is second best.
    """
    if beams == 1:
        return bool(finished)
    best = sorted((text.score for text in finished), reverse=True)[:beams]
    return len(best) == beams and best[-1] >= best_possible


def _give_up(search: _Search, finished: list[list[Hypothesis]], limit: int, alpha: float) -> None:
    """The paths that the limit cut short count where nothing of their source has ended."""
    for place, source in enumerate(search.sources):
        if not finished[source]:
            text = search.live[place * search.beams]
            score = search.scores_BK[place, 0].item()
            finished[source].append(
                Hypothesis(text, score, score / length_penalty(limit, alpha), False)
            )
