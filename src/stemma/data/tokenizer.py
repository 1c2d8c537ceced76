"""The tokenizer: a `tokenizers` backend, the special ids, the text of the chat template.

Text that a person wrote can never become a control token here: `encode` treats strings such as
"<|endoftext|>" as plain characters. The backend forgets that setting when it is saved, so it is
set again at every load. Control ids enter a sequence only by their number, or out of the text of
a chat template, which `encode_piece` is told apart from what people wrote.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import tokenizers

from stemma.core.errors import ModelError
from stemma.core.files import sha256_json

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")
Place = Literal["beginning", "after a token", "inside"]  # of a piece: what is before it in a text
PLACES: tuple[Place, ...] = get_args(Place)


class Tokenizer:
    """Text to ids and back.

    Attributes:
        bos_id, eos_id, pad_id: ids of the special tokens, None where the tokenizer has none.
        adds_bos: whether a text on its own begins with `bos_id`.
        template: the Jinja text of the chat template, None where there is none.
        tool_template: another one for conversations with tools, None where there is none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.config = backend, config
        self.bos_id, self.eos_id, self.pad_id = (self._id(name) for name in SPECIALS[:3])
        templates = named_templates(config.get("chat_template"))
        self.template: str | None = templates.get("default")
        self.tool_template: str | None = templates.get("tool_use")
        alone: list[int] = backend.encode("", add_special_tokens=True).ids
        self.adds_bos = self.bos_id is not None and alone[:1] == [self.bos_id]

    @classmethod
    def from_files(
        cls, tokenizer_json: str, tokenizer_config: dict[str, Any], *, place: object
    ) -> "Tokenizer":
        """Build from the texts of `tokenizer.json` and `tokenizer_config.json`.

        Raises ModelError, naming `place`, where the file is damaged or a special token is unknown.
        """
        try:
            backend = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the backend raises nothing narrower
            fix = "download or export the model again"
            raise ModelError(f"not a usable tokenizer ({error})", place=place, fix=fix) from error
        for name in SPECIALS:
            word = special_text(tokenizer_config.get(name))
            if word is not None and backend.token_to_id(word) is None:
                raise ModelError(
                    f"{name} {word!r} is not in the vocabulary",
                    place=place,
                    fix="correct tokenizer_config.json",
                )
        return cls(backend, dict(tokenizer_config))

    def _id(self, name: str) -> int | None:
        word = special_text(self.config.get(name))
        return None if word is None else self.backend.token_to_id(word)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id, so that any embedding with as many rows fits."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the content of the tokenizer, whatever its spelling on disk."""
        return sha256_json([json.loads(self.backend.to_str()), self.config])

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of the tokens that are no result of merging: control tokens and other fixed words."""
        return frozenset(self.backend.get_added_tokens_decoder())

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that steer the model and that no text of a person may yield."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no special token is added and none is recognised."""
        return ids_of(self.backend, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_template(self, text: str) -> list[int]:
        """Ids of a whole text in which control tokens are recognised, whoever wrote them."""
        return self.encode_piece(text, control=True)

    def encode_piece(self, text: str, *, control: bool, before: int | None = None) -> list[int]:
        """Ids of a piece of a text that goes on after the id `before`, None at the beginning.

        Control tokens are recognised where `control` is set. Many tokenizers put a space in front
        of a text, and some in front of what follows a control token; a piece gets it only there.
        """
        if before is None:
            return self._ids(text, control, "beginning")
        if before in self.added_ids:
            return self._ids(text, control, "after a token")
        lead = len(text)
        if control and self._backends[True, "inside"] is not self._backends[True, "after a token"]:
            lead = self._first_added(text)
        return self._ids(text[:lead], control, "inside") + self._ids(
            text[lead:], control, "after a token"
        )

    def _ids(self, text: str, control: bool, place: Place) -> list[int]:
        if not text:
            return []
        backend = self._backends[control, place]
        return ids_of(backend, text)

    def _first_added(self, text: str) -> int:
        """Where the first added token of a text begins, its length where there is none."""
        found = self._backends[True, "after a token"].encode(text, add_special_tokens=False)
        for number, (start, _) in zip(found.ids, found.offsets, strict=True):
            if number in self.added_ids:
                return int(start)
        return len(text)

    @cached_property
    def _backends(self) -> dict[tuple[bool, Place], Any]:
        """A backend for each kind of piece; most tokenizers need no more than two."""
        whole = self.backend.to_str()
        made: dict[tuple[bool, str], Any] = {(False, whole): self.backend}
        found: dict[tuple[bool, Place], Any] = {}
        for control in (False, True):
            for place in PLACES:
                spelling = at_place(whole, place)
                if (control, spelling) not in made:
                    backend = tokenizers.Tokenizer.from_str(spelling)
                    backend.encode_special_tokens = not control
                    made[control, spelling] = backend
                found[control, place] = made[control, spelling]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        return text

    def files(self) -> dict[str, str]:
        """The texts of the tokenizer's files, as a Hugging Face folder holds them."""
        config = json.dumps(self.config, indent=2, ensure_ascii=False)
        return {
            "tokenizer.json": self.backend.to_str(pretty=True) + "\n",
            "tokenizer_config.json": config + "\n",
        }


def ids_of(backend: Any, text: str) -> list[int]:
    """Ids of one text. As a batch of one, because a lone text holds up every other thread."""
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def special_text(entry: Any) -> str | None:
    """The word of a special token, which files store as a string or as an object."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def named_templates(entry: Any) -> dict[str, str]:
    """Chat templates by name; files store one text, or a list of objects with name and text."""
    if isinstance(entry, str):
        return {"default": entry}
    found = {}
    for one in entry if isinstance(entry, list) else []:
        if isinstance(one, dict) and isinstance(one.get("template"), str):
            found[str(one.get("name"))] = one["template"]
    return found


def at_place(spelling: str, place: Place) -> str:
    """The backend's JSON without the space that does not belong to a piece at this place.

    The same text where nothing is to be changed.
    """
    if place == "beginning":
        return spelling
    parts = json.loads(spelling)
    for name in ("normalizer", "pre_tokenizer"):
        changed = without_space(parts.get(name), place)
        if changed != parts.get(name):
            parts[name], spelling = changed, ""
    return spelling or json.dumps(parts, ensure_ascii=False)


def without_space(part: Any, place: Place) -> Any:
    """A normalizer or pre-tokenizer that puts no space in front of a piece at this place.

    `Prepend`, `ByteLevel` and `Metaspace` "always" put it in front of whatever follows a control
    token, `Metaspace` "first" at the beginning of the text alone.
    """
    if not isinstance(part, dict):
        return part
    kind, inside = part.get("type"), place == "inside"
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in part else "pretokenizers"
        changed = [without_space(inner, place) for inner in part[name]]
        return {**part, name: [inner for inner in changed if inner is not None]}
    if kind == "Prepend" and inside:
        return None
    if kind == "ByteLevel" and inside and part.get("add_prefix_space"):
        return {**part, "add_prefix_space": False}
    if kind == "Metaspace" and (inside or part.get("prepend_scheme") == "first"):
        return {**part, "prepend_scheme": "never"}
    return part
