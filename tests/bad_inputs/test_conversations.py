# ruff: noqa: E501  (tables are read by rows)
"""Bad conversations, cases 48, 73 and 74: the message is named, or left out, counted and listed."""

import json
import shutil

import pytest

from tests.bad_inputs.command_line import (
    Outcome,
    Refused,
    call,
    check_line,
    names,
    rows,
    snapshot,
)
from tests.bad_inputs.layouts import put

RECIPE = """\
name: talk
stages:
  chat:
    kind: sft
    init: ./model
    inputs: [talk]
    holdout: 0
    context: 32
    steps: 1
    batch_tokens: 32
    learning_rate: 1e-3
    device: cpu
"""
RUN = "run talk.yaml"
SKIP = f"{RUN} chat.bad_lines=skip"
WAY = r".*; .+, or set bad_lines: skip to leave it out"
USER, HELPER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "cat"}
SYSTEM, RESULT = {"role": "system", "content": "be"}, {"role": "tool", "content": "mat"}
CALL = {"role": "assistant", "tool_calls": [{"id": "a", "name": "f", "arguments": {}}]}


def line(*messages):
    return json.dumps({"messages": messages}) + "\n"


GOOD = line(USER, HELPER)


def talk(content, **more):
    """The recipe, one file of conversations, and others by name."""

    def lay_out(folder):
        put(folder / "talk.yaml", RECIPE)
        put(folder / "talk" / "a.jsonl", content)
        for name, text in more.items():
            put(folder / name.replace("_", "/", 1).replace("_", "."), text)

    return lay_out


def bad(name, content, place, what):
    return Refused(73, name, talk(GOOD + content), RUN, 3, rf"talk/a\.jsonl:2{place}: {what}{WAY}")


def unlearnable(name, content, reasons):
    what = rf".*no conversations left to train on: \d+ read, \d+ rejected, dropped: {reasons}; name files.*"
    return Refused(74, name, talk(content), RUN, 3, what)


CASES = [
    # 73: no conversation at all
    bad("wrong-role", line(USER, HELPER, USER | {"role": "usr"}), r":messages\[2\]\.role", "unknown role 'usr'"),
    bad("no-role", line(USER, HELPER, {"content": "x"}), r":messages\[2\]\.role", "is missing"),
    bad("two-systems", line(SYSTEM, SYSTEM, USER, HELPER), r":messages\[1\]\.role", "a second system message"),
    bad("late-system", line(USER, HELPER, SYSTEM), r":messages\[2\]\.role", "a system message after the beginning"),
    bad("result-first", line(USER, RESULT, HELPER), r":messages\[1\]\.role", "a tool's result without a call"),
    bad("result-late", line(USER, CALL, RESULT, HELPER, RESULT), r":messages\[4\]\.role", "a tool's result without a call"),
    bad("result-of-another", line(USER, CALL, RESULT | {"tool_call_id": "b"}), r":messages\[2\]\.tool_call_id", "no call has the id 'b'"),
    bad("empty", line(), ":messages", "is empty"),
    bad("null", '{"messages": null}\n', "", r"no key 'messages' of the format messages \(keys: none\)"),
    bad("no-list", '{"messages": "hi"}\n', ":messages", "expected a list, got a string"),
    bad("text-for-message", line(USER, "cat"), r":messages\[1\]", "expected an object with role and content, got a string"),
    bad("no-content", line(USER, {"role": "assistant"}), r":messages\[1\]\.content", "is missing"),
    bad("number-content", line(USER, HELPER | {"content": 7}), r":messages\[1\]\.content", "expected text, got a number"),
    bad("picture", line(USER | {"content": [{"type": "image_url"}]}), r":messages\[0\]\.content\[0\]\.type", "only text can be read, got type image_url"),
    bad("surrogate", line(USER, HELPER | {"content": "a\ud800"}), r":messages\[1\]\.content", r"lone surrogate \\ud800 at character 2 of the text"),
    bad("user-calls", line(USER | {"tool_calls": CALL["tool_calls"]}), r":messages\[0\]\.tool_calls", "a user message makes calls"),
    bad("nameless-call", line(USER, CALL | {"tool_calls": [{}]}), r":messages\[1\]\.tool_calls\[0\]\.name", "the call names no function"),
    bad("broken-arguments", line(USER, CALL | {"tool_calls": [{"name": "f", "arguments": "{"}]}), r":messages\[1\]\.tool_calls\[0\]\.arguments", "is no JSON"),
    bad("other-format", '{"instruction": "a", "output": "b"}\n', "", r"no key 'messages' of the format messages \(keys: instruction, output\)"),
    # 74: nothing that the assistant says
    unlearnable("no-assistant", line(USER) * 2, "no assistant turn 2"),
    unlearnable("system-only", line(SYSTEM), "no assistant turn 1"),
    unlearnable("empty-answers", line(USER, HELPER | {"content": " \n"}), "empty answer 1"),
    # 48: held out and trained on
    Refused(48, "strict", talk(GOOD, other_b_jsonl=GOOD), f"{RUN} 'chat.heldout=[other]' chat.strict=true", 3, r".*1 of 1 held-out conversations begin like one in training, 1 are in it whole; remove them.*"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, sound_model):
    """An empty folder with a model in it."""
    shutil.copytree(sound_model, tmp_path / "model")
    return tmp_path


def run(folder, lay_out, command) -> Outcome:
    """Lay out and call; whatever happens, nothing that was there is lost or changed."""
    lay_out(folder)
    before = snapshot(folder)
    outcome = call(folder, command)
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    return outcome


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, folder):
    check_line(run(folder, case.lay_out, case.command), case.code, case.line)
    stage = folder / "runs" / "talk" / "chat"
    assert not (stage / "final").exists()
    assert not (stage / "conversations" / "train.jsonl").exists()


@pytest.mark.parametrize("case", [c for c in CASES if c.number == 73], ids=names)
def test_skipped(case, folder):
    outcome = run(folder, case.lay_out, SKIP)
    assert outcome.code == 0, outcome.err
    found = folder / "runs" / "talk" / "chat" / "conversations"
    assert [row["line"] for row in rows(found / "train.jsonl")] == [1]
    (reject,) = rows(found / "rejects.jsonl")
    assert (reject["source"], reject["line"]) == ("a.jsonl", 2)
    assert reject.get("key", "").startswith("messages") == ("messages" in case.line.split(": ")[0])
    assert any("1 bad conversations were left out" in text for text in outcome.warnings)


def test_dropped(folder):
    content = line(USER) + line(USER, HELPER, USER) + line(USER, HELPER | {"content": ""})
    outcome = run(folder, talk(content), RUN)
    assert outcome.code == 0, outcome.err
    found = folder / "runs" / "talk" / "chat" / "conversations"
    assert [row["line"] for row in rows(found / "train.jsonl")] == [2]
    assert [(row["line"], row["reason"]) for row in rows(found / "dropped.jsonl")] == [
        (1, "no assistant turn"),
        (3, "empty answer"),
    ]


def test_overlap_is_warned_of(folder):
    outcome = run(folder, talk(GOOD, other_b_jsonl=GOOD), f"{RUN} 'chat.heldout=[other]'")
    assert outcome.code == 0, outcome.err
    said = "1 of 1 held-out conversations begin like one in training, 1 are in it whole"
    assert any(text.startswith(said) for text in outcome.warnings)
