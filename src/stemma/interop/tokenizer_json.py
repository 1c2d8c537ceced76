"""The `tokenizer.json` of a Hugging Face folder: checked entry by entry before it is believed.

The `tokenizers` library takes a vocabulary in which two words share an id, ids that no word has,
and an added token under an id that it then does not get. Each of these trains, and each gives text
that is not what was meant. Two rules of ours come on top: the tokens that the settings name for
the beginning and the end of a text are special ones, whatever their entry says; and no plain text
may come out as a special token.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from stemma.core.errors import ModelError
from stemma.data.tokenizer import SPECIALS, Tokenizer, special_text
from stemma.interop.json_file import DAMAGED, parse_object, read_bounded

EDGES = ("bos_token", "eos_token")
UNKNOWN = "unk_token"  # the one special token that plain text is meant to come out as


def build_tokenizer(path: Path, config: dict[str, Any], places: Mapping[str, Path]) -> Tokenizer:
    """The tokenizer of `tokenizer.json` with the settings of `tokenizer_config.json`.

    `places` says which file names each special token. Raises ModelError that names the file and
    the entry for anything that does not fit.
    """
    raw = read_bounded(path)
    content = parse_object(raw, place=path)
    words = _words(content, path)
    _check_ids(words, path)
    pairs, prefix = _pairs(content["model"], path), _prefix(content["model"], path)
    made = joined(pairs, prefix)
    _check_merges(pairs, made, prefix, words, path)
    _check_around(content.get("post_processor"), words, path)
    named = dict(_named(config, words, places))
    if _mark(content, [named[role] for role in EDGES if role in named], words):
        raw = json.dumps(content, ensure_ascii=False).encode()
    tokenizer = Tokenizer.from_files(raw.decode(), config, place=path)
    _refuse_written(tokenizer, made, named.get(UNKNOWN), path)
    return tokenizer


def _bad(path: Path, key: str, what: str, fix: str = DAMAGED) -> ModelError:
    return ModelError(what, place=f"{path}: {key}", fix=fix)


def _words(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Every word with its id, those of the model and those added."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise _bad(path, "model", f"expected an object, got {type(model).__name__}")
    words = _listed(model.get("vocab"), path)
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise _bad(path, "added_tokens", f"expected a list, got {type(added).__name__}")
    for index, entry in enumerate(added):
        key = f"added_tokens[{index}]"
        word, number = _added(entry, key, path)
        known = words.setdefault(word, number)
        if known != number:
            raise _bad(path, key, f"{word!r:.60} has the id {number} here and {known} before")
    return words


def _listed(vocabulary: Any, path: Path) -> dict[str, int]:
    """The model's own words: an object of ids, or a list of words with their scores."""
    if isinstance(vocabulary, dict):
        for word, number in vocabulary.items():
            if type(number) is not int or number < 0:
                what = f"{word!r:.60} has the id {number!r:.60}, wanted a whole number"
                raise _bad(path, "model.vocab", what)
        return dict(vocabulary)
    if not isinstance(vocabulary, list):
        raise _bad(path, "model.vocab", "expected words with ids or with scores")
    words: dict[str, int] = {}
    for number, entry in enumerate(vocabulary):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise _bad(path, f"model.vocab[{number}]", "expected a word and its score")
        if words.setdefault(entry[0], number) != number:
            what = f"{entry[0]!r:.60} has the ids {words[entry[0]]} and {number}"
            raise _bad(path, "model.vocab", what)
    return words


def _added(entry: Any, key: str, path: Path) -> tuple[str, int]:
    word = entry.get("content") if isinstance(entry, dict) else None
    number = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(word, str) or not word or type(number) is not int or number < 0:
        raise _bad(path, key, "expected a token with content and id")
    return word, number


def _check_ids(words: Mapping[str, int], path: Path) -> None:
    """Ids count from 0, each once."""
    owners: dict[int, str] = {}
    for word, number in words.items():
        other = owners.setdefault(number, word)
        if other != word:
            what = f"{other!r:.60} and {word!r:.60} both have the id {number}"
            raise _bad(path, "model.vocab", what)
    gap = next((number for number in range(len(owners)) if number not in owners), None)
    if gap is not None:
        what = f"no token has the id {gap}, but there are ids up to {max(owners)}"
        raise _bad(path, "model.vocab", what)


def _check_merges(
    pairs: Sequence[Sequence[str]],
    made: Set[str],
    prefix: str,
    words: Mapping[str, int],
    path: Path,
) -> None:
    """A merge joins two words of the vocabulary to a third."""
    odd = next((second for _, second in pairs if not second.startswith(prefix)), None)
    if odd is not None:
        key, what = "model.continuing_subword_prefix", f"{prefix!r:.40} does not begin {odd!r:.60}"
        raise _bad(path, key, what)
    parts = {first for first, _ in pairs} | {second for _, second in pairs}
    if words.keys() >= parts | made:
        return
    for index, pair in enumerate(pairs):
        for part in (*pair, *joined([pair], prefix)):
            if part not in words:
                what = f"{pair[0]!r:.40} and {pair[1]!r:.40} need the token {part!r:.60}"
                raise _bad(path, f"model.merges[{index}]", f"{what}, which is not there")


def joined(pairs: Iterable[Sequence[str]], prefix: str) -> set[str]:
    """What merges make: the mark of a word that goes on stays out of its middle."""
    return {first + second.removeprefix(prefix) for first, second in pairs}


def _prefix(model: Mapping[str, Any], path: Path) -> str:
    """The mark of a word that goes on, "" in most tokenizers."""
    found = model.get("continuing_subword_prefix") or ""
    if not isinstance(found, str):
        what = f"expected text, got {type(found).__name__}"
        raise _bad(path, "model.continuing_subword_prefix", what)
    return found


def _pairs(model: Mapping[str, Any], path: Path) -> list[list[str]]:
    """The merges of either form: "a b" in older files, ["a", "b"] in newer ones."""
    merges = model.get("merges") or []
    if not isinstance(merges, list):
        raise _bad(path, "model.merges", f"expected a list, got {type(merges).__name__}")
    pairs = [entry.split(" ") if type(entry) is str else entry for entry in merges]
    for index, pair in enumerate(pairs):
        if (
            type(pair) is not list
            or len(pair) != 2
            or not _is_word(pair[0])
            or not _is_word(pair[1])
        ):
            what = f"{merges[index]!r:.60} is no pair of tokens"
            raise _bad(path, f"model.merges[{index}]", what)
    return pairs


def _is_word(value: Any) -> bool:
    return type(value) is str and value != ""


def _check_around(processor: Any, words: Mapping[str, int], path: Path) -> None:
    """What is put around a text are tokens of the vocabulary, under their own ids."""
    if not isinstance(processor, dict):
        return
    for part in _entries(processor, "processors"):
        _check_around(part, words, path)
    if processor.get("type") != "TemplateProcessing":
        return
    tokens = processor.get("special_tokens")
    known = tokens if isinstance(tokens, dict) else {}
    for piece in [*_entries(processor, "single"), *_entries(processor, "pair")]:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        if special is not None and (not isinstance(name, str) or name not in known):
            raise _bad(path, "post_processor", f"{name!r:.60} is not among its special_tokens")
    for name, entry in known.items():
        ids = entry.get("ids") if isinstance(entry, dict) else None
        if ids is None or ids != [words.get(str(w), -1) for w in _entries(entry, "tokens")]:
            what = f"{name!r:.60} has the ids {ids!r:.60}, which the vocabulary does not give it"
            raise _bad(path, "post_processor", what)


def _entries(content: Mapping[str, Any], key: str) -> list[Any]:
    """A list of a part of the file, empty where it is none: the library then says what it is."""
    found = content.get(key)
    return found if isinstance(found, list) else []


def _named(
    config: Mapping[str, Any], words: Mapping[str, int], places: Mapping[str, Path]
) -> Iterator[tuple[str, str]]:
    """The special tokens that the settings name, by role."""
    for role in SPECIALS:
        entry = config.get(role)
        if entry is None:
            continue
        word, place = special_text(entry), f"{places[role]}: {role}"
        if word is None:
            what = f"expected the text of a token, got {entry!r:.60}"
            raise ModelError(what, place=place, fix="correct it, or leave it out")
        if word not in words:
            what = f"{word!r:.60} is not in the vocabulary of tokenizer.json"
            raise ModelError(what, place=place, fix="name a token that is there, or leave it out")
        yield role, word


def _mark(content: dict[str, Any], edges: Iterable[str], words: Mapping[str, int]) -> bool:
    """Make tokens special ones, as transformers does; text then cannot spell them.

    Returns whether anything had to change.
    """
    added = {entry["content"]: entry for entry in content.get("added_tokens") or []}
    wanted = [word for word in edges if added.get(word, {}).get("special") is not True]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for word in wanted:
        fresh = {"id": words[word], "content": word, **flags}
        added[word] = {**added.get(word, fresh), "special": True}
    content["added_tokens"] = sorted(added.values(), key=lambda entry: int(entry["id"]))
    return bool(wanted)


def _refuse_written(tokenizer: Tokenizer, made: Set[str], unknown: str | None, path: Path) -> None:
    """No text that a person writes may come out as a control token: not by a merge, not whole."""
    added = tokenizer.backend.get_added_tokens_decoder()
    control = {i: token.content for i, token in added.items() if token.special}
    for number, word in control.items():
        spelled = {word, tokenizer.backend.decode([number], skip_special_tokens=False)}
        texts = [*spelled, *(f"a {text} a" for text in spelled)]
        written = any(number in ids for ids in tokenizer.encode_batch(texts))
        if word != unknown and (word in made or written):
            what = f"the control token {word!r:.60} would come out of plain text"
            raise _bad(path, f"added_tokens: {number}", what, "use another tokenizer")
