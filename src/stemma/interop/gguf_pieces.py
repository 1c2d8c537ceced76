"""The tokenizer of the kind "llama" in a GGUF file: SentencePiece's BPE (arXiv:1808.06226).

The file has pieces and their scores, no merges: the best-scored piece that two neighbours make is
made first. `tokenizers` wants merges in order, so they are every way to cut a piece into two
pieces, best score first and longer left parts first, which is the order that Hugging Face's
converter writes: for Gemma 3 all 514,906 are those of its own `tokenizer.json`. A space is spelled
"▁", and a character without a piece as its UTF-8 bytes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from stemma.interop.gguf_header import Header

KEY = "tokenizer.ggml."
SPACE = "▁"
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # token types; only the first two come out of merges
NUM_BYTES = 256


def spelled(tokens: Sequence[str]) -> list[str]:
    """Pieces as SentencePiece spells them; the converter writes spaces into those of the user."""
    return [token.replace(" ", SPACE) for token in tokens]


def sentence_pieces(
    header: Header, tokens: Sequence[str], types: np.ndarray[Any, Any], unknown: int | None
) -> tokenizers.Tokenizer:
    """The backend over pieces.

    Raises ModelError that names the key for anything that does not fit.
    """
    if header.get(f"{KEY}add_space_prefix", bool, True):
        what = "a space in front of every text is not supported"
        raise header.fault(f"{KEY}add_space_prefix", what, "use another model")
    if header.get(f"{KEY}remove_extra_whitespaces", bool, False):
        what = "texts without their repeated spaces are not supported"
        raise header.fault(f"{KEY}remove_extra_whitespaces", what, "use another model")
    _require_bytes(header, tokens, types)
    scores = header.get(f"{KEY}scores", np.ndarray, np.empty(0, np.float32))
    if len(scores) != len(tokens):
        what = f"{len(scores)} scores for {len(tokens)} tokens"
        raise header.fault(f"{KEY}scores", what)
    if not np.isfinite(scores).all():
        raise header.fault(f"{KEY}scores", "a score is NaN or infinite")
    if unknown is None:
        raise header.fault(f"{KEY}unknown_token_id", "the key is missing")
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        merges(tokens, types, scores),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def merges(
    tokens: Sequence[str], types: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which pairs are joined.

    Pieces of the user have no score of their own, and are made before all others. Pieces "a", "b",
    "ab" with scores 0, -1, -2 give [("a", "b")].
    """
    kinds, worth = types.tolist(), np.where(types == USER_DEFINED, 0.0, scores).tolist()
    known = {t: i for i, t in enumerate(tokens) if kinds[i] in (NORMAL, USER_DEFINED)}
    found = []
    for piece, index in known.items():
        for cut in range(1, len(piece)):
            left = known.get(piece[:cut])
            right = None if left is None else known.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-worth[index], -cut, cut - len(piece), index, left, right))
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(found)]


def _require_bytes(header: Header, tokens: Sequence[str], types: np.ndarray[Any, Any]) -> None:
    """A token for each byte, or some text could not be spelled."""
    wanted = {f"<0x{byte:02X}>" for byte in range(NUM_BYTES)}
    found = {tokens[index] for index in np.flatnonzero(types == BYTE).tolist()}
    if found != wanted:
        what = f"tokens of {len(found & wanted)} of the {NUM_BYTES} bytes"
        what += f", and {len(found - wanted)} others of their type" if found - wanted else ""
        raise header.fault(f"{KEY}token_type", what)
