"""Requests: what may be asked, checked key by key before any work is done.

A key is honoured or refused, never passed over in silence. The exceptions are a few that cannot
change an answer (`PASSED_OVER`), and keys of OpenAI's at the value that asks for nothing. Keys that
OpenAI does not have (`top_k`, `min_p`, `repetition_penalty`) are those of `Sampling`.
"""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stemma.core.config import StrictModel
from stemma.core.errors import nearest
from stemma.infer.sampling import Sampling
from stemma.serve.refusal import Refusal, of_validation

MOST_CHOICES = 16
MOST_STOPS = 16
LONGEST_STOP = 256  # characters
SEEDS = 2**63
UNLIMITED = 1 << 62  # tokens of an answer: the context ends it
COMPLETION_TOKENS = 16  # of a completion that says nothing, as with OpenAI
PASSED_OVER = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
    }
)  # none of them can change an answer of this server


def nothing(value: Any) -> Any:
    """Refuse a value that asks for something that this server has no code for."""
    if value:
        raise ValueError("is not supported by this server; leave it out")
    return value


def plain_text(value: Any) -> Any:
    """The one form of answer that there is."""
    if value not in (None, {"type": "text"}):
        raise ValueError('only {"type": "text"} is supported by this server')
    return value


def only(*harmless: str) -> AfterValidator:
    """A check that takes OpenAI's words for what this server does anyway, and no others."""

    def check(value: Any) -> Any:
        if value is not None and value not in harmless:
            raise ValueError("is not supported by this server; leave it out")
        return value

    return AfterValidator(check)


def stops(value: Any) -> tuple[str, ...] | None:
    """The strings before which a text ends: one, or a list of them."""
    found = [value] if isinstance(value, str) else value
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > MOST_STOPS:
        raise ValueError(f"expected a text, or a list of at most {MOST_STOPS}")
    if not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in found):
        raise ValueError(f"each is a text of 1 to {LONGEST_STOP} characters")
    if any("\ud800" <= character <= "\udfff" for one in found for character in one):
        raise ValueError("a text cannot hold a lone surrogate")
    return tuple(found)


Stream = Annotated[bool | None, Field(default=None)]
Temperature = Annotated[float | None, Field(default=None, ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float | None, Field(default=None, gt=0, le=1)]
TopK = Annotated[int | None, Field(default=None, ge=0, lt=SEEDS)]
MinP = Annotated[float | None, Field(default=None, ge=0, lt=1)]
RepetitionPenalty = Annotated[float | None, Field(default=None, gt=0, le=100)]
Choices = Annotated[int | None, Field(default=None, ge=1, le=MOST_CHOICES)]
Seed = Annotated[int | None, Field(default=None, ge=-SEEDS, lt=SEEDS)]
MaxTokens = Annotated[int | None, Field(default=None, ge=1)]
Stop = Annotated[Any, Field(default=None), AfterValidator(stops)]
Nothing = Annotated[Any, Field(default=None), AfterValidator(nothing)]
NoChoice = Annotated[Any, Field(default=None), only("none", "auto")]


class StreamOptions(StrictModel):
    """What a stream says beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # hides lengths from a network: passed over here


def require_stream(stream: bool | None, options: StreamOptions | None) -> None:
    """Refuse options of a stream where there is none: for use in validators."""
    if options is not None and not stream:
        raise ValueError("stream_options needs stream: true")


class ChatRequest(StrictModel):
    """The body of a chat completion. `messages` is looked at by the chat template's own checks."""

    model: str
    messages: Any
    stream: Stream
    stream_options: StreamOptions | None = None
    n: Choices
    temperature: Temperature
    top_p: TopP
    top_k: TopK
    min_p: MinP
    repetition_penalty: RepetitionPenalty
    seed: Seed
    stop: Stop
    max_tokens: MaxTokens
    max_completion_tokens: MaxTokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(default=None, ge=0, le=20)]
    frequency_penalty: Nothing
    presence_penalty: Nothing
    logit_bias: Nothing
    tools: Nothing
    functions: Nothing
    function_call: NoChoice
    tool_choice: NoChoice
    response_format: Annotated[Any, Field(default=None), AfterValidator(plain_text)]
    modalities: Annotated[list[str] | None, Field(default=None)]
    audio: Nothing
    prediction: Nothing
    reasoning_effort: NoChoice
    verbosity: Annotated[Any, Field(default=None), only("medium")]
    web_search_options: Nothing

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        require_stream(self.stream, self.stream_options)
        if self.modalities not in (None, ["text"]):
            raise ValueError('modalities: only ["text"] is supported by this server')
        return self

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most, by either of its names."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def most_key(self) -> str:
        """The name that was used for it."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def best(self) -> int:
        """Likeliest tokens to tell beside each one; -1 where none are asked for at all."""
        return (self.top_logprobs or 0) if self.logprobs else -1


class CompletionRequest(StrictModel):
    """The body of a completion. `prompt`: a text, texts, token ids, or lists of token ids."""

    model: str
    prompt: Any
    stream: Stream
    stream_options: StreamOptions | None = None
    n: Choices
    temperature: Temperature
    top_p: TopP
    top_k: TopK
    min_p: MinP
    repetition_penalty: RepetitionPenalty
    seed: Seed
    stop: Stop
    max_tokens: MaxTokens
    logprobs: Annotated[int | None, Field(default=None, ge=0, le=20)]
    frequency_penalty: Nothing
    presence_penalty: Nothing
    logit_bias: Nothing
    suffix: Nothing
    echo: Nothing
    best_of: Annotated[int | None, Field(default=None, ge=1, le=MOST_CHOICES)]

    @model_validator(mode="after")
    def _agrees(self) -> "CompletionRequest":
        require_stream(self.stream, self.stream_options)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: only as many answers as n asks for are made")
        return self

    @property
    def most(self) -> int | None:
        """Tokens of an answer at most."""
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def best(self) -> int:
        """Likeliest tokens to tell beside each one; -1 where none are asked for at all."""
        return -1 if self.logprobs is None else self.logprobs


Request = TypeVar("Request", ChatRequest, CompletionRequest)


def parse(kind: type[Request], body: Any) -> Request:
    """The request that a JSON body holds. Raises Refusal that names the key at fault."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be a JSON object")
    asked = {key: value for key, value in body.items() if key not in PASSED_OVER}
    unknown = next((key for key in asked if key not in kind.model_fields), None)
    if unknown is not None:
        shown, hint = unknown[:100], nearest(unknown[:100], kind.model_fields)
        hint = f"; {hint}" if hint.startswith("did you mean") else ""
        what = f"unknown key {shown!r}{hint}"
        raise Refusal(400, what, param=shown, code="unknown_parameter")
    try:
        return kind(**asked)
    except ValidationError as error:
        raise of_validation(error) from error


def wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    """Whether a stream is to end with the numbers of tokens."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def samplings(
    request: ChatRequest | CompletionRequest, own: Sampling, count: int, seed: int
) -> list[Sampling]:
    """How each of `count` answers is drawn: what is asked, else the model's `own` settings.

    `seed` is that of the first; the others count up. An answer without a limit may fill the
    context.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    asked = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    values = own.model_dump() | asked
    values |= {
        "stop": own.stop if request.stop is None else request.stop,
        "max_new_tokens": UNLIMITED if request.most is None else request.most,
        "logprobs": max(1, request.best) if request.best >= 0 else 0,
    }
    try:
        return [Sampling(**{**values, "seed": (seed + index) % SEEDS}) for index in range(count)]
    except ValidationError as error:
        raise of_validation(error) from error
