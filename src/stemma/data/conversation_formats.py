"""The forms in which people write down examples, told apart by their keys.

    messages            {"messages": [{"role": "user", "content": "…"}, …], "tools": […]}
    sharegpt            {"conversations": [{"from": "human", "value": "…"}, …], "system": "…"}
    alpaca              {"instruction": "…", "input": "…", "output": "…", "history": [["…", "…"]]}
    prompt-completion   {"prompt": "…", "completion": "…"}, or lists of messages for both
    dialogues           {"turns": ["…", "…"]}: user and assistant in turns

All become the same conversations. An `input` follows its instruction after an empty line; no other
text is added. A list of messages may also be called "conversation" or "conversations", or stand
alone; "context" and "response" are read as "input" and "output".
"""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from stemma.core.errors import nearest, printable
from stemma.data.flaws import Flaw
from stemma.data.jsonl import kind_of
from stemma.data.messages import (
    Conversation,
    Message,
    Role,
    check_order,
    entries,
    parse_calls,
    parse_content,
    parse_message,
    parse_messages,
    parse_tools,
)

FormatName = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "dialogues"]
ConversationFormat = Annotated[
    Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "dialogues"],
    Field(description="how the examples are written; auto: told from the keys, file by file"),
]

FORMATS: tuple[FormatName, ...] = get_args(FormatName)
LISTS = ("messages", "conversations", "conversation")  # names of a list of messages
COLUMNS = frozenset(
    "messages conversations conversation turns tools system instruction input context "
    "output response history prompt completion".split()
)
SPEAKERS: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
}


def as_object(value: Any) -> dict[str, Any]:
    """An entry as its keys that say something; a bare list gets the key it lacks. Raises Flaw."""
    if isinstance(value, list):
        return {"turns" if value and isinstance(value[0], str) else "messages": value}
    if not isinstance(value, dict):
        raise Flaw(f"expected an object, got {kind_of(value)}", missing_key=True)
    return {key: inner for key, inner in value.items() if inner is not None}


def detect(entry: dict[str, Any]) -> FormatName | None:
    """The format of an entry by its keys, or None."""
    name = next((name for name in LISTS if name in entry), None)
    if name:
        first = entry[name][0] if isinstance(entry[name], list) and entry[name] else None
        if isinstance(first, dict) and ("from" in first or "role" in first):
            return "sharegpt" if "from" in first else "messages"
        if isinstance(first, str):
            return "dialogues"
        return "sharegpt" if name == "conversations" else "messages"
    if "turns" in entry:
        return "dialogues"
    if "instruction" in entry:
        return "alpaca"
    return "prompt-completion" if entry.keys() >= {"prompt", "completion"} else None


def convert(entry: dict[str, Any], form: FormatName) -> Conversation:
    """The conversation of an entry that is written in this format. Raises Flaw."""
    return CONVERT[form](entry)


def seen(entry: dict[str, Any]) -> str:
    """The keys of an entry in words: "(keys: id, text)"."""
    return f"(keys: {', '.join(printable(key) for key in list(entry)[:8]) or 'none'})"


def required(entry: dict[str, Any], names: Sequence[str], form: FormatName) -> str:
    """The first of these names that is a key of the entry. Raises Flaw where none is."""
    for name in names:
        if name in entry:
            return name
    other = detect(entry)
    what = f"no key {names[0]!r} of the format {form} {seen(entry)}"
    if other and other != form:
        fix = f"it looks like {other}: give each format a file of its own"
    else:
        fix = "add it, or set format to the one that the file has"
    raise Flaw(what, fix=fix, missing_key=True)


def from_messages(entry: dict[str, Any]) -> Conversation:
    """Roles and contents as the chat interfaces have them."""
    name = required(entry, LISTS, "messages")
    messages = with_system(entry, parse_messages(entry[name], name))
    return Conversation(messages, parse_tools(entry.get("tools")))


def from_sharegpt(entry: dict[str, Any]) -> Conversation:
    """Speakers by name; a call of a function is a turn of its own, written as JSON."""
    name = required(entry, ("conversations", "conversation", "messages"), "sharegpt")
    messages = tuple(
        turn_message(turn, f"{name}[{index}]")
        for index, turn in enumerate(entries(entry[name], name))
    )
    check_order(messages, name, "from")
    messages = with_system(entry, messages)
    return Conversation(messages, parse_tools(entry.get("tools")))


def turn_message(turn: Any, key: str) -> Message:
    """A message of {"from", "value"}. Raises Flaw."""
    if not isinstance(turn, dict):
        what = f"expected an object with from and value, got {kind_of(turn)}"
        raise Flaw(what, key=key, fix='write {"from": "human", "value": "…"}')
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        shown = repr(printable(speaker)) if isinstance(speaker, str) else kind_of(speaker)
        fix = nearest(speaker if isinstance(speaker, str) else "", SPEAKERS)
        raise Flaw(f"unknown speaker {shown}", key=f"{key}.from", fix=fix)
    value, where = turn.get("value"), f"{key}.value"
    if speaker == "function_call":
        return Message("assistant", "", parse_calls(listed(value, where), where))
    return Message(SPEAKERS[speaker], parse_content(value, where))


def listed(value: Any, key: str) -> Any:
    """Calls written as JSON, one or a list of them, as a list. Raises Flaw."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            fix = 'write {"name": "…", "arguments": {…}}'
            raise Flaw("is no JSON", key=key, fix=fix) from error
    return value if isinstance(value, list) and value else [value]


def with_system(entry: dict[str, Any], messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages after a system message that stands under a key of its own. Raises Flaw."""
    system = parse_content(entry.get("system", ""), "system")
    if not system:
        return messages
    if messages[0].role == "system":
        raise Flaw("a second system message", key="system", fix="join the two")
    return (Message("system", system), *messages)


def from_alpaca(entry: dict[str, Any]) -> Conversation:
    """An instruction, what it is about, and the answer; earlier pairs come before."""
    asked = parse_content(entry[required(entry, ("instruction",), "alpaca")], "instruction")
    about = next((name for name in ("input", "context") if name in entry), None)
    if about and (more := parse_content(entry[about], about)):
        asked = f"{asked}\n\n{more}" if asked else more
    answer = required(entry, ("output", "response"), "alpaca")
    messages = [*earlier(entry.get("history", [])), Message("user", asked)]
    messages.append(Message("assistant", parse_content(entry[answer], answer)))
    return Conversation(with_system(entry, tuple(messages)))


def earlier(history: Any) -> list[Message]:
    """The messages of [["question", "answer"], …]. Raises Flaw."""
    if not isinstance(history, list):
        raise Flaw(f"expected a list of pairs, got {kind_of(history)}", key="history")
    messages = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            fix = 'write ["question", "answer"]'
            raise Flaw("expected a question and its answer", key=f"history[{index}]", fix=fix)
        messages.append(Message("user", parse_content(pair[0], f"history[{index}][0]")))
        messages.append(Message("assistant", parse_content(pair[1], f"history[{index}][1]")))
    return messages


def from_prompt(entry: dict[str, Any]) -> Conversation:
    """A prompt and its completion, each a text or a list of messages."""
    form: FormatName = "prompt-completion"
    for name in ("prompt", "completion"):
        required(entry, (name,), form)
    asked = side(entry["prompt"], "prompt", "user")
    messages = asked + side(entry["completion"], "completion", "assistant")
    check_order(messages, "prompt+completion")
    messages = with_system(entry, messages)
    return Conversation(messages, parse_tools(entry.get("tools")))


def side(value: Any, key: str, role: Role) -> tuple[Message, ...]:
    """One side of a prompt and its completion. Raises Flaw."""
    if not isinstance(value, list):
        return (Message(role, parse_content(value, key)),)
    return tuple(
        parse_message(entry, f"{key}[{index}]") for index, entry in enumerate(entries(value, key))
    )


def from_dialogue(entry: dict[str, Any]) -> Conversation:
    """Texts that take turns; the user begins."""
    name = required(entry, ("turns", *LISTS), "dialogues")
    texts = [
        parse_content(text, f"{name}[{index}]")
        for index, text in enumerate(entries(entry[name], name))
    ]
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Conversation(with_system(entry, messages))


CONVERT: dict[FormatName, Callable[[dict[str, Any]], Conversation]] = {
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "alpaca": from_alpaca,
    "prompt-completion": from_prompt,
    "dialogues": from_dialogue,
}
