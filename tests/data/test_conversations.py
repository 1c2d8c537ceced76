# ruff: noqa: E501  (tables are read by rows)
"""Conversations: every form of writing is read, every fault has its place, the books balance."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemma.core import assets
from stemma.core.errors import DataError, UsageError
from stemma.data.conversation_files import KINDS
from stemma.data.conversations import (
    ConversationOptions,
    Example,
    Split,
    first_turn,
    overlap,
    prepare,
    read_conversations,
    read_prepared,
)
from stemma.data.documents import Reject, RejectFile
from stemma.data.messages import Conversation, Message, ToolCall
from stemma.data.sources import find_files

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
SAID = (Message("user", "Hello"), Message("assistant", "Hi!"))
BRIEF = Message("system", "Be brief.")
TOOL = {"type": "function", "function": {"name": "weather"}}

FORMS = {
    "messages": [
        ({"messages": HELLO}, SAID),
        ({"conversation": HELLO, "id": 7}, SAID),
        ({"conversations": HELLO, "prompt": "x", "completion": "y"}, SAID),
        ({"messages": HELLO, "system": "Be brief."}, (BRIEF, *SAID)),
        (HELLO, SAID),
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]}, SAID),
        ({"conversations": [{"from": "user", "value": "Hello"}, {"from": "assistant", "value": "Hi!"}], "system": "Be brief."}, (BRIEF, *SAID)),
        ({"messages": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hello"}, {"from": "model", "value": "Hi!"}]}, (BRIEF, *SAID)),
        (
            {"conversations": [{"from": "human", "value": "Rain?"}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"day": 1}}'}, {"from": "observation", "value": "dry"}, {"from": "gpt", "value": "No."}]},
            (Message("user", "Rain?"), Message("assistant", "", (ToolCall("weather", {"day": 1}),)), Message("tool", "dry"), Message("assistant", "No.")),
        ),
    ],
    "alpaca": [
        ({"instruction": "Hello", "output": "Hi!"}, SAID),
        ({"instruction": "Hello", "input": "", "output": "Hi!", "system": ""}, SAID),
        ({"instruction": "", "input": "Hello", "output": "Hi!"}, SAID),
        ({"instruction": "Count.", "input": "a b", "output": "2"}, (Message("user", "Count.\n\na b"), Message("assistant", "2"))),
        ({"instruction": "Count.", "context": "a b", "response": "2"}, (Message("user", "Count.\n\na b"), Message("assistant", "2"))),
        ({"instruction": "And?", "output": "No.", "history": [["Hello", "Hi!"]], "system": "Be brief."}, (BRIEF, *SAID, Message("user", "And?"), Message("assistant", "No."))),
    ],
    "prompt-completion": [
        ({"prompt": "Hello", "completion": "Hi!"}, SAID),
        ({"prompt": HELLO[:1], "completion": HELLO[1:]}, SAID),
        ({"prompt": [{"role": "system", "content": "Be brief."}, HELLO[0]], "completion": "Hi!"}, (BRIEF, *SAID)),
    ],
    "dialogues": [
        ({"turns": ["Hello", "Hi!"]}, SAID),
        ({"conversations": ["Hello", "Hi!"]}, SAID),
        (["Hello", "Hi!"], SAID),
    ],
}  # fmt: skip
WRITTEN = [(form, *case) for form, cases in FORMS.items() for case in cases]


def jsonl(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def put(folder, **files):
    """Files by name, `_` standing for the dot; their paths."""
    paths = []
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(path)
    return paths


def read(paths, **options):
    """Examples and rejects."""
    rejects: list[Reject] = []
    folder = paths[0].parent
    examples = read_conversations(paths, ConversationOptions(**options), rejects.append, folder)
    return list(examples), rejects


def read_files(files, root):
    """Examples and rejects of files below a folder, the bad ones left out."""
    rejects: list[Reject] = []
    options = ConversationOptions(bad_lines="skip")
    return list(read_conversations(files, options, rejects.append, root)), rejects


def refusal(paths, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        read(paths, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) <= 300
    return message


@pytest.mark.parametrize("form, entry, wanted", WRITTEN)
def test_every_form_becomes_the_same_messages(tmp_path, form, entry, wanted):
    paths = put(tmp_path, a_jsonl=jsonl(entry))
    for chosen in ("auto", form):
        (example,), _ = read(paths, format=chosen)
        assert example == Example(Conversation(wanted), "a.jsonl", 1, form)


@pytest.mark.parametrize(
    "entry",
    [
        {"messages": HELLO, "tools": [TOOL]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}], "tools": json.dumps([TOOL])},
        {"prompt": "Hello", "completion": "Hi!", "tools": [TOOL]},
    ],
)  # fmt: skip
def test_tools_come_with_the_conversation(tmp_path, entry):
    (example,), _ = read(put(tmp_path, a_jsonl=jsonl(entry)))
    assert example.conversation == Conversation(SAID, (TOOL,))


YAML = """\
categories:
- any: [1, 2]
conversations:
- - Hello
  - Hi!
# a remark
- - "no"
  - no
  - 42
  - Two lines
    in one
"""


def test_all_kinds_of_files_hold_conversations_and_lines_are_told(tmp_path):
    entries = [{"messages": HELLO}, {"messages": HELLO[:1] * 2}]
    table = pa.table({"messages": [entry["messages"] for entry in entries], "score": [1, 2]})
    pq.write_table(table, tmp_path / "e.parquet")
    lines = jsonl(entries[0]) + "\n" + jsonl(entries[1])
    paths = put(
        tmp_path,
        a_jsonl=lines,
        b_jsonl_gz=gzip.compress(lines.encode()),
        c_jsonl_zst=pa.compress(lines.encode(), codec="zstd", asbytes=True),
        d_json=json.dumps(entries, indent=1),
        f_json=lines,
        g_json="\ufeff [" + jsonl(entries[0]) + "\n,\r\n" + jsonl(entries[1]) + "] \n",
    )
    examples, _ = read([*paths, tmp_path / "e.parquet"])
    found = {}
    for example in examples:
        found.setdefault(example.source, []).append(example.line)
        assert example.conversation.messages[0] == SAID[0]
    second = json.dumps(entries, indent=1)[: -len("]")].rfind("\n {")
    line = json.dumps(entries, indent=1).count("\n", 0, second + 1) + 1
    assert found == {
        "a.jsonl": [1, 3],
        "b.jsonl.gz": [1, 3],
        "c.jsonl.zst": [1, 3],
        "d.json": [2, line],
        "e.parquet": [1, 2],
        "f.json": [1, 3],
        "g.json": [1, 4],
    }


def test_yaml_is_text_that_takes_turns(tmp_path):
    examples, _ = read(put(tmp_path, a_yml=YAML))
    assert [example.line for example in examples] == [4, 7]
    assert examples[0].conversation.messages == SAID
    assert [message.content for message in examples[1].conversation.messages] == [
        "no",
        "no",
        "42",
        "Two lines in one",
    ]
    roles = [message.role for message in examples[1].conversation.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert {example.format for example in examples} == {"dialogues"}


def test_yaml_may_be_a_list_and_may_name_the_roles(tmp_path):
    alone = "- - Hello\n  - Hi!\n"
    named = (
        "conversations:\n- - {role: user, content: Hello}\n  - role: assistant\n    content: Hi!\n"
    )
    examples, _ = read(put(tmp_path, a_yml=alone, b_yaml=named))
    assert [example.conversation.messages for example in examples] == [SAID, SAID]
    assert [example.format for example in examples] == ["dialogues", "messages"]


def test_nested_columns_of_a_table_lack_what_is_null(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": '{"day": 1}'}]}
    rows = [[HELLO[0], call, {"role": "tool", "content": "dry"}], HELLO]
    pq.write_table(
        pa.table({"messages": rows, "system": ["Be brief.", None]}), tmp_path / "a.parquet"
    )
    (first, second), _ = read([tmp_path / "a.parquet"])
    assert first.conversation.messages == (
        BRIEF,
        SAID[0],
        Message("assistant", "", (ToolCall("weather", '{"day": 1}'),)),
        Message("tool", "dry"),
    )
    assert second.conversation.messages == SAID


GOOD = jsonl({"messages": HELLO})
SHARED = '{"conversations": [{"from": "human", "value": "a"}, '
BAD = {
    "wrong role": ("a_jsonl", GOOD + jsonl({"messages": [*HELLO, {"role": "usr", "content": "x"}]}), "a.jsonl:2:messages[2].role: unknown role 'usr'; did you mean user, or set bad_lines: skip"),
    "cut": ("a_jsonl", GOOD + '{"messages": [', "a.jsonl:2:15: not JSON"),
    "number": ("a_jsonl", GOOD + "42\n", "a.jsonl:2: expected an object, got a number; "),
    "invalid byte": ("a_jsonl", GOOD.encode() + b'{"messages": "\xff"}\n', "a.jsonl:2:byte 14: invalid UTF-8"),
    "no format": ("a_jsonl", jsonl({"text": "x", "id": 1}), "a.jsonl:1: of no known format (keys: text, id); write one of messages, sharegpt, "),
    "two formats": ("a_jsonl", GOOD + jsonl({"instruction": "a", "output": "b"}), "a.jsonl:2: no key 'messages' of the format messages (keys: instruction, output); it looks like alpaca: give each format"),
    "key gone": ("a_jsonl", GOOD + jsonl({"text": "x"}), "a.jsonl:2: no key 'messages' of the format messages (keys: text); add it"),
    "speaker": ("a_jsonl", SHARED + '{"from": "gtp", "value": "b"}]}\n', "a.jsonl:1:conversations[1].from: unknown speaker 'gtp'; did you mean gpt"),
    "no speaker": ("a_jsonl", SHARED + '{"value": "b"}]}\n', "a.jsonl:1:conversations[1].from: unknown speaker null; known: "),
    "no value": ("a_jsonl", SHARED + '{"from": "gpt"}]}\n', "a.jsonl:1:conversations[1].value: is missing"),
    "late system": ("a_jsonl", SHARED + '{"from": "system", "value": "b"}]}\n', "a.jsonl:1:conversations[1].from: a system message after the beginning"),
    "observation first": ("a_jsonl", SHARED + '{"from": "observation", "value": "b"}]}\n', "a.jsonl:1:conversations[1].from: a tool's result without a call"),
    "call no JSON": ("a_jsonl", SHARED + '{"from": "function_call", "value": "weather()"}]}\n', "a.jsonl:1:conversations[1].value: is no JSON"),
    "call empty": ("a_jsonl", SHARED + '{"from": "function_call", "value": "[]"}]}\n', "a.jsonl:1:conversations[1].value[0]: expected an object with name"),
    "system twice": ("a_jsonl", '{"system": "x", "conversations": [{"from": "system", "value": "y"}]}', "a.jsonl:1:system: a second system message"),
    "no output": ("a_jsonl", jsonl({"instruction": "a", "input": "b"}), "a.jsonl:1: no key 'output' of the format alpaca (keys: instruction, input); add it"),
    "output list": ("a_jsonl", jsonl({"instruction": "a", "output": {}}), "a.jsonl:1:output: expected text, got an object"),
    "history": ("a_jsonl", jsonl({"instruction": "a", "output": "b", "history": [["x"]]}), "a.jsonl:1:history[0]: expected a question and its answer"),
    "history text": ("a_jsonl", jsonl({"instruction": "a", "output": "b", "history": "x"}), "a.jsonl:1:history: expected a list of pairs, got a string"),
    "completion": ("a_jsonl", jsonl({"prompt": "a", "completion": 1}), "a.jsonl:1:completion: expected text, got a number"),
    "empty prompt": ("a_jsonl", jsonl({"prompt": [], "completion": "b"}), "a.jsonl:1:prompt: is empty"),
    "turn": ("a_jsonl", jsonl({"turns": ["a", 2]}), "a.jsonl:1:turns[1]: expected text, got a number"),
    "array broken": ("a_json", "[\n" + json.dumps(HELLO) + ",\n {]\n]", "a.json:3:3: not JSON"),
    "array cut": ("a_json", "[\n" + json.dumps(HELLO), "a.json:2:80: not JSON: Expecting ',' or ']' after 1 conversations"),
    "array comma": ("a_json", "[" + json.dumps(HELLO) + ",\n]", "a.json:2:1: not JSON: Expecting value"),
    "array goes on": ("a_json", "[" + json.dumps(HELLO) + "]\n\n  x", "a.json:3:3: not JSON: something follows the list"),
    "pretty object": ("a_json", json.dumps({"messages": HELLO}, indent=1), "a.json: is one JSON object over several lines"),
    "one dash": ("a_yml", YAML + "- Question\n  - Answer\n", "a.yml:12: expected a list of turns, got a text; begin it with two dashes"),
    "null turn": ("a_yml", YAML + "- - Question\n  -\n", "a.yml:12:turns[1]: is missing"),
    "alias": ("a_yml", "conversations:\n- &a [Hello, Hi]\n- *a\n", "a.yml:3: the alias *a is refused; write it out"),
    "tag": ("a_yml", "conversations:\n- - !!python/name:os.system x\n  - y\n", "a.yml:2: the tag tag:yaml.org,2002:python/name:os.system is refused"),
    "tab": ("a_yml", "conversations:\n\t- - a\n", "a.yml:2:1: not YAML: "),
    "no list": ("a_yml", "dialogs:\n- - a\n  - b\n", "a.yml: no list under the key 'conversations' (keys: dialogs)"),
    "odd key": ("a_yml", "? [a, b]\n: c\n", "a.yml:1: a key is no plain word"),
    "control": ("a_yml", YAML + "- - a\x07\n  - b\n", "a.yml:12: not YAML: "),
    "deep": ("a_yml", "conversations:\n- " + "[" * 200 + "]" * 200, "a.yml:2: nested too deep"),
    "lies": ("a_parquet", GOOD, "a.parquet: is not Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_named_at_its_place(tmp_path, name):
    file, content, wanted = BAD[name]
    assert refusal(put(tmp_path, **{file: content})).startswith(wanted)


def test_a_fault_of_a_table_names_its_row(tmp_path):
    other = pa.table({"text": ["x"]})
    pq.write_table(other, tmp_path / "a.parquet")
    wanted = "a.parquet: no column of a known format (columns: text); known columns: "
    assert refusal([tmp_path / "a.parquet"]).startswith(wanted)
    rows = [HELLO, [{"role": "user", "content": None}]]
    pq.write_table(pa.table({"messages": rows}), tmp_path / "b.parquet")
    wanted = "b.parquet:2:messages[0].content: is missing"
    assert refusal([tmp_path / "b.parquet"]).startswith(wanted)
    prompts = pa.array([b"fine", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"prompt": prompts, "completion": ["a", "b"]}), tmp_path / "c.parquet")
    assert refusal([tmp_path / "c.parquet"]).startswith(
        "c.parquet:2: is not readable: 'utf-8' codec"
    )


def test_a_reject_is_listed_with_its_key_and_the_rest_is_kept(tmp_path):
    bad = jsonl({"messages": []}, {"text": "x"}, {"messages": [HELLO[0] | {"role": "x"}]})
    paths = put(tmp_path, a_jsonl=bad + GOOD, b_json="[" + json.dumps(HELLO) + ", {")
    examples, rejects = read(paths, bad_lines="skip")
    assert [(example.source, example.line) for example in examples] == [
        ("a.jsonl", 4),
        ("b.json", 1),
    ]
    assert [(reject.source, reject.line, reject.key) for reject in rejects] == [
        ("a.jsonl", 1, "messages"),
        ("a.jsonl", 2, None),
        ("a.jsonl", 3, "messages[0].role"),
        ("b.json", 1, None),
    ]
    assert rejects[3].reason.endswith("after 1 conversations")


def test_each_file_has_its_own_format_and_it_is_told(tmp_path, caplog):
    paths = put(
        tmp_path,
        a_jsonl=GOOD,
        b_jsonl=jsonl({"instruction": "a", "output": "b"}) * 2,
        c_yml=YAML,
    )
    with caplog.at_level(logging.INFO, logger="stemma"):
        examples, _ = read(paths)
    assert [example.format for example in examples] == [
        "messages",
        *["alpaca"] * 2,
        *["dialogues"] * 2,
    ]
    assert "b.jsonl: 2 conversations of the format alpaca" in caplog.text


def test_a_chosen_format_overrides_the_keys(tmp_path):
    both = {"messages": HELLO, "prompt": "Other", "completion": "Yes."}
    paths = put(tmp_path, a_jsonl=jsonl(both))
    (example,), _ = read(paths, format="prompt-completion")
    assert example.conversation.messages[0].content == "Other"
    assert "no key 'instruction' of the format alpaca" in refusal(paths, format="alpaca")


def test_a_repeated_key_is_warned_of_once(tmp_path, caplog):
    twice = '{"messages": [], "messages": ' + json.dumps(HELLO) + "}\n"
    examples, _ = read(put(tmp_path, a_jsonl=twice * 3))
    assert len(examples) == 3
    assert caplog.text.count("the key messages comes twice") == 1


def test_limits_count_for_lines_and_tables(tmp_path):
    long = [HELLO[0] | {"content": "x" * 2000}, HELLO[1]]
    pq.write_table(pa.table({"messages": [HELLO, long]}), tmp_path / "a.parquet")
    wanted = "a.parquet:2: longer than max_document_bytes (1000): 2003 bytes"
    assert refusal([tmp_path / "a.parquet"], max_document_bytes=1000).startswith(wanted)
    paths = put(tmp_path, b_jsonl=GOOD + "x" * (2 << 20) + "\n", c_yml="# " + "x" * 2000)
    for path, place in zip(paths, ("b.jsonl:2", "c.yml"), strict=True):
        assert f"{place}: longer than max_document_bytes" in refusal(
            [path], max_document_bytes=1000
        )


def test_nothing_at_all_and_other_endings_are_refused(tmp_path):
    paths = put(tmp_path, a_jsonl="\n \n", b_txt="x")
    assert refusal(paths[:1]).startswith("no conversations in a.jsonl; ")
    assert refusal(paths[1:], UsageError).startswith(
        "b.txt: unknown ending '.txt'; known endings: .jsonl"
    )
    said = refusal(put(tmp_path, a_jsonl="[]\n"), bad_lines="skip")
    assert said.startswith(
        "no conversations in a.jsonl (1 rejects, first: a.jsonl:1:messages: is empty"
    )


def test_folders_are_searched_for_conversations_and_documents_apart(tmp_path):
    put(tmp_path, a_jsonl="", b_yml="", c_yaml_gz="", d_txt="", e_json="", f_parquet="")
    names = [path.name for path in find_files([str(tmp_path)], tmp_path, KINDS)]
    assert names == ["a.jsonl", "b.yml", "c.yaml.gz", "f.parquet"]
    names = [path.name for path in find_files([str(tmp_path)], tmp_path)]
    assert names == ["a.jsonl", "d.txt", "f.parquet"]
    assert find_files(["e.json"], tmp_path, KINDS) == [tmp_path / "e.json"]


def example(*texts, line=1, source="a.jsonl", tools=()):
    """Texts that take turns; a text beginning with "system:" is said by the system."""
    messages, speakers = [], ("user", "assistant")
    for text in texts:
        if text.startswith("system:"):
            messages.append(Message("system", text))
        else:
            messages.append(Message(speakers[sum(m.role != "system" for m in messages) % 2], text))
    return Example(Conversation(tuple(messages), tools), source, line, "dialogues")


def run(folder, examples, *, heldout=None, strict=False, **split):
    """Prepare; the ledger and what was written."""
    ledger = prepare(iter(examples), Split(**split), folder, heldout=heldout, strict=strict)
    sides = [folder / f"{name}.jsonl" for name in ("train", "heldout")]
    written = [list(read_prepared(path)) if path.exists() else [] for path in sides]
    lines = (folder / "dropped.jsonl").read_text("utf-8").splitlines()
    return ledger, *written, [json.loads(line) for line in lines]


words = st.sampled_from(["", " ", "a", "A ", "b", "d e"])
openings = st.sampled_from([[], [], ["system: c"]])
talks = st.builds(list.__add__, openings, st.lists(words, min_size=1, max_size=4))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(talks, min_size=1, max_size=15),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    st.integers(0, 3),
)
def test_every_conversation_is_on_one_side_or_dropped(tmp_path_factory, talks, fraction, seed):
    folder = tmp_path_factory.mktemp("prepared")
    examples = [example(*talk, line=line) for line, talk in enumerate(talks)]
    try:
        ledger, train, heldout, dropped = run(folder, examples, fraction=fraction, seed=seed)
    except DataError as error:
        answered = [talk for talk in talks if len(talk) > 1 + ("system: c" in talk)]
        none = not any(answered) or "empty answer" in str(error)
        assert ("no conversations left" in str(error)) == none
        assert none or (fraction and "too few different first turns" in str(error))
        assert not (folder / "train.jsonl").exists()
        return
    lines = [one.line for one in (*train, *heldout)] + [entry["line"] for entry in dropped]
    assert sorted(lines) == list(range(len(talks)))
    assert ledger.balanced()
    assert (ledger.read, ledger.train, ledger.heldout) == (len(talks), len(train), len(heldout))
    turns = [{first_turn(one.conversation) for one in side} for side in (train, heldout)]
    assert not turns[0] & turns[1]
    assert len(turns[1]) == ledger.heldout_groups
    assert bool(heldout) == bool(fraction) and train
    assert all(one.conversation.messages[-1].role == "assistant" for one in (*train, *heldout))
    kept = [one.conversation for one in (*train, *heldout)]
    assert all(kept.count(conversation) == 1 for conversation in kept)
    assert not any(
        overlap((one.conversation for one in train), (one.conversation for one in heldout)).values()
    )
    assert run(folder, examples, fraction=fraction, seed=seed)[1:3] == (train, heldout)


def test_trailing_turns_go_and_are_counted(tmp_path):
    ledger, train, _, _ = run(tmp_path, [example("a", "b", "c"), example("d", "e")], fraction=0)
    assert [len(one.conversation.messages) for one in train] == [2, 2]
    assert (ledger.trimmed, ledger.trailing_messages, ledger.train) == (1, 1, 2)


def test_what_teaches_nothing_is_dropped_with_its_reason(tmp_path):
    examples = [
        example("a", "b", "late", line=1),
        example("a", "b", line=2),
        example("only asked", line=3),
        example("a", " \n", "c", "d", line=4),
        example("a", "b", line=5, tools=(TOOL,)),
        example("A", "b", line=6),
    ]
    ledger, train, _, dropped = run(tmp_path, examples, fraction=0)
    assert [one.line for one in train] == [1, 5, 6]
    assert dropped == [
        {"id": 1, "source": "a.jsonl", "line": 2, "reason": "duplicate", "duplicate_of": 0},
        {"id": 2, "source": "a.jsonl", "line": 3, "reason": "no assistant turn"},
        {"id": 3, "source": "a.jsonl", "line": 4, "reason": "empty answer"},
    ]
    assert ledger.to_json()["dropped"] == {
        "duplicate": 1,
        "empty answer": 1,
        "no assistant turn": 1,
    }
    assert ledger.to_json()["files"] == {"a.jsonl": {"format": "dialogues", "conversations": 6}}


def test_a_call_without_words_is_an_answer(tmp_path):
    call = Message("assistant", "", (ToolCall("weather", {}),))
    asked = Example(Conversation((SAID[0], call, Message("tool", "dry"))), "a", 1, "messages")
    _, train, _, _ = run(tmp_path, [asked], fraction=0)
    assert train[0].conversation.messages == (SAID[0], call)


def test_nothing_left_is_an_error_that_counts(tmp_path):
    examples = [example("only asked"), example("and asked")]
    with pytest.raises(
        DataError, match="to train on: 2 read, 0 rejected, dropped: no assistant turn 2"
    ):
        run(tmp_path, examples)
    assert not (tmp_path / "train.jsonl").exists()


def test_one_first_turn_cannot_be_divided(tmp_path):
    same = [example("Hello  there", "a"), example("hello There", "b")]
    with pytest.raises(DataError, match=r"too few different first turns .* \(1\); .*holdout: 0"):
        run(tmp_path, same)
    ledger, train, heldout, _ = run(tmp_path, same, fraction=0)
    assert (len(train), len(heldout), ledger.groups) == (2, 0, 1)


def test_the_share_is_counted_in_first_turns_and_the_seed_chooses(tmp_path):
    many = [example(f"question {n}", "a") for n in range(40)]
    sides = []
    for seed in (0, 1):
        ledger, train, heldout, _ = run(tmp_path, many, fraction=0.25, seed=seed)
        assert (ledger.groups, ledger.heldout_groups) == (40, 10)
        sides.append({first_turn(one.conversation) for one in heldout})
    assert sides[0] != sides[1]


def test_an_earlier_held_out_file_does_not_stay(tmp_path):
    two = [example("a", "b"), example("c", "d")]
    run(tmp_path, two, fraction=0.5)
    assert (tmp_path / "heldout.jsonl").exists()
    run(tmp_path, two, fraction=0)
    assert not (tmp_path / "heldout.jsonl").exists()


def test_a_given_held_out_set_is_kept_and_its_overlap_counted(tmp_path, caplog):
    train = [example("a", "b"), example("c", "d")]
    given = [example("A", "x"), example("a", "b", "c"), example("new", "y"), example("new", "y")]
    ledger, kept, heldout, _ = run(tmp_path, train, heldout=given)
    assert (len(kept), len(heldout), ledger.dropped["duplicate"]) == (2, 3, 1)
    assert ledger.to_json()["overlap"] == {"first_turns": 2, "conversations": 1}
    assert (
        "2 of 3 held-out conversations begin like one in training, 1 are in it whole" in caplog.text
    )
    with pytest.raises(DataError, match="2 of 3 held-out .*strict: false"):
        run(tmp_path, train, heldout=given, strict=True)
    caplog.clear()
    ledger, *_ = run(tmp_path, train, heldout=given[2:], strict=True)
    assert ledger.overlap == {"first_turns": 0, "conversations": 0} and not caplog.text


def test_a_given_held_out_set_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="no conversations left to hold out"):
        run(tmp_path, [example("a", "b")], heldout=[example("only asked")])


def test_reading_and_preparing_count_rejects_together(tmp_path):
    paths = put(tmp_path, a_jsonl=GOOD + "[]\n" + jsonl({"messages": HELLO, "tools": [TOOL]}))
    with RejectFile(tmp_path / "rejects.jsonl") as rejects:
        read = read_conversations(paths, ConversationOptions(bad_lines="skip"), rejects, tmp_path)
        ledger = prepare(read, Split(fraction=0), tmp_path / "out", rejects=rejects)
    assert (ledger.rejected, ledger.read, ledger.train) == (1, 2, 2)
    entry = json.loads((tmp_path / "rejects.jsonl").read_text("utf-8"))
    assert entry == {"source": "a.jsonl", "line": 2, "reason": "is empty", "key": "messages"}


@pytest.mark.parametrize("line", ["{", "{}", '{"messages": []}', '{"messages": "x", "source": 1}'])
def test_a_prepared_file_that_was_damaged_is_refused_with_its_line(tmp_path, line):
    run(tmp_path, [example("a", "b")], fraction=0)
    path = tmp_path / "train.jsonl"
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"train\.jsonl:2: is damaged .*run the stage again"):
        list(read_prepared(path))


@pytest.mark.net
def test_the_dialogues_of_chatterbot_are_as_told(tmp_path):
    folder = assets.pull("chatterbot")
    files = find_files([str(folder)], folder, KINDS)
    examples, rejects = read_files(files, folder)
    assert len(files) == 21
    assert [(reject.source, reject.line) for reject in rejects] == [("trivia.yml", 35)]
    assert len(examples) + len(rejects) == 2026
    ledger = prepare(examples, Split(), tmp_path)
    assert (ledger.train + ledger.heldout, ledger.groups) == (898, 748)
