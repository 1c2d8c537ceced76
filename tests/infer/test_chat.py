"""A conversation: what the model is shown, what is kept, and what never changes."""

import json
from contextlib import closing

import pytest

from stemma.core.errors import ResourceError, UsageError
from stemma.data.flaws import Flaw
from stemma.data.messages import Message, parse_messages
from stemma.infer.chat import Chat, append_conversation, to_be_answered
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=4)
DRAWN = Sampling(temperature=1.5, top_p=1, seed=5, max_new_tokens=6)


def render(messages):
    """A template in one line: "s" for system and so on, the content, ";", in the end ">"."""
    return list("".join(f"{m.role[0]}{m.content};" for m in messages).encode() + b">")


@pytest.fixture
def start(llama, tokenizer):
    """A conversation with the random model, whose context is 64."""

    def starting(sampling=DRAWN, model=llama, render=render, **settings):
        return Chat(model, tokenizer, render, sampling, end_ids={tokenizer.eos_id}, **settings)

    return starting


def said(pieces):
    return "".join(piece.text for piece in pieces)


def texts(chat):
    return [(m.role, m.content) for m in chat.history]


def test_the_model_is_shown_the_whole_history_and_its_answer_is_kept(start, llama, tokenizer):
    chat = start()
    first = said(chat.say("one"))
    second = said(chat.say("two"))
    assert texts(chat) == [
        ("user", "one"),
        ("assistant", first),
        ("user", "two"),
        ("assistant", second),
    ]
    ids = render(chat.history[:3])
    alone = generate(llama, tokenizer, [ids], DRAWN, end_ids={tokenizer.eos_id})[0]
    assert alone.text == second and alone.text != first


def test_the_same_seed_gives_the_same_conversation_and_none_is_drawn_once(start):
    assert said(start().say("x")) == said(start().say("x"))
    free = DRAWN.model_copy(update={"seed": None})
    chats = [start(free) for _ in range(4)]
    assert len({chat.seed for chat in chats}) == 4
    assert len({said(chat.say("x")) for chat in chats}) > 1


def test_system_message_opens_the_prompt_until_it_is_changed(start):
    seen = []

    def spying(messages):
        seen.append([(m.role, m.content) for m in messages])
        return render(messages)

    chat = start(render=spying)
    chat.instruct("be brief")
    answer = said(chat.say("x"))
    assert seen[-1] == [("system", "be brief"), ("user", "x")]
    chat.instruct(None)
    said(chat.say("y"))
    assert seen[-1] == [("user", "x"), ("assistant", answer), ("user", "y")]


def test_answering_again_replaces_the_answer_by_that_of_the_next_seed(start):
    chat = start()
    first = said(chat.say("x"))
    again = said(chat.again())
    assert texts(chat) == [("user", "x"), ("assistant", again)] and again != first
    assert chat.seed == DRAWN.seed + 1
    assert said(start(DRAWN.model_copy(update={"seed": DRAWN.seed + 1})).say("x")) == again


def test_the_largest_seed_has_a_next_one(start):
    chat = start(DRAWN.model_copy(update={"seed": 2**63 - 1}))
    said(chat.say("x"))
    said(chat.again())
    assert chat.seed == 0


def test_answering_again_is_refused_where_nothing_would_change(start):
    with pytest.raises(UsageError, match="no answer yet"):
        start().again()
    chat = start(GREEDY)
    said(chat.say("x"))
    before = texts(chat)
    with pytest.raises(UsageError, match="temperature 0 .* the same"):
        chat.again()
    assert texts(chat) == before


def test_an_interrupted_answer_keeps_its_beginning(start, say):
    model = say({ord(">"): ord("A"), ord("A"): ord("B"), ord("B"): ord("A")})
    chat = start(GREEDY, model)
    with closing(chat.say("x")) as pieces:
        assert next(pieces).text + next(pieces).text == "AB"
    assert texts(chat) == [("user", "x"), ("assistant", "AB")]
    assert said(chat.say("y")) == "ABAB"


@pytest.mark.parametrize("steps", [0, 1])
def test_where_nothing_came_nothing_has_changed(start, say, steps):
    """One step writes half of a character, which is no text yet."""
    model = say({ord(">"): "é".encode()[0], "é".encode()[0]: "é".encode()[1]})
    chat = start(GREEDY.model_copy(update={"temperature": 1e-6}), model)
    for begin in (lambda: chat.say("x"), lambda: chat.say("y"), chat.again):
        before = texts(chat)
        with closing(begin()) as pieces:
            for _ in range(steps):
                assert next(pieces).text == ""
        assert texts(chat) == before
        chat.messages = [Message("user", "x"), Message("assistant", "é")]


def test_an_answer_that_ends_at_once_is_an_answer(start, say, tokenizer):
    chat = start(GREEDY, say({ord(">"): tokenizer.eos_id}))
    assert said(chat.say("x")) == ""
    assert texts(chat) == [("user", "x"), ("assistant", "")]


def test_any_of_the_end_tokens_ends_the_answer(llama, tokenizer, say):
    model = say({ord(">"): ord("A"), ord("A"): ord("B"), ord("B"): ord("A")})
    chat = Chat(model, tokenizer, render, GREEDY, end_ids={tokenizer.eos_id, ord("B")})
    assert said(chat.say("x")) == "A"


def test_oldest_exchanges_are_left_out_of_the_prompt_and_never_the_system_message(start, say):
    """The context is 64: 60 tokens of prompt and 4 of answer. An exchange takes 10 + 6 tokens."""
    model = say({ord(">"): ord("A"), ord("A"): ord("A")})
    shown = []

    def spying(messages):
        ids = render(messages)
        shown.append((len(ids), [m.role for m in messages]))
        return ids

    chat = start(GREEDY, model, spying)
    chat.instruct("S")
    left_out = []
    for number in range(6):
        said(chat.say(f"message{number}"))
        left_out.append(chat.left_out)
        size, roles = shown[-1]
        assert size <= 60 and roles[0] == "system" and roles[1] == "user"
        assert len(roles) == 1 + 2 * number + 1 - chat.left_out
    assert left_out == [0, 0, 0, 2, 4, 6]
    assert len(chat.messages) == 12 and chat.messages[0].content == "message0"
    chat.clear()
    assert chat.left_out == 0 and texts(chat) == [("system", "S")]


def test_a_message_may_use_all_of_the_context_but_one_token(start):
    chat = start(GREEDY)
    assert len(list(chat.say("x" * (63 - 3)))) == 1
    with pytest.raises(UsageError, match="64 tokens.* leave no room .* context of 64; shorten it"):
        chat.say("x" * (64 - 3))


def test_a_message_that_cannot_be_said_changes_nothing(start):
    def refusing(messages):
        if messages[0].role == "system":
            raise Flaw("System role not supported")
        return render(messages)

    chat = start(render=refusing)
    said(chat.say("x"))
    before = texts(chat)
    for begin, words in (
        (lambda: chat.instruct("S"), "chat template: System role not supported"),
        (lambda: chat.say("y" * 70), "leave no room"),
        (lambda: chat.say("\udce9"), "user: lone surrogate"),
    ):
        with pytest.raises(UsageError, match=words):
            begin()
        assert texts(chat) == before and chat.system is None
    said(chat.say("z"))
    assert len(chat.messages) == 4


def test_assistant_does_not_answer_itself():
    spoken = [Message("user", "x"), Message("assistant", "y")]
    assert to_be_answered(tuple(spoken[:1])) == (spoken[0],)
    with pytest.raises(Flaw) as caught:
        to_be_answered(tuple(spoken))
    assert caught.value.key == "messages[1].role"


# Files of conversations

SPOKEN = (Message("system", "S"), Message("user", "é\n\u2028"), Message("assistant", "b"))


def test_conversations_are_appended_as_lines_to_train_on(tmp_path):
    path = tmp_path / "mine.jsonl"
    assert [append_conversation(path, SPOKEN) for _ in range(3)] == [1, 2, 3]
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"" and len(lines) == 3
    for line in lines:
        assert parse_messages(json.loads(line)["messages"]) == SPOKEN


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"notes", ":1: the file holds something else"),
        (b'{"text": "a"}\n', ":1: the file holds something else"),
        (b'{"messages": []}\n', ":1: the file holds something else"),
        (b'{"messages": [{"role": "user", "content": "a"}]}\nx\n', ":2: the file holds something"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', ":1: the last line has no end"),
        (b"\xff\n", ":1: the file holds something else"),
        (b"\n", ":1: the file holds something else"),
    ],
)
def test_a_file_of_something_else_stays_as_it_is(tmp_path, content, words):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        append_conversation(path, SPOKEN)
    assert path.read_bytes() == content


def test_a_folder_or_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a regular file"):
        append_conversation(tmp_path, SPOKEN)
    with pytest.raises(ResourceError, match="No such file"):
        append_conversation(tmp_path / "no" / "file", SPOKEN)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    append_conversation(path, SPOKEN)
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stemma.infer.chat.os.fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        append_conversation(path, SPOKEN)
    assert path.read_bytes() == before
