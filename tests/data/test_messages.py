# ruff: noqa: E501  (tables are read by rows)
"""Messages: what is one, what is not, and where exactly it is not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.data.flaws import Flaw
from stemma.data.messages import (
    DEEPEST,
    Conversation,
    Message,
    ToolCall,
    parse_conversation,
    parse_messages,
)

ASK = {"role": "user", "content": "What is the weather?"}
CALL = {"name": "weather", "arguments": {"city": "Bern"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "a"}]}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "a"}


def refusal(messages):
    """Where and what the first flaw is, with its way out."""
    with pytest.raises(Flaw) as caught:
        parse_messages(messages)
    flaw = caught.value
    return f"{flaw.key}: {flaw.reason}; {flaw.fix}"


def turn(role, content="x", **more):
    return {"role": role, "content": content, **more}


def deep(levels):
    return {"x": deep(levels - 1)} if levels else {}


REFUSED = {
    "no list": ("hello", "messages: expected a list, got a string"),
    "an object": (ASK, "messages: expected a list, got an object"),
    "empty": ([], "messages: is empty; put at least one message in"),
    "a text": ([ASK, "hi"], "messages[1]: expected an object with role and content, got a string"),
    "misspelt role": ([ASK, turn("asistant")], "messages[1].role: unknown role 'asistant'; did you mean assistant"),
    "other role": ([turn("human")], "messages[0].role: unknown role 'human'; known: assistant, system, tool, user"),
    "control character": ([turn("us\x1ber")], r"messages[0].role: unknown role 'us\\x1ber'; did you mean user"),
    "no role": ([{"content": "x"}], "messages[0].role: is missing; add one of system, user, assistant, tool"),
    "role is a number": ([turn(7)], "messages[0].role: expected a role, got a number"),
    "two systems": ([turn("system"), turn("system")], "messages[1].role: a second system message; join the two"),
    "late system": ([ASK, turn("assistant"), turn("system")], "messages[2].role: a system message after the beginning"),
    "no content": ([{"role": "user"}], "messages[0].content: is missing"),
    "null content": ([ASK, turn("assistant", None)], "messages[1].content: is missing"),
    "no calls": ([ASK, turn("assistant", None, tool_calls=[])], "messages[1].content: is missing"),
    "number": ([turn("user", 7)], "messages[0].content: expected text, got a number"),
    "picture": ([turn("user", [{"type": "text", "text": "x"}, {"type": "image_url"}])], "messages[0].content[1].type: only text can be read, got type image_url"),
    "part is text": ([turn("user", ["x"])], "messages[0].content[0]: expected an object with type and text"),
    "part without text": ([turn("user", [{"type": "text"}])], "messages[0].content[0].text: expected a string, got null"),
    "surrogate": ([turn("user", "a\ud800")], r"messages[0].content: lone surrogate \ud800 at character 2"),
    "surrogate in name": ([turn("user", name="\udfff")], r"messages[0].name: lone surrogate \udfff"),
    "result first": ([ASK, RESULT], "messages[1].role: a tool's result without a call"),
    "result late": ([ASK, CALLS, RESULT, turn("assistant"), RESULT], "messages[4].role: a tool's result without a call"),
    "unknown id": ([ASK, CALLS, RESULT | {"tool_call_id": "b"}], "messages[2].tool_call_id: no call has the id 'b'; did you mean a"),
    "user calls": ([ASK | {"tool_calls": [CALL]}], "messages[0].tool_calls: a user message makes calls"),
    "calls no list": ([CALLS | {"tool_calls": CALL}], "messages[0].tool_calls: expected a list, got an object"),
    "call is text": ([CALLS | {"tool_calls": ["x"]}], "messages[0].tool_calls[0]: expected an object with name"),
    "no name": ([CALLS | {"tool_calls": [{"arguments": {}}]}], "messages[0].tool_calls[0].name: the call names no function"),
    "no function": ([CALLS | {"tool_calls": [CALL, {"function": "f"}]}], "messages[0].tool_calls[1].function.name: the call names"),
    "other type": ([CALLS | {"tool_calls": [CALL | {"type": "code"}]}], "messages[0].tool_calls[0].type: only functions are called, got code"),
    "id is a number": ([CALLS | {"tool_calls": [CALL | {"id": 1}]}], "messages[0].tool_calls[0].id: expected a string, got a number"),
    "arguments list": ([CALLS | {"tool_calls": [CALL | {"arguments": [1]}]}], "messages[0].tool_calls[0].arguments: expected an object, got a list"),
    "arguments no JSON": ([CALLS | {"tool_calls": [CALL | {"arguments": "{city"}]}], "messages[0].tool_calls[0].arguments: is no JSON"),
    "arguments null text": ([CALLS | {"tool_calls": [CALL | {"arguments": "null"}]}], "messages[0].tool_calls[0].arguments: expected an object, got null"),
    "arguments bytes": ([CALLS | {"tool_calls": [CALL | {"arguments": {"x": b"y"}}]}], "messages[0].tool_calls[0].arguments: is no JSON"),
    "arguments infinite": ([CALLS | {"tool_calls": [CALL | {"arguments": {"x": float("inf")}}]}], "messages[0].tool_calls[0].arguments: is no JSON"),
    "arguments surrogate": ([CALLS | {"tool_calls": [CALL | {"arguments": {"x": "\ud800"}}]}], "messages[0].tool_calls[0].arguments: is no JSON"),
    "arguments deep": ([CALLS | {"tool_calls": [CALL | {"arguments": deep(DEEPEST)}]}], f"messages[0].tool_calls[0].arguments: nested deeper than {DEEPEST} levels"),
    "arguments deep text": ([CALLS | {"tool_calls": [CALL | {"arguments": '{"x":' + "[" * 99999}]}], "messages[0].tool_calls[0].arguments: is no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_message_is_refused_at_its_key(name):
    messages, wanted = REFUSED[name]
    assert refusal(messages).startswith(wanted)


def test_roles_and_contents():
    found = parse_messages([turn("system", "Be brief."), ASK, turn("assistant", "")])
    assert found == (
        Message("system", "Be brief."),
        Message("user", "What is the weather?"),
        Message("assistant", ""),
    )


def test_text_parts_become_lines_and_other_keys_are_passed_over():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    found = parse_messages([turn("user", parts, weight=1, tool_calls=None, tool_call_id="x")])
    assert found == (Message("user", "one\ntwo"),)


@pytest.mark.parametrize(
    "call", [CALL, {"function": CALL}, {"type": "function", "function": CALL}], ids=str
)
@pytest.mark.parametrize("arguments", [{"city": "Bern", "n": [1, None]}, '{"city": "Bern"}', {}])
def test_calls_are_read_alone_or_under_function_and_arguments_keep_their_form(call, arguments):
    changed = json.loads(json.dumps(call))
    (changed.get("function") or changed)["arguments"] = arguments
    found = parse_messages([ASK, CALLS | {"tool_calls": [changed]}])
    assert found[1] == Message("assistant", "", (ToolCall("weather", arguments),))


def test_absent_arguments_are_none():
    found = parse_messages([ASK, CALLS | {"tool_calls": [{"name": "now", "arguments": None}]}])
    assert found[1].tool_calls == (ToolCall("now", {}),)


def test_several_results_answer_several_calls():
    two = CALLS | {"tool_calls": [CALL | {"id": "a"}, CALL | {"id": "b"}]}
    results = [RESULT | {"tool_call_id": "b", "name": "weather"}, RESULT]
    found = parse_messages([ASK, two, *results])
    assert [message.tool_call_id for message in found] == [None, None, "b", "a"]
    assert found[2].name == "weather"


@pytest.mark.parametrize("given", [None, "anything"])
def test_a_call_without_an_id_takes_any_result(given):
    calls = CALLS | {"tool_calls": [CALL]}
    assert len(parse_messages([ASK, calls, RESULT | {"tool_call_id": given}])) == 3


def test_a_conversation_has_messages_and_tools():
    tool = {"type": "function", "function": {"name": "weather"}}
    wanted = Conversation((Message("user", ASK["content"]),), (tool,))
    assert parse_conversation({"messages": [ASK], "tools": [tool]}) == wanted
    assert parse_conversation({"messages": [ASK], "tools": json.dumps([tool])}) == wanted
    for none in (None, [], "", "[]"):
        assert parse_conversation({"messages": [ASK], "tools": none}).tools == ()


@pytest.mark.parametrize(
    "value, key, reason",
    [
        ([], "", "expected an object with the key 'messages', got a list"),
        ({"mesages": [], "id": 1}, "", "no key 'messages' (keys: mesages, id)"),
        ({"messages": [ASK], "tools": {}}, "tools", "expected a list, got an object"),
        ({"messages": [ASK], "tools": "[{"}, "tools", "is no JSON"),
        ({"messages": [ASK], "tools": [{}, "x"]}, "tools[1]", "expected an object, got a string"),
        ({"messages": [ASK], "tools": [deep(99)]}, "tools[0]", "nested deeper than 64 levels"),
    ],
)
def test_what_is_no_conversation_is_refused(value, key, reason):
    with pytest.raises(Flaw) as caught:
        parse_conversation(value)
    assert (caught.value.key, caught.value.reason) == (key, reason)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
calls = st.builds(
    ToolCall,
    texts.filter(bool),
    st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts, max_size=2),
    st.none() | texts,
)
turns = st.one_of(
    st.builds(Message, st.sampled_from(["user", "assistant"]), texts),
    st.builds(Message, st.just("assistant"), texts, st.tuples(calls), name=st.none() | texts),
)


@given(st.lists(turns, min_size=1, max_size=4), st.lists(st.dictionaries(texts, texts), max_size=2))
def test_what_is_written_is_read_back(messages, tools):
    conversation = Conversation(tuple(messages), tuple(tools))
    text = json.dumps(conversation.to_json())
    assert parse_conversation(json.loads(text)) == conversation


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "role content tool_calls function name arguments id type text tool_call_id".split()
            ),
            inner | st.sampled_from(["user", "assistant", "tool", "system", "text", "function"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=3))
def test_anything_is_read_or_refused_and_what_is_read_can_be_written(value):
    try:
        found = parse_messages(value)
    except Flaw as flaw:
        assert flaw.key.startswith("messages")
    else:
        for message in found:
            json.dumps(message.to_json(), ensure_ascii=False, allow_nan=False).encode()
