# ruff: noqa: E501  (tables are read by rows)
"""Talking to a model by the command line: `chat`, and `generate` with a template or a file."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console
from rich.live import Live

import stemma as package
from stemma import api, terminal
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import with_chatml
from stemma.data.messages import parse_messages
from tests.bad_inputs.command_line import call, check_line, snapshot

WORDS = ["the cat sat on the mat and the dog ran", "system user assistant"]
CONTEXT = 96


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with two tiny models: `chatty` has a chat template, `plain` has none."""
    folder = tmp_path_factory.mktemp("models")
    words = train_tokenizer(WORDS, vocab_size=270, splitting="gpt-2")
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": CONTEXT, "initial_std": 0.3}
    for name, tokenizer in (("plain", words), ("chatty", with_chatml(words))):
        model = api.build("llama", vocab_size=tokenizer.vocab_size, **numbers)
        api.save(model, tokenizer, folder / name)
    return folder


@pytest.fixture
def stemma(models, tmp_path, monkeypatch):
    """Call the command in an empty folder that knows the models; returns its outcome."""
    for name in ("plain", "chatty"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.setattr(signal, "default_int_handler", signal.getsignal(signal.SIGINT))

    def calling(command, typed=None):
        before = signal.getsignal(signal.SIGINT)
        with pytest.MonkeyPatch.context() as patch:
            if typed is not None:
                data = typed if isinstance(typed, bytes) else typed.encode()
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
            try:
                return call(tmp_path, command)
            finally:
                signal.signal(signal.SIGINT, before)

    return calling


@pytest.fixture
def chatty(models):
    return api.load(models / "chatty")


def notes(outcome):
    """The messages beside the conversation."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("{")]
    return [json.loads(line)["message"] for line in lines]


def ask(content, *, system=None):
    opening = [] if system is None else [{"role": "system", "content": system}]
    return [*opening, {"role": "user", "content": content}]


# generate


def test_a_prompt_is_answered_by_the_template_and_not_repeated(stemma, chatty):
    options = "--max-new-tokens 6 --seed 3"
    plain = stemma(f'generate chatty --prompt "the cat" {options}')
    wanted = package.generate(*chatty, ask("the cat"), max_new_tokens=6, seed=3)
    assert (plain.code, plain.out, plain.err) == (0, wanted + "\n", "")
    told = stemma(f'generate chatty --prompt "the cat" --system "sat" {options}')
    spoken = ask("the cat", system="sat")
    assert told.out == package.generate(*chatty, spoken, max_new_tokens=6, seed=3) + "\n"
    raw = stemma(f'generate chatty --prompt "the cat" --raw {options}')
    text = package.generate(*chatty, "the cat", max_new_tokens=6, seed=3)
    assert raw.out == "the cat" + text + "\n"
    assert len({wanted, told.out, text}) == 3


def test_json_says_what_was_written(stemma, chatty):
    out = stemma('generate chatty --prompt "the cat" --max-new-tokens 6 --seed 3 --json').out
    found = json.loads(out)
    names = ["text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "seed"]
    assert list(found) == names
    renderer = api.chat_renderer(chatty[1])
    assert found["prompt_tokens"] == len(api.prompt_of(renderer, ask("the cat")))
    assert found["text"] == package.generate(*chatty, ask("the cat"), max_new_tokens=6, seed=3)


def test_python_takes_texts_and_messages_alone_and_in_lists(chatty):
    settings = {"max_new_tokens": 6, "seed": 3}
    one, two = ask("the cat"), ask("the dog", system="sat")
    answers = package.generate(*chatty, [one, two], **settings)
    assert answers == [package.generate(*chatty, each, **settings) for each in (one, two)]
    texts = package.generate(*chatty, ["the", "cat"], **settings)
    assert texts == [package.generate(*chatty, each, **settings) for each in ("the", "cat")]
    assert package.generate(*chatty, [], **settings) == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "usr", "content": "a"}], r"messages\[0\]\.role: "),
        ([*ask("a"), {"role": "user"}], r"messages\[1\]\.content: "),
        ([*ask("a"), {"role": "assistant", "content": "b"}], r"messages\[1\]\.role: the last"),
        ([ask("a"), [{"role": "user", "content": 3}]], r"prompt 1: messages\[0\]\.content: "),
        ([[]], "prompt 0: messages: "),
        ([ask("a"), "b"], "prompt: texts and messages are mixed; give a list of one kind"),
        (
            {"role": "user", "content": "a"},
            "prompt: expected a text or a list of messages, got dict",
        ),
        (3, "prompt: expected a text or a list of messages, got int"),
        (ask("a" * 200), "prompt 0: .* leave no room"),
    ],
)
def test_python_refuses_what_cannot_be_answered(chatty, prompt, words):
    with pytest.raises(package.api.UsageError, match=words):
        package.generate(*chatty, prompt)


def test_the_end_of_a_turn_ends_an_answer_whatever_the_files_say(models, chatty):
    """A template may end turns by another token than `eos_token`, and no file may say so."""
    model, tokenizer = chatty
    words = with_chatml(train_tokenizer(WORDS, vocab_size=270, splitting="gpt-2"))
    words.config["eos_token"] = "<|endoftext|>"
    other = type(words)(words.backend, words.config)
    assert other.eos_id != tokenizer.eos_id
    assert api.turn_ends(api.chat_renderer(other)) == {tokenizer.eos_id}
    refusing = type(words)(
        words.backend, words.config | {"chat_template": "{{ raise_exception('no') }}"}
    )
    assert api.turn_ends(api.chat_renderer(refusing)) == frozenset()


def test_a_file_of_prompts_is_answered_and_resumed(stemma, tmp_path):
    lines = [{"prompt": "the cat"}, {"messages": ask("the dog", system="sat"), "id": "x"}]
    lines += [{"prompt": f"the mat {number}"} for number in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = "generate chatty --input p.jsonl --output new/out.jsonl --seed 4 --max-new-tokens 5"
    done = stemma(command)
    assert (done.code, done.out) == (0, "10 answers in new/out.jsonl\n"), done.err
    out = tmp_path / "new" / "out.jsonl"
    whole = out.read_bytes()
    first, second, *_ = [json.loads(line) for line in whole.splitlines()]
    alone = stemma('generate chatty --prompt "the cat" --seed 4 --max-new-tokens 5 --json')
    assert first["text"] == json.loads(alone.out)["text"] and second["id"] == "x"
    out.write_bytes(whole[:-30])
    again = stemma(command + " --json")
    assert json.loads(again.out) == {"output": "new/out.jsonl", "answers": 10, "kept": 8}
    assert out.read_bytes() == whole
    complete = stemma(command)
    assert (
        complete.code == 0
        and "10 answers were there already; nothing was left to do" in complete.err
    )
    refused = stemma(command + " --temperature 0")
    check_line(
        refused, 2, r"new/out\.jsonl:1: is no answer .*; choose another --output, or --overwrite"
    )
    assert out.read_bytes() == whole
    assert stemma(command + " --temperature 0 --overwrite").code == 0
    assert out.read_bytes() != whole


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


GOOD = '{"prompt": "a"}\n'
SPOKEN = '{"messages": [{"role": "user", "content": "a"}]}\n'
FILES = "--input p.jsonl --output out.jsonl"
REFUSED = [
    ("both", put("p.jsonl", GOOD), f"generate chatty --prompt a {FILES}", 2, "--prompt and --input exclude each other; choose one"),
    ("neither", None, "generate chatty", 2, "nothing to write about; give --prompt TEXT, or --input FILE"),
    ("no-output", put("p.jsonl", GOOD), "generate chatty --input p.jsonl", 2, "--input has no --output; .*"),
    ("output-alone", None, "generate chatty --prompt a --output o", 2, "--output belongs to --input; .*"),
    ("overwrite-alone", None, "generate chatty --prompt a --overwrite", 2, "--overwrite belongs to --input; .*"),
    ("raw-system", None, "generate chatty --prompt a --raw --system b", 2, "--raw and --system exclude each other; .*"),
    ("system", None, "generate plain --prompt a --system b", 2, "plain: has no chat template, so it takes no system message; leave --system out"),
    ("long-prompt", None, f"generate chatty --prompt {'a' * 200}", 2, r"prompt 0: \d+ tokens leave no room in the model's context of 96; .*"),
    ("no-file", None, f"generate chatty {FILES}", 2, "p.jsonl: no such file; .*"),
    ("bad-line", put("p.jsonl", GOOD + "[]\n"), f"generate chatty {FILES}", 3, "p.jsonl:2: expected an object .*"),
    ("bad-line-first", put("p.jsonl", GOOD + "[]\n"), f"generate nope {FILES}", 3, "p.jsonl:2: expected an object .*"),
    ("bad-role", put("p.jsonl", SPOKEN.replace("user", "usr")), f"generate chatty {FILES}", 3, r"p.jsonl:1:messages\[0\]\.role: .*"),
    ("long-line", put("p.jsonl", GOOD + GOOD.replace("a", "a" * 200)), f"generate chatty {FILES}", 3, r"p.jsonl:2: \d+ tokens leave no room in the model's context of 96; shorten it to at most 95 tokens"),
    ("no-template", put("p.jsonl", SPOKEN), f"generate plain {FILES}", 3, "p.jsonl:1:messages: needs the model's chat template.*; give a prompt alone"),
    ("raw-messages", put("p.jsonl", SPOKEN), f"generate chatty --raw {FILES}", 3, "p.jsonl:1:messages: needs .*; give a prompt alone"),
    ("system-file", put("p.jsonl", GOOD), f"generate plain --system b {FILES}", 2, "plain: has no chat template.*"),
    ("one-file", put("p.jsonl", GOOD), "generate chatty --input p.jsonl --output p.jsonl", 2, "p.jsonl: --input and --output are one file; .*"),
    ("folder", put("p.jsonl", GOOD), "generate chatty --input p.jsonl --output .", 2, r"\.: not a regular file .*"),
    ("not-ours", put("out.jsonl", "notes"), "generate chatty --input chatty/config.json --output out.jsonl", 3, "chatty/config.json:1:2: not JSON.*"),
    ("chat-template", None, "chat plain", 2, "plain: has no chat template; use `stemma generate --raw` to continue a text"),
    ("chat-system", None, f"chat chatty --system {'a' * 200}", 2, r"system: \d+ tokens, .* leave no room in the model's context of 96; shorten it"),
    ("chat-setting", None, "chat chatty --temperature -1", 2, "sampling: temperature: .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_refused(stemma, tmp_path, case):
    _, lay_out, command, code, line = case
    if lay_out:
        lay_out(tmp_path)
    before = snapshot(tmp_path)
    check_line(stemma(command), code, line)
    assert snapshot(tmp_path) == before


# chat


def test_lines_from_a_pipe_are_turns_with_a_history(stemma, chatty):
    done = stemma("chat chatty --seed 2 --max-new-tokens 5", "the cat\n\nsat \\\non\r\nthe dog")
    assert done.code == 0, done.err
    messages, answers = [], []
    for turn in ("the cat", "sat \non", "the dog"):
        messages += ask(turn)
        answers.append(package.generate(*chatty, messages, seed=2, max_new_tokens=5))
        messages += [{"role": "assistant", "content": answers[-1]}]
    assert done.out == "".join(answer + "\n" for answer in answers)


def test_a_conversation_is_saved_as_an_example(stemma, tmp_path):
    typed = "the cat\n/save mine.jsonl\n/system be brief\nthe dog\n/save mine.jsonl\n"
    done = stemma("chat chatty --seed 2 --max-new-tokens 5", typed)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text("utf-8").splitlines()]
    first, second = (parse_messages(line["messages"]) for line in lines)
    assert [m.role for m in second] == ["system", "user", "assistant", "user", "assistant"]
    assert second[0].content == "be brief" and second[1:3] == first
    assert "saved to mine.jsonl (conversations there: 2)" in notes(done)


def test_commands_show_change_and_forget(stemma):
    typed = "/system\n/system sat\n/system\n/clear\n/history\n/system -\n/history\n/help\n/quit\nthe cat\n"
    done = stemma("chat chatty", typed)
    assert done.code == 0 and done.err.count("\n") == 3
    shown = [
        "(no system message)",
        "sat",
        "system: sat",
        "(no messages)",
        *terminal.HELP.splitlines(),
    ]
    assert done.out.splitlines() == shown
    assert notes(done) == [
        "the system message is set",
        "the messages are forgotten; the system message stays",
        "the system message is removed",
    ]


def test_regen_answers_anew_and_is_seen_in_the_history(stemma, chatty):
    done = stemma("chat chatty --seed 2 --max-new-tokens 5", "the cat\n/regen\n/history\n")
    first, second = (
        package.generate(*chatty, ask("the cat"), seed=seed, max_new_tokens=5) for seed in (2, 3)
    )
    assert first != second
    assert done.out == f"{first}\n{second}\nuser: the cat\nassistant: {second}\n"


def test_a_slash_of_ones_own_begins_with_two(stemma):
    done = stemma("chat chatty --max-new-tokens 1", "//the\n/history\n")
    assert done.code == 0 and "user: /the\n" in done.out


def test_help_and_commands_agree():
    assert set(re.findall(r"^(/\w+)", terminal.HELP, re.MULTILINE)) == {
        *terminal.COMMANDS,
        "/quit",
    } - {"/help"}


@pytest.mark.parametrize(
    ("turn", "code", "words"),
    [
        ("/sav x", 2, "/sav: no such command; did you mean /save, or begin a message with //"),
        ("/save", 2, "/save: no file is named; write /save FILE"),
        ("/save x", 2, "/save: there is nothing to save yet; write a message"),
        ("/regen", 2, "/regen: there is no answer yet; write a message"),
        ("a" * 200, 2, "message: .* leave no room in the model's context of 96; shorten it"),
        (
            "the\n/save chatty/config.json",
            2,
            "chatty/config.json:1: the file holds something else .*; .*",
        ),
        ("the\n/save no/x", 5, "no/x: No such file or directory; .*"),
    ],
)
def test_a_turn_that_fails_is_one_line_and_the_conversation_goes_on(stemma, turn, code, words):
    done = stemma("chat chatty --max-new-tokens 2 --seed 1", f"{turn}\n/clear\n/history\n")
    assert done.code == code
    assert len(done.errors) == 1 and re.fullmatch("error: " + words, done.errors[0]), done.err
    assert done.out.endswith("(no messages)\n")


def test_the_same_answer_is_not_given_twice(stemma):
    done = stemma("chat chatty --max-new-tokens 2 --temperature 0", "the\n/regen\n")
    assert done.code == 2 and "temperature 0 always takes the likeliest token" in done.err


def test_bytes_that_are_no_text_end_the_conversation(stemma):
    check_line(
        stemma("chat chatty", b"\xff\n"), 2, r"standard input: not UTF-8 text \(byte 0\); .*"
    )


def test_left_out_messages_are_counted_in_a_note(stemma):
    typed = "".join(f"the cat sat on the mat {number}\n" for number in range(5)) + "/history\n"
    done = stemma("chat chatty --max-new-tokens 4 --seed 1", typed)
    assert done.code == 0, done.err
    said = "the oldest 2 messages no longer fit the context of 96 tokens and are left out"
    assert said in notes(done)
    assert "(the messages above no longer fit the context, but for the system message)" in done.out


def test_a_signal_ends_a_conversation_from_a_pipe(stemma, monkeypatch):
    monkeypatch.setattr(terminal, "write", lambda text: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = stemma("chat chatty --max-new-tokens 2", "the\ncat\n")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.code == 75 and done.err == "stopped: by a signal; run the same command again\n"


# Markdown on a terminal

PAGE = """\
# Heading

Some *words*, `code`, List<int> and <b>tags</b>
and a [link](http://example.org/a?b).

1. one
2. two
   - nested

3. loose

> quoted

```python
def f(x):

    return x
```

| name | value |
| --- | --- |
| a | 1 |

---

[note]: http://example.org/b
the end
"""


def drawn(text, size, monkeypatch):
    """What stays on a terminal after an answer that comes `size` characters at a time."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=8, theme=terminal.THEME)
    monkeypatch.setattr(terminal, "FRAME", 0)
    growing = terminal.Growing(console)
    with Live(growing, console=console, auto_refresh=False, transient=True) as live:
        for at in range(0, len(text), size):
            growing.add(text[at : at + size], live)
        growing.end()
    return screen(out.getvalue())


def screen(written):
    """The lines that a terminal holds after some output, by the few commands that rich uses."""
    lines, row, column = [""], 0, 0
    for command, step, letter, text in re.findall(
        r"(\x1b\[\??([\d;]*)([A-Za-z]))|([^\x1b])", written
    ):
        if command and letter == "A":
            row -= int(step or 1)
            assert row >= 0
        elif command and letter == "K":
            lines[row] = "" if step == "2" else lines[row][:column]
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").split("\n")


def test_the_screen_ends_the_same_however_the_answer_comes(monkeypatch):
    whole = drawn(PAGE, len(PAGE), monkeypatch)
    for size in (2, 17):
        assert drawn(PAGE, size, monkeypatch) == whole
    text = "\n".join(whole)
    for words in (
        "List<int> and <b>tags</b>\nand a [link](http://example.org/a?b).",
        "\n 3 loose\n",
        "  def f(x):\n\n      return x\n",
        "[note]: http://example.org/b\nthe end",
    ):
        assert words in text
    assert "\n\n\n" not in text.partition("----")[0]


def test_every_word_of_an_answer_is_on_the_screen(monkeypatch):
    words = set(re.findall(r"\w+", PAGE)) - {"python"}
    assert words <= set(re.findall(r"\w+", "\n".join(drawn(PAGE, 5, monkeypatch))))


def test_finished_blocks_and_the_last_one_are_the_text():
    for end in range(len(PAGE)):
        finished, rest = terminal.split_finished(PAGE[:end])
        assert finished + rest == PAGE[:end]
        assert PAGE.startswith(finished)
    assert terminal.split_finished("```\na\n\nb") == ("", "```\na\n\nb")
    assert terminal.split_finished("1. a\n\n2") == ("", "1. a\n\n2")
    assert terminal.split_finished("1. a\n\n2. b\n\nc\n") == ("1. a\n\n2. b\n\n", "c\n")


def test_control_characters_of_an_answer_are_shown_and_not_obeyed(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = drawn("a\x1b[2Jb\x07\x9b31m\n\n```\n\x1b]0;t\x07\n```\n", 1, monkeypatch)
    assert lines == ["a\\x1b[2Jb\\x07\\x9b31m", "", "  \\x1b]0;t\\x07"]


# A real terminal


@pytest.mark.slow
def test_keys_at_a_real_terminal(chatty, tmp_path):
    """Ctrl-C ends an answer, drops a typed line, and then leaves with exit code 0."""
    model, tokenizer = chatty
    config = model.config.model_dump() | {"context": 8192, "width": 128, "depth": 4, "num_heads": 2}
    talker = api.build("llama", **config)
    with torch.no_grad():  # of two opposite scores one is above the others, so it never ends
        talker.head.weight[:] = 0
        talker.head.weight[tokenizer.encode("the")] = 1
        talker.head.weight[tokenizer.encode(" cat")] = -1
    api.save(talker, tokenizer, tmp_path / "talker")
    main, other = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "stemma",
        "chat",
        str(tmp_path / "talker"),
        "--temperature",
        "0",
    ]
    command += ["--max-new-tokens", "8000"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True
    )
    seen = b""

    def wait_for(words):
        nonlocal seen
        deadline = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536)
        seen = seen.partition(words)[2]

    try:
        wait_for(b">>> ")
        os.write(main, b"the cat\n")
        wait_for(b"the cat\r\n")
        wait_for(b"the")  # the answer has begun
        os.kill(process.pid, signal.SIGINT)
        wait_for(b"interrupted; ")
        wait_for(b">>> ")
        os.write(main, b"half a line")
        wait_for(b"half a line")
        os.kill(process.pid, signal.SIGINT)
        wait_for(b">>> ")
        os.write(main, b"/history\n")
        wait_for(b"user: the cat")
        wait_for(b">>> ")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
        os.close(other)
