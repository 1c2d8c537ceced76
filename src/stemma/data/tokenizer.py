"""The tokenizer: a `tokenizers` backend, the special ids, the text of the chat template.

Text that a person wrote can never become a control token here: `encode` treats strings such as
"<|endoftext|>" as plain characters. The backend forgets that setting when it is saved, so it is
set again at every load. Control ids enter a sequence only by their number.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

from stemma.core.errors import ModelError
from stemma.core.files import sha256_json

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Text to ids and back.

    Attributes:
        bos_id, eos_id, pad_id: ids of the special tokens, None where the tokenizer has none.
        adds_bos: whether a text on its own begins with `bos_id`.
        template: the Jinja text of the chat template, None where there is none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.config = backend, config
        self.bos_id, self.eos_id, self.pad_id = (self._id(name) for name in SPECIALS[:3])
        template = config.get("chat_template")
        self.template: str | None = template if isinstance(template, str) else None
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

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; no special token is added and none is recognised."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

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


def special_text(entry: Any) -> str | None:
    """The word of a special token, which files store as a string or as an object."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None
