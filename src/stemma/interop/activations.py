"""The names that Hugging Face's configs have for the functions between an MLP's two layers.

Several names mean one formula. What is written is the first name of each.
"""

from typing import Any

SPELLINGS: dict[str, tuple[str, ...]] = {  # ours: theirs
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": (
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "gelu_accurate",
    ),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
}


def read_activation(key: str, word: Any) -> str:
    """Our name of the function that `word` names; ValueError with `key` where there is none."""
    for ours, theirs in SPELLINGS.items():
        if word in theirs:
            return ours
    known = ", ".join(word for words in SPELLINGS.values() for word in words)
    raise ValueError(f"{key} is {word!r}, supported are {known}")


def write_activation(name: str) -> str:
    """Hugging Face's first name for a function of ours."""
    return SPELLINGS[name][0]
