"""A file of prompts: checked whole, answered in order, and resumed to the same bytes."""

import json
import signal

import pytest
import torch

from stemma.core.errors import DataError, StoppedError, UsageError
from stemma.core.signals import Request
from stemma.data.bpe import train_tokenizer
from stemma.data.chatml import with_chatml
from stemma.data.renderer import Renderer
from stemma.infer import batch
from stemma.infer.generate import generate
from stemma.infer.sampling import Sampling

DRAWN = Sampling(temperature=1.2, top_p=1, seed=5, max_new_tokens=5)
LINES = [{"prompt": f"prompt {number}" * (1 + number % 3)} for number in range(19)]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def quiet(done, **numbers):
    """Progress that nobody sees."""


@pytest.fixture
def work(tmp_path, llama, tokenizer):
    """Answer the prompts file in `tmp_path`; returns how many answers were there already."""

    def working(
        sampling=DRAWN, lines=LINES, model=llama, request=None, overwrite=False, update=quiet
    ):
        prompts = write(tmp_path / "prompts.jsonl", lines)
        reader = batch.Reader(tokenizer, None, None, 64)
        jobs = batch.encode_prompts(prompts, batch.read_prompts(prompts), reader)
        return batch.write_answers(
            batch.Writer(model, tokenizer, sampling, {tokenizer.eos_id}),
            jobs,
            tmp_path / "out.jsonl",
            overwrite=overwrite,
            request=request or Request(),
            update=update,
        )

    return working


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def answers(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_answers_are_those_of_generate_in_the_promised_form(work, out, llama, tokenizer):
    own = [{"prompt": "a", "id": "first"}, {"prompt": "b", "seed": 9}, {"prompt": "", "id": 3}]
    assert work(lines=own) == 0
    found = answers(out)
    names = ["text", "finish_reason", "prompt_tokens", "completion_tokens", "seed", "key"]
    assert [list(each) for each in found] == [
        ["line", "id", *names],
        ["line", *names],
        ["line", "id", *names],
    ]
    settings = [DRAWN, DRAWN.model_copy(update={"seed": 9}), DRAWN]
    made = generate(llama, tokenizer, ["a", "b", ""], settings)
    for number, (each, wanted) in enumerate(zip(found, made, strict=True), 1):
        assert each["line"] == number and each["text"] == wanted.text
        for name in names[:-1]:
            assert each[name] == getattr(wanted, name)
    assert [each.get("id") for each in found] == ["first", None, 3]
    assert len({each["key"] for each in found}) == 3


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 16, 18])
@pytest.mark.parametrize("tail", [0, 1, 9, 40])
def test_a_resumed_file_has_the_bytes_of_an_unbroken_one(work, out, kept, tail):
    assert work() == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 19
    out.write_bytes(b"".join(lines[:kept]) + lines[kept][:tail])
    assert work() == kept // 8 * 8
    assert out.read_bytes() == whole


def test_a_complete_file_is_left_alone(work, out):
    work()
    before = (out.read_bytes(), out.stat().st_mtime_ns)
    assert work() == 19
    assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def test_a_signal_stops_between_batches_and_the_same_call_goes_on(work, out):
    work()
    whole = out.read_bytes()
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        out.unlink()
        request = Request()

        def ask(done, request=request, number=number, **numbers):
            request.number = number if done == 8 else 0

        with pytest.raises(StoppedError, match="after 16 of 19 answers, all saved") as stopped:
            work(request=request, update=ask)
        assert stopped.value.exit_code == code
        assert whole.startswith(out.read_bytes()) and len(answers(out)) == 16
        assert work() == 16 and out.read_bytes() == whole


def test_a_stop_while_the_last_batch_is_written_is_no_stop(work, out):
    assert work(request=Request(signal.SIGTERM), lines=LINES[:8]) == 0
    assert len(answers(out)) == 8


def test_seeds_that_were_drawn_are_recorded_and_stay(work, out):
    free = DRAWN.model_copy(update={"seed": None})
    work(free)
    first = answers(out)
    assert len({each["seed"] for each in first}) == 19
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:10]))
    assert work(free) == 8
    again = answers(out)
    assert again[:8] == first[:8] and again[8]["seed"] != first[8]["seed"]
    seeded = [line | {"seed": each["seed"]} for line, each in zip(LINES, again, strict=True)]
    before = out.read_bytes()
    assert work(free, seeded) == 19
    out.unlink()
    work(free, seeded)
    assert out.read_bytes() == before


CHANGES = {
    "setting": lambda build: {"sampling": DRAWN.model_copy(update={"top_k": 3})},
    "seed": lambda build: {"sampling": DRAWN.model_copy(update={"seed": 6})},
    "prompt": lambda build: {"lines": [{"prompt": "other"}, *LINES[1:]]},
    "seed of a line": lambda build: {"lines": [LINES[0] | {"seed": 7}, *LINES[1:]]},
    "id": lambda build: {"lines": [LINES[0] | {"id": "x"}, *LINES[1:]]},
    "fewer lines": lambda build: {"lines": LINES[:18]},
    "weights": lambda build: {"model": build("llama", seed=2)},
    "family": lambda build: {"model": build("gpt2")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_to_anything_else_are_refused_and_kept(work, out, build, change):
    work()
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"out.jsonl:\d+: is no answer .* or --overwrite"):
        work(**CHANGES[change](build))
    assert out.read_bytes() == before
    assert work(**CHANGES[change](build), overwrite=True) == 0
    assert out.read_bytes() != before


def test_one_weight_of_training_is_noticed(work, llama, out):
    """Training moves every tensor, so a few values of each are enough to look at."""
    work()
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(1e-9)
    with pytest.raises(UsageError, match="is no answer"):
        work()


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b'{"line": 1}\n', b'{"line": 2, ', b"\n", b"\xff"]
)
def test_a_file_of_something_else_is_refused_and_kept(work, out, content):
    out.write_bytes(content)
    with pytest.raises(UsageError, match="out.jsonl:1: is no answer"):
        work()
    assert out.read_bytes() == content


def test_two_commands_do_not_write_one_file(work, out):
    with batch._held(out):
        with pytest.raises(UsageError, match="another command writes this file"):
            work()
    assert work() == 0


def test_output_is_a_file_of_its_own(tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", LINES)
    (tmp_path / "link").symlink_to(prompts)
    for name in ("prompts.jsonl", "link"):
        with pytest.raises(UsageError, match="--input and --output are one file"):
            batch.check_output(prompts, tmp_path / name)
    with pytest.raises(UsageError, match="not a regular file"):
        batch.check_output(prompts, tmp_path)
    batch.check_output(prompts, tmp_path / "new" / "out.jsonl")


# Prompts files

BAD = [
    ('{"prompt": "a"', r":2:15: not JSON"),
    ("[]", ":2: expected an object with the key 'prompt' or 'messages', got a list"),
    ('{"prompt": 3}', ":2:prompt: expected a string, got a number"),
    ('{"promt": "a"}', ":2:promt: unknown key; did you mean prompt"),
    ("{}", ":2: no 'prompt', no 'messages'; give one of the two"),
    ('{"prompt": "a", "messages": []}', ":2: both 'prompt' and 'messages'"),
    ('{"prompt": "a", "seed": -1}', ":2:seed: expected a whole number"),
    ('{"prompt": "a", "seed": true}', ":2:seed: expected a whole number"),
    ('{"prompt": "a", "seed": 9223372036854775808}', ":2:seed: expected a whole number"),
    ('{"prompt": "a", "id": 1.5}', ":2:id: expected a string or a whole number, got a number"),
    ('{"prompt": "a", "system": []}', ":2:system: expected a string, got a list"),
    ('{"prompt": "\\ud800"}', ":2:prompt: lone surrogate"),
    ('{"messages": []}', ":2:messages: "),
    ('{"messages": [{"role": "usr", "content": "a"}]}', r":2:messages\[0\]\.role: "),
    ('{"messages": [{"role": "assistant", "content": "a"}]}', r":2:messages\[0\]\.role: the last"),
    (
        '{"system": "a", "messages": [{"role": "system", "content": "b"}, '
        '{"role": "user", "content": "c"}]}',
        ":2:system: the messages begin with a system message of their own",
    ),
    ('{"prompt": "a", "tools": [3]}', r":2:tools\[0\]: expected an object"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, line, words):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(DataError, match="prompts.jsonl" + words):
        batch.read_prompts(path)


def test_files_without_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    for content in (b"", b"\n \n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no prompts"):
            batch.read_prompts(path)
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="prompts.jsonl:1:byte 12: invalid UTF-8"):
        batch.read_prompts(path)
    with pytest.raises(UsageError, match="no such file"):
        batch.read_prompts(tmp_path / "missing")


def test_blank_lines_marks_and_carriage_returns_are_no_prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\n{"prompt": "b\\u2028"}')
    assert [(each.line, each.prompt) for each in batch.read_prompts(path)] == [
        (1, "a"),
        (3, "b\u2028"),
    ]


@pytest.fixture(scope="module")
def words():
    texts = ["the cat sat on the mat", "system user assistant"]
    return with_chatml(train_tokenizer(texts, vocab_size=270, splitting="gpt-2"))


def test_prompts_and_messages_go_through_the_template(tmp_path, words):
    spoken = [{"role": "user", "content": "the cat"}]
    lines = [
        {"prompt": "the cat"},
        {"messages": spoken},
        {"prompt": "the cat", "system": "sat"},
        {"messages": [{"role": "system", "content": "sat"}, *spoken]},
    ]
    path = write(tmp_path / "prompts.jsonl", lines)
    asked = batch.read_prompts(path)
    renderer = Renderer(words)
    jobs = batch.encode_prompts(path, asked, batch.Reader(words, renderer, None, 200))
    plain, same, system, opened = (job.ids.tolist() for job in jobs)
    assert plain == same == renderer.prompt(asked[1].messages)
    assert system == opened == renderer.prompt(asked[3].messages) != plain
    told = batch.Reader(words, renderer, "the mat", 200)
    common = [job.ids.tolist() for job in batch.encode_prompts(path, asked, told)]
    assert common[2:] == [system, opened] and common[0] == common[1] != plain


@pytest.mark.parametrize(
    ("line", "words_of_error"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "2:messages: needs the model's chat"),
        ({"prompt": "a", "system": "b"}, "2:system: needs the model's chat template"),
        ({"prompt": "cat" * 30}, r"2: \d\d tokens leave no room in the model's context of 20; "),
    ],
)
def test_a_line_that_the_model_cannot_take(tmp_path, words, line, words_of_error):
    path = write(tmp_path / "prompts.jsonl", [{"prompt": "the"}, line])
    reader = batch.Reader(words, None, None, 20)
    with pytest.raises(DataError, match="prompts.jsonl:" + words_of_error):
        batch.encode_prompts(path, batch.read_prompts(path), reader)


def test_a_prompt_may_fill_the_context_but_for_one_token(work, out, tokenizer):
    assert work(lines=[{"prompt": "x" * 62}]) == 0  # and the token that begins a text
    assert answers(out)[0]["completion_tokens"] == 1
    with pytest.raises(DataError, match="64 tokens leave no room .* 64; shorten it to at most 63"):
        work(lines=[{"prompt": "x" * 63}])
