"""Prompts: what a request hands in, as token ids that fit the model; checked before any pass."""

from typing import Any

from stemma.core.errors import ModelError, UsageError
from stemma.data.flaws import Flaw
from stemma.data.jsonl import check_text, kind_of
from stemma.data.messages import UNLIMITED, parse_messages
from stemma.infer.chat import to_be_answered
from stemma.infer.generate import prompt_ids
from stemma.serve.engine import Served
from stemma.serve.refusal import Refusal, of_flaw
from stemma.serve.requests import MOST_CHOICES

GLANCE = 16  # characters a place of the context that are encoded to see that a text is too long


def chat_prompt(served: Served, messages: Any) -> list[int]:
    """Ids of a conversation up to where the assistant goes on. Raises Refusal."""
    if served.renderer is None:
        what = f"{served.name} has no chat template; use /v1/completions"
        raise Refusal(400, what, param="model", code="no_chat_template")
    try:
        told = to_be_answered(parse_messages(as_known(messages)))
        if len(told) > served.context:  # each has a token at least
            raise too_long(served, f"at least {len(told)}", "messages")
        for message in told:
            require_possible(served, message.content, "messages")
        ids = served.renderer.prompt(told)
    except Flaw as flaw:
        raise of_flaw(flaw) from flaw
    except ModelError as error:  # the template, not the server, is at fault
        raise Refusal(400, f"the chat template failed: {error.what}", param="messages") from error
    require_room(served, ids, "messages")
    return ids


def as_known(messages: Any) -> Any:
    """Messages with OpenAI's newer name of the system's role as the templates know it."""
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "role": "system"}
        if isinstance(message, dict) and message.get("role") == "developer"
        else message
        for message in messages
    ]


def completion_prompts(served: Served, prompt: Any, each: int) -> list[list[int]]:
    """Ids of every prompt of a completion, `each` times in a row. Raises Refusal.

    A text may be empty: it then starts where a document starts. A list of ids may not.
    """
    asked = one_or_more(prompt)
    if len(asked) * each > MOST_CHOICES:
        what = (
            f"{len(asked) * each} answers are asked for; at most {MOST_CHOICES} are given at once"
        )
        raise Refusal(400, what, param="prompt" if each == 1 else "n")
    found = [ids_of(served, one) for one in asked]
    for ids in found:
        require_room(served, ids, "prompt")
    return [ids for ids in found for _ in range(each)]


def one_or_more(prompt: Any) -> list[Any]:
    """The prompts of a request: a text or ids alone are one. Raises Refusal."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list):
        raise Refusal(400, f"expected text or token ids, got {kind_of(prompt)}", param="prompt")
    if not prompt:
        raise Refusal(400, "the prompt is an empty list", param="prompt")
    return [prompt] if isinstance(prompt[0], int) else prompt


def ids_of(served: Served, prompt: Any) -> list[int]:
    """Ids of one prompt. Raises Refusal."""
    if isinstance(prompt, str):
        try:
            text = check_text(prompt, "prompt", UNLIMITED)
            require_possible(served, text, "prompt")
            return prompt_ids(served.tokenizer, text)
        except Flaw as flaw:
            raise of_flaw(flaw) from flaw
        except UsageError as error:
            raise Refusal(400, error.what, param="prompt") from error
    if not isinstance(prompt, list):
        raise Refusal(400, f"expected text or token ids, got {kind_of(prompt)}", param="prompt")
    if not prompt:
        raise Refusal(400, "a list of token ids is empty", param="prompt")
    size = served.network.config.vocab_size
    wrong = next((t for t in prompt if type(t) is not int or not 0 <= t < size), None)
    if wrong is not None:
        what = f"{wrong!r:.40} is no token id of this model; they are 0 to {size - 1}"
        raise Refusal(400, what, param="prompt")
    return prompt


def require_possible(served: Served, text: str, param: str) -> None:
    """Refuse a text that cannot fit by its beginning alone: encoding all of it takes seconds.

    Twice the context is far from where the cut could make a difference.
    """
    start = GLANCE * served.context
    if len(text) > start and len(served.tokenizer.encode(text[:start])) > 2 * served.context:
        raise too_long(served, f"more than {2 * served.context}", param)


def require_room(served: Served, ids: list[int], param: str) -> None:
    """Refuse a prompt that leaves no room."""
    if len(ids) >= served.context:
        raise too_long(served, str(len(ids)), param)


def too_long(served: Served, found: str, param: str) -> Refusal:
    """The refusal of a prompt that does not fit."""
    have = "the prompt has" if param == "prompt" else f"the {param} have"
    what = f"the model's context is {served.context} tokens and {have} {found}; shorten it"
    return Refusal(400, what, param=param, code="context_length_exceeded")


def require_most(served: Served, most: int | None, param: str) -> None:
    """Refuse a limit on answers that the model cannot have."""
    if most is not None and most > served.context:
        what = f"{param} ({most}) is more than the model's context of {served.context}"
        raise Refusal(400, what, param=param)
