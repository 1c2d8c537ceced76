"""What trained encoders are for: filling in hidden words, and labelling texts.

Axes: B texts, T tokens, N hidden tokens, L labels
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stemma.core.errors import UsageError
from stemma.data.marked import around, fitted, marks_of
from stemma.data.tokenizer import Tokenizer
from stemma.nn.context import Context
from stemma.nn.mode import evaluating

TOGETHER = 32  # texts that go through the network at once


@torch.inference_mode()
def fill(model: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """The texts with the likeliest token in each place of `[MASK]`, or of what the model calls it.

    Raises UsageError for a text without such a place, or longer than the model's context, and for
    a model that was not trained to fill in.
    """
    require_list(texts)
    if getattr(model, "head", None) is None:
        what = f"a {model.config.family} without a head for hidden words fills in nothing"
        raise UsageError(what, place="model", fix="give one of a masked stage, or use label")
    marks, filled = marks_of(tokenizer), []
    for text in texts:
        ids = around(marks, tokenizer.encode_template(text))
        if marks.mask not in ids:
            word = tokenizer.backend.id_to_token(marks.mask)
            raise UsageError("nothing to fill in", place=f"{text!r:.60}", fix=f"write {word}")
        if len(ids) > model.config.context:
            what = f"{len(ids)} tokens, but the model reads {model.config.context}"
            raise UsageError(what, place=f"{text!r:.60}", fix="shorten it")
        filled.append(tokenizer.decode(filled_ids(model, ids, marks.mask)[1:-1]))
    return filled


def require_list(texts: Any) -> None:
    """Refuse a single text where a list is meant: each of its characters would be one."""
    if isinstance(texts, str):
        raise UsageError("a text, not a list of texts", place=f"{texts!r:.60}", fix="write [text]")


def filled_ids(model: Any, ids: Sequence[int], mask_id: int) -> list[int]:
    """A row of tokens with the likeliest one for each that is hidden, all at once."""
    tokens_BT = torch.tensor([ids], device=model.embedding.weight.device)
    hidden_BT = tokens_BT == mask_id
    with torch.inference_mode(), evaluating(list(model.modules())):
        x_BTC, _ = model.hidden(tokens_BT)
        likeliest_N = model.logits(x_BTC[hidden_BT]).argmax(-1)
    tokens_BT[hidden_BT] = likeliest_N
    found: list[int] = tokens_BT[0].tolist()
    return found


@torch.inference_mode()
def label(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]]
) -> list[dict[str, float]]:
    """The probability of every label for each text or pair, the likeliest label first.

    What is too long for the model's context is cut at its end. Labels without names are called by
    their numbers. Raises UsageError for a model that was not trained to label.
    """
    require_list(texts)
    if getattr(model, "classifier", None) is None:
        what = f"a {model.config.family} without labels labels nothing"
        raise UsageError(what, place="model", fix="give one of a classify stage, or use fill")
    probabilities: list[dict[str, float]] = []
    for start in range(0, len(texts), TOGETHER):
        tokens_BT, context = rows(tokenizer, texts[start : start + TOGETHER], model.config.context)
        device = model.embedding.weight.device
        moved = Context(
            padding_BT=_on(device, context.padding_BT), segments_BT=_on(device, context.segments_BT)
        )
        with evaluating(list(model.modules())):
            x_BTC, _ = model.hidden(tokens_BT.to(device), moved)
            shares_BL = model.classify(x_BTC, moved.padding_BT).float().softmax(-1)
        for shares in shares_BL.tolist():
            names = getattr(model, "labels", None) or map(str, range(len(shares)))
            named = dict(zip(names, shares, strict=True))
            probabilities.append(dict(sorted(named.items(), key=lambda pair: -pair[1])))
    return probabilities


def rows(
    tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]], context: int
) -> tuple[Tensor, Context]:
    """Texts and pairs as rows of one length: their tokens, what is real, and the segments."""
    marks, made = marks_of(tokenizer), []
    for text in texts:
        pair = [tokenizer.encode(part) for part in ((text,) if isinstance(text, str) else text)]
        if len(pair) == 1:
            made.append((around(marks, pair[0][: context - 2]), 0))
        else:
            first, second = fitted(pair[0], pair[1], context - 3)
            made.append((around(marks, first, second), len(second) + 1))
    longest = max(len(ids) for ids, _ in made)
    tokens_BT = torch.full((len(made), longest), marks.padding)
    real_BT = torch.zeros(len(made), longest, dtype=torch.bool)
    segments_BT = torch.zeros(len(made), longest, dtype=torch.long)
    for row, (ids, behind) in enumerate(made):
        tokens_BT[row, : len(ids)], real_BT[row, : len(ids)] = torch.tensor(ids), True
        segments_BT[row, len(ids) - behind : len(ids)] = 1
    return tokens_BT, Context(padding_BT=real_BT, segments_BT=segments_BT)


def _on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
