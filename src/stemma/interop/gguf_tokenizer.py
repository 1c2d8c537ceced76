"""The tokenizer inside a GGUF file: byte-level BPE, or SentencePiece's (`gguf_pieces`).

Of byte-level BPE the file carries tokens, their types and merges, and the splitting rule's name
alone: llama.cpp knows the rule by heart, and so do we for those in `stemma.data.bpe`. Another name
is refused, because a nearby rule gives ids that look right and are not. Like llama.cpp, nothing
normalises the text: where the original tokenizer did (Qwen's: NFC), text that is not composed gets
other ids.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, processors

from stemma.core.errors import ModelError
from stemma.data.bpe import Splitting, pre_tokenizer
from stemma.data.tokenizer import Tokenizer
from stemma.interop.gguf_header import Header
from stemma.interop.gguf_pieces import KEY, USER_DEFINED, sentence_pieces, spelled
from stemma.interop.json_file import DAMAGED

BYTE_LEVEL, PIECES = "gpt2", "llama"  # kinds of tokenizers, by their names in the format
CONTROL = (2, 3)  # token types: unknown, control
NAMES = {  # key below `KEY`: name in a Hugging Face folder
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "padding_token_id": "pad_token",
    "unknown_token_id": "unk_token",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, a turn, a message
EDGES = ("bos_token_id", *ENDS)
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is taken before any merge (Llama 3)
ADDS_BOS = ("llama-bpe",)  # unless the file says otherwise


def read_tokenizer(header: Header) -> Tokenizer | None:
    """The tokenizer of a file, None where it has none.

    Raises ModelError that names the key, and the token or merge, for anything that does not fit.
    """
    kind = header.get(f"{KEY}model", str, "none")
    if kind == "none":
        return None
    if kind not in (BYTE_LEVEL, PIECES):
        what = f"tokenizers of the kind {kind!r:.60} cannot be read"
        fix = f"use a model with the kind {BYTE_LEVEL} (byte-level BPE) or {PIECES} (SentencePiece)"
        raise _bad(header, "model", what, fix)
    rule = _rule(header) if kind == BYTE_LEVEL else None
    tokens, types = _tokens(header, kind)
    merges = _merges(header, tokens) if rule else []
    ids = {name: _id(header, name, tokens) for name in dict.fromkeys([*NAMES, *ENDS])}
    control = _control(types, ids)
    if rule:
        _refuse_written(header, [tokens[i] for i in control], merges, rule)
        backend = _backend(tokens, merges, rule)
    else:
        backend = sentence_pieces(header, tokens, types, ids["unknown_token_id"])
    backend.add_special_tokens([AddedToken(tokens[i], normalized=False) for i in control])
    plain = [i for i in np.flatnonzero(types == USER_DEFINED).tolist() if i not in set(control)]
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i in plain])
    config = _config(header, tokens, ids)
    backend.post_processor = _post_processor(header, config, tokens, ids, rule)
    return Tokenizer(backend, config)


def end_ids(header: Header, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end a text or a turn, each once, the tokenizer's own first."""
    named = [header.values.get(KEY + name) for name in ENDS]
    own = [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    return list(dict.fromkeys([*own, *(i for i in named if i is not None)]))


def _bad(header: Header, key: str, what: str, fix: str = DAMAGED) -> ModelError:
    return ModelError(what, place=f"{header.path}: {KEY}{key}", fix=fix)


def _rule(header: Header) -> Splitting:
    found = header.get(f"{KEY}pre", str)
    known: tuple[Splitting, ...] = get_args(Splitting)
    for rule in known:
        if rule == found:
            return rule
    what = "the key is missing" if found is None else f"unknown splitting rule {found!r:.60}"
    raise _bad(header, "pre", what, f"known: {', '.join(known)}")


def _tokens(header: Header, kind: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    tokens: list[str] = header.get(f"{KEY}tokens", list, [])
    tokens = spelled(tokens) if kind == PIECES else tokens
    if not tokens:
        raise _bad(header, "tokens", "there are none")
    seen: dict[str, int] = {}
    for index, token in enumerate(tokens):
        first = seen.setdefault(token, index)
        if first != index:
            raise _bad(header, "tokens", f"tokens {first} and {index} are both {token!r:.60}")
    if "" in seen:
        raise _bad(header, "tokens", f"token {seen['']} is empty")
    types = header.get(f"{KEY}token_type", np.ndarray, np.ones(len(tokens), np.int32))
    if len(types) != len(tokens):
        what = f"{len(types)} types for {len(tokens)} tokens"
        raise _bad(header, "token_type", what)
    return tokens, types


def _merges(header: Header, tokens: Sequence[str]) -> list[tuple[str, str]]:
    known, merges = set(tokens), []
    for index, line in enumerate(header.get(f"{KEY}merges", list, [])):
        first, space, second = line.partition(" ")
        if not first or not space or not second:
            raise _bad(header, "merges", f"merge {index} is {line!r:.60}, not two tokens")
        for part in (first, second, first + second):
            if part not in known:
                what = f"merge {index}, {line!r:.60}, needs the token {part!r:.60}"
                raise _bad(header, "merges", f"{what}, which is not there")
        merges.append((first, second))
    return merges


def _id(header: Header, name: str, tokens: Sequence[str]) -> int | None:
    found: int | None = header.get(KEY + name, int)
    if found is not None and not 0 <= found < len(tokens):
        raise _bad(header, name, f"{found} is no token: there are {len(tokens)}")
    return found


def _control(types: np.ndarray[Any, Any], ids: dict[str, int | None]) -> list[int]:
    """Ids of control tokens: by their type, and those that begin or end something."""
    by_type = np.flatnonzero(np.isin(types, CONTROL)).tolist()
    return sorted({*by_type, *(i for i in map(ids.get, EDGES) if i is not None)})


def _refuse_written(
    header: Header, control: Sequence[str], merges: Sequence[tuple[str, str]], rule: Splitting
) -> None:
    """No text that a person writes may come out as a control token: not by a merge, not whole."""
    made = {first + second for first, second in merges}
    alphabet, split = set(pre_tokenizer("gpt-2").alphabet()), pre_tokenizer(rule)
    decoder = decoders.ByteLevel()
    for token in control:
        writable = len(token) == 1 and token in alphabet
        if rule in WHOLE_WORDS and alphabet.issuperset(token):
            words = [word for word, _ in split.pre_tokenize_str(decoder.decode([token]))]
            writable = writable or words == [token]
        if token in made or writable:
            what = f"the control token {token!r:.60} would come out of plain text"
            raise _bad(header, "token_type", what, "use another file of the model")


def _backend(
    tokens: Sequence[str], merges: list[tuple[str, str]], rule: Splitting
) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    whole = rule in WHOLE_WORDS
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    backend.pre_tokenizer = pre_tokenizer(rule)
    backend.decoder = decoders.ByteLevel()
    return backend


def _config(header: Header, tokens: Sequence[str], ids: dict[str, int | None]) -> dict[str, Any]:
    """What `tokenizer_config.json` will say."""
    named = {NAMES[key]: tokens[i] for key, i in ids.items() if key in NAMES and i is not None}
    template = header.get("tokenizer.chat_template", str)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(sorted(named.items())),
        **({} if template is None else {"chat_template": template}),
        "clean_up_tokenization_spaces": False,
    }


def _post_processor(
    header: Header,
    config: dict[str, Any],
    tokens: Sequence[str],
    ids: dict[str, int | None],
    rule: Splitting | None,
) -> Any:
    """What goes around a text on its own, as the file wants it; `rule` is of byte-level BPE."""
    adds = rule is None or rule in ADDS_BOS
    wanted = {
        "bos_token_id": header.get(f"{KEY}add_bos_token", bool, adds),
        "eos_token_id": header.get(f"{KEY}add_eos_token", bool, False),
    }
    around = {key: ids[key] for key, wish in wanted.items() if wish and ids[key] is not None}
    own = [processors.ByteLevel(trim_offsets=False)] if rule else []
    if not around:
        return own[0] if own else None
    first, last = (config[NAMES[key]] if key in around else None for key in wanted)
    single = [part for part in (first, "$A", last) if part is not None]
    try:
        template = processors.TemplateProcessing(
            single=single, special_tokens=[(tokens[i], i) for i in around.values() if i is not None]
        )
    except ValueError as error:  # a token that the template's own syntax takes for something else
        what = f"{single} cannot stand around a text ({error})"
        raise _bad(header, "add_bos_token", what) from error
    return processors.Sequence([*own, template]) if own else template
