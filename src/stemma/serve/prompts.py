"""Prompts: what a request hands in, as token ids that fit the model; checked before any pass."""

from typing import Any

from stemma.core.errors import ModelError, UsageError
from stemma.data.flaws import Flaw
from stemma.data.jsonl import check_text, kind_of
from stemma.data.messages import parse_messages
from stemma.infer.chat import to_be_answered
from stemma.infer.generate import prompt_ids
from stemma.serve.engine import Served
from stemma.serve.refusal import Refusal, of_flaw
from stemma.serve.requests import MOST_CHOICES

UNLIMITED = 1 << 62  # bytes of a text: the body is limited already


def chat_prompt(served: Served, messages: Any, most: int | None) -> list[int]:
    """Ids of a conversation up to where the assistant goes on. Raises Refusal."""
    if served.renderer is None:
        what = f"{served.name} has no chat template; use /v1/completions"
        raise Refusal(400, what, param="model", code="no_chat_template")
    try:
        told = to_be_answered(parse_messages(as_known(messages)))
        ids = served.renderer.prompt(told)
    except Flaw as flaw:
        raise of_flaw(flaw) from flaw
    except ModelError as error:  # the template, not the server, is at fault
        raise Refusal(400, f"the chat template failed: {error.what}", param="messages") from error
    require_room(served, ids, most, "messages")
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


def completion_prompts(served: Served, prompt: Any, each: int, most: int | None) -> list[list[int]]:
    """Ids of every prompt of a completion, `each` times in a row. Raises Refusal.

    A text may be empty: it then starts where a document starts. A list of ids may not.
    """
    found = [ids_of(served, one) for one in one_or_more(prompt)]
    if len(found) * each > MOST_CHOICES:
        what = f"{len(found)} prompts with {each} answers each are more than {MOST_CHOICES}"
        raise Refusal(400, what, param="prompt" if each == 1 else "n")
    for ids in found:
        require_room(served, ids, most, "prompt")
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
            return prompt_ids(served.tokenizer, check_text(prompt, "prompt", UNLIMITED))
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


def require_room(served: Served, ids: list[int], most: int | None, param: str) -> None:
    """Refuse a prompt that leaves no room, and answers longer than the model can have."""
    context = served.context
    if len(ids) >= context:
        what = f"the model's context is {context} tokens and the {param} have {len(ids)}"
        if param == "prompt":
            what = f"the model's context is {context} tokens and the prompt has {len(ids)}"
        raise Refusal(400, f"{what}; shorten it", param=param, code="context_length_exceeded")
    if most is not None and most > context:
        what = f"max_tokens ({most}) is more than the model's context of {context}"
        raise Refusal(400, what, param="max_tokens")
