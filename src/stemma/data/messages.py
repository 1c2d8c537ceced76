"""Messages of a conversation: who says what, checked where they come in.

A conversation is a list of messages by four roles. A system message may only open it; a tool's
result answers a call that the assistant made just before. What is written here is what templates
see. Keys that are not named here are passed over, because data sets carry many.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from stemma.core.errors import closest, nearest, printable
from stemma.data.flaws import Flaw
from stemma.data.jsonl import check_text, kind_of

Role = Literal["system", "user", "assistant", "tool"]

ROLES: tuple[Role, ...] = get_args(Role)
DEEPEST = 64  # levels of lists and objects inside arguments and tools
UNLIMITED = 1 << 62  # bytes of one message: the reader of its line has limited it already


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant makes: a function's name and its arguments, a JSON object.

    The arguments may also be the text of that object; they are kept in the form they came in.
    """

    name: str
    arguments: Any
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `tool_call_id` belongs to a tool's result, and so, as a rule, does `name`."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The message as a template takes it: absent where there is nothing."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [
                {
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                    **({} if call.id is None else {"id": call.id}),
                }
                for call in self.tool_calls
            ]
        for key in ("tool_call_id", "name"):
            if getattr(self, key) is not None:
                found[key] = getattr(self, key)
        return found


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, and the JSON schemas of the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """{"messages", "tools"}, the latter only where there are any."""
        messages = [message.to_json() for message in self.messages]
        return {"messages": messages} | ({"tools": list(self.tools)} if self.tools else {})


def parse_conversation(value: Any) -> Conversation:
    """The conversation of {"messages": [...], "tools": [...]}, the latter if any. Raises Flaw."""
    if not isinstance(value, dict):
        raise Flaw(f"expected an object with the key 'messages', got {kind_of(value)}")
    if "messages" not in value:
        seen = ", ".join(printable(key) for key in list(value)[:8]) or "none"
        raise Flaw(f"no key 'messages' (keys: {seen})", fix="name the list of messages so")
    return Conversation(parse_messages(value["messages"]), parse_tools(value.get("tools")))


def parse_messages(value: Any, key: str = "messages") -> tuple[Message, ...]:
    """Messages of a list of objects, such as [{"role": "user", "content": "Hello"}].

    Raises Flaw for whatever is not one, with a key such as "messages[2].role".
    """
    messages = tuple(
        parse_message(entry, f"{key}[{index}]") for index, entry in enumerate(entries(value, key))
    )
    check_order(messages, key)
    return messages


def entries(value: Any, key: str) -> list[Any]:
    """A list with something in it. Raises Flaw."""
    if not isinstance(value, list):
        raise Flaw(f"expected a list, got {kind_of(value)}", key=key, fix="make it a list")
    if not value:
        raise Flaw("is empty", key=key, fix="put at least one message in")
    return value


def parse_message(value: Any, key: str) -> Message:
    """One message, looked at alone. Raises Flaw."""
    if not isinstance(value, dict):
        what = f"expected an object with role and content, got {kind_of(value)}"
        raise Flaw(what, key=key, fix='write {"role": "user", "content": "…"}')
    role = parse_role(value.get("role"), f"{key}.role")
    calls = parse_calls(value.get("tool_calls"), f"{key}.tool_calls")
    if calls and role != "assistant":
        fix = "move the calls into an assistant message"
        raise Flaw(f"a {role} message makes calls", key=f"{key}.tool_calls", fix=fix)
    return Message(
        role,
        parse_content(value.get("content"), f"{key}.content", may_lack=bool(calls)),
        calls,
        optional_text(value.get("tool_call_id"), f"{key}.tool_call_id") if role == "tool" else None,
        optional_text(value.get("name"), f"{key}.name"),
    )


def parse_role(value: Any, key: str) -> Role:
    """One of the four roles. Raises Flaw with the nearest of them."""
    for role in ROLES:
        if value == role:
            return role
    if value is None:
        raise Flaw("is missing", key=key, fix=f"add one of {', '.join(ROLES)}")
    if not isinstance(value, str):
        raise Flaw(f"expected a role, got {kind_of(value)}", key=key, fix=nearest("", ROLES))
    raise Flaw(f"unknown role {printable(value)!r}", key=key, fix=nearest(value, ROLES))


def parse_content(value: Any, key: str, *, may_lack: bool = False) -> str:
    """The text of a message; a list of text parts becomes one text, a line for each. Raises Flaw.

    `may_lack` allows none at all, as beside calls.
    """
    if isinstance(value, list):
        parts = [part_text(part, f"{key}[{index}]") for index, part in enumerate(value)]
        return "\n".join(parts)
    if value is None:
        if may_lack:
            return ""
        raise Flaw("is missing", key=key, fix='write "" if nothing is said')
    if not isinstance(value, str):
        raise Flaw(f"expected text, got {kind_of(value)}", key=key, fix="make it a string")
    return check_text(value, key, UNLIMITED)


def part_text(value: Any, key: str) -> str:
    """The text of one part of a content. Raises Flaw for pictures, sounds and the like."""
    if not isinstance(value, dict):
        what = f"expected an object with type and text, got {kind_of(value)}"
        raise Flaw(what, key=key, fix="make the whole content one string")
    if value.get("type") != "text":
        kind = printable(value.get("type"))[:40]
        raise Flaw(f"only text can be read, got type {kind}", key=f"{key}.type", fix="remove it")
    return check_text(value.get("text"), f"{key}.text", UNLIMITED)


def optional_text(value: Any, key: str) -> str | None:
    return None if value is None else check_text(value, key, UNLIMITED)


def parse_calls(value: Any, key: str) -> tuple[ToolCall, ...]:
    """The calls of a message; none where the key is absent. Raises Flaw."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Flaw(f"expected a list, got {kind_of(value)}", key=key, fix="make it a list")
    return tuple(parse_call(call, f"{key}[{index}]") for index, call in enumerate(value))


def parse_call(value: Any, key: str) -> ToolCall:
    """A call as {"name", "arguments"}, alone or under "function". Raises Flaw."""
    if not isinstance(value, dict):
        what = f"expected an object with name and arguments, got {kind_of(value)}"
        raise Flaw(what, key=key, fix='write {"name": "…", "arguments": {…}}')
    if value.get("type") not in (None, "function"):
        kind = printable(value["type"])[:40]
        raise Flaw(f"only functions are called, got {kind}", key=f"{key}.type", fix="remove it")
    inner, where = value, key
    if value.get("function") is not None:
        inner, where = value["function"], f"{key}.function"
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise Flaw("the call names no function", key=f"{where}.name", fix="name the function")
    return ToolCall(
        check_text(name, f"{where}.name", UNLIMITED),
        parse_arguments(inner.get("arguments"), f"{where}.arguments"),
        optional_text(value.get("id"), f"{key}.id"),
    )


def parse_arguments(value: Any, key: str) -> Any:
    """A JSON object or the text of one, in the form it came in; {} where absent. Raises Flaw."""
    if value is None:
        return {}
    found = value
    if isinstance(value, str):
        check_text(value, key, UNLIMITED)
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Flaw("is no JSON", key=key, fix='write {"argument": value}') from error
    if not isinstance(found, dict):
        what = f"expected an object, got {kind_of(found)}"
        raise Flaw(what, key=key, fix='write {"argument": value}')
    check_json(found, key)
    return value


def parse_tools(value: Any, key: str = "tools") -> tuple[dict[str, Any], ...]:
    """The tools that may be called: a list of JSON objects, or the text of one. Raises Flaw."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise Flaw("is no JSON", key=key, fix="write a list of objects") from error
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise Flaw(f"expected a list, got {kind_of(value)}", key=key, fix="make it a list")
    for index, tool in enumerate(value):
        if not isinstance(tool, dict):
            what = f"expected an object, got {kind_of(tool)}"
            raise Flaw(what, key=f"{key}[{index}]", fix="describe the tool by a JSON schema")
        check_json(tool, f"{key}[{index}]")
    return tuple(value)


def check_json(value: Any, key: str) -> None:
    """Refuse what JSON in UTF-8 cannot hold, and nesting that no template survives."""
    if nested_deeper(value, DEEPEST):
        raise Flaw(f"nested deeper than {DEEPEST} levels", key=key, fix="flatten it")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # a date of a table, a surrogate, an infinity
        raise Flaw(f"is no JSON: {printable(error)[:80]}", key=key, fix="write JSON") from error


def nested_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep; without recursion."""
    layer: list[Any] = [value]
    for _ in range(levels + 1):
        inside = [item for item in layer if isinstance(item, (list, dict))]
        layer = [
            item for each in inside for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not inside:
            return False
    return True


def check_order(messages: Sequence[Message], key: str, role: str = "role") -> None:
    """Refuse a system message that does not open, and a tool's result that nothing called for.

    `key` and `role` are how the file calls the list and who speaks. Raises Flaw.
    """
    called: tuple[ToolCall, ...] = ()  # by the latest message that is no tool's result
    for index, message in enumerate(messages):
        place = f"{key}[{index}]"
        if message.role == "system" and index:
            second = messages[0].role == "system"
            what = "a second system message" if second else "a system message after the beginning"
            fix = "join the two" if second else "put it first"
            raise Flaw(what, key=f"{place}.{role}", fix=fix)
        if message.role != "tool":
            called = message.tool_calls
        elif not called:
            fix = "put the assistant's message with its tool_calls before it"
            raise Flaw("a tool's result without a call", key=f"{place}.{role}", fix=fix)
        else:
            check_answers(message, called, f"{place}.tool_call_id")


def check_answers(message: Message, called: Iterable[ToolCall], key: str) -> None:
    """Refuse a result for a call that was not made; calls without ids take any. Raises Flaw."""
    known = [call.id for call in called if call.id is not None]
    given = message.tool_call_id
    if given is not None and known and given not in known:
        near = closest(given, known, likeness=0)
        raise Flaw(
            f"no call has the id {printable(given)!r}", key=key, fix=f"did you mean {near[0]}"
        )
