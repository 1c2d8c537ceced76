"""Training a byte-level BPE tokenizer (arXiv:1508.07909; on bytes as in GPT-2, section 2.2).

Bytes are the alphabet, so every text round-trips exactly and nothing is unknown. The splitting
rules are those that llama.cpp knows by name; a tokenizer with another rule could not be exported
to GGUF without giving other ids.
"""

from collections.abc import Iterable
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from stemma.core.errors import DataError, UsageError
from stemma.data.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
Splitting = Literal["gpt-2", "smollm", "llama-bpe", "qwen2"]

LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2_PATTERN = LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # one digit at a time
PATTERNS = {"llama-bpe": LLAMA_3_PATTERN, "qwen2": QWEN_2_PATTERN}


def pre_tokenizer(splitting: Splitting) -> Any:
    """The rule that cuts text into words before merging, under its name in llama.cpp."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if splitting == "gpt-2":
        return words
    if splitting == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    split = pre_tokenizers.Split(Regex(PATTERNS[splitting]), behavior="isolated")
    plain_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, plain_bytes])


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, splitting: Splitting = "gpt-2"
) -> Tokenizer:
    """Learn merges from texts; the result has one special token, which opens and ends documents.

    A small corpus may yield fewer entries than asked for. Raises UsageError for a vocabulary that
    cannot hold the 256 bytes and the special token, DataError where there is no text.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        smallest = len(alphabet) + 1
        raise UsageError(
            f"vocab_size ({vocab_size}) is too small for bytes",
            fix=f"use at least {smallest}",
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer(splitting)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    seen = False

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield text

    backend.train_from_iterator(counted(), trainer=trainer)
    if not seen:
        raise DataError("no text to train a tokenizer on", fix="check the corpus stage's inputs")
    end_id = backend.token_to_id(END_OF_TEXT)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end_id)]
            ),
        ]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(backend, config)
