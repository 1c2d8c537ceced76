"""The stage that teaches to answer: from files to a chat model, resumed to the same bits."""

import json
import random
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from stemma import api
from stemma.core.errors import DataError, StoppedError, UsageError
from stemma.core.files import sha256_file
from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner, sft, training
from tests.pipeline.conftest import RECIPE, WORDS, write_documents

CHAT = """\
  chat:
    kind: sft
    init: base
    inputs: [talk.jsonl]
    holdout: 0.2
    context: 64
    epochs: 2
    batch_tokens: 256
    micro_batch_tokens: 128
    learning_rate: 1e-2
    checkpoint_every: 3
    watch: {every: 4}
    samples: {every: 5, max_new_tokens: 5, prompts: [the cat]}
  scores:
    kind: evaluate
    model: chat
    before: [base]
    corpus: corpus
    conversations: chat
    context: 64
    stride: 32
    answers: {prompts: 6, max_new_tokens: 8}
  export: {kind: export, model: chat}
"""


def write_talk(path, count=40):
    """Short conversations of few words; some with two turns."""
    draw = random.Random(1)
    rows = []
    for number in range(count):
        said = [" ".join(draw.choices(WORDS, k=2)) for _ in range(2 + 2 * (number % 3 == 0))]
        said[0] = f"{WORDS[number % len(WORDS)]} {number}"
        roles = ("user", "assistant")
        rows.append(
            {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(said)]}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_project(folder):
    write_documents(folder / "docs")
    write_talk(folder / "talk.jsonl")
    base = RECIPE[: RECIPE.index("  scores:")].replace("context: 16", "context: 64")
    (folder / "tiny.yaml").write_text(base.replace("    micro_batch_tokens: 32\n", "") + CHAT)


def run(folder, *overrides, **settings):
    path = folder / "tiny.yaml"
    loaded = recipes.load(path, list(overrides))
    job = runner.Run(
        recipe=loaded,
        root=folder,
        out=folder / "out",
        recipe_text=path.read_text(),
        command=["stemma", "run", "tiny.yaml"],
        overrides=overrides,
        **settings,
    )
    runner.execute(job, say=lambda line: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    write_project(folder)
    run(folder)
    return folder


def lines(path):
    return path.read_text("utf-8").splitlines()


def record(folder, stage):
    return json.loads((folder / "out" / stage / "stage.json").read_text())


def test_chat_model_has_a_template_and_ends_its_turns(finished):
    model, tokenizer = api.load(finished / "out")
    assert tokenizer.template is not None
    end = tokenizer.backend.token_to_id("<|im_end|>")
    assert tokenizer.eos_id == end and end in api.end_ids(model, tokenizer)
    base, _ = api.load(finished / "out" / "base")
    assert model.config.vocab_size == base.config.vocab_size + 2


def test_exported_chat_model_opens_in_transformers(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "out" / "export" / "hf"
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    model, tokenizer = api.load(folder)
    said = [{"role": "user", "content": "the cat"}]
    ids = words.apply_chat_template(said, add_generation_prompt=True, tokenize=True)
    ids = ids["input_ids"] if not isinstance(ids, list) else ids
    from stemma.data.messages import Message
    from stemma.data.renderer import Renderer

    assert ids == Renderer(tokenizer).prompt([Message("user", "the cat")])
    with torch.inference_mode():
        torch.testing.assert_close(
            model(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, atol=1e-4, rtol=0
        )
    assert theirs.generation_config.eos_token_id[0] == tokenizer.eos_id


def test_training_brings_the_loss_of_held_out_answers_down(finished):
    losses = record(finished, "chat")["summary"]["heldout_loss"]
    assert losses["after"] < losses["before"] - 0.3
    rows = {row["name"]: row for row in record(finished, "scores")["summary"]["chat"]["scores"]}
    assert rows["chat"]["answer_loss"] == pytest.approx(losses["after"], rel=1e-5)
    assert rows["base"]["answer_loss"] == pytest.approx(losses["before"], rel=1e-5)
    assert rows["base"]["stopped"] <= rows["base"]["answers"] == 6


def test_ledgers_balance(finished):
    summary = record(finished, "chat")["summary"]
    talk, seen, ledger = (summary[k] for k in ("conversations", "preflight", "ledger"))
    assert talk["balanced"] and seen["balanced"]
    assert seen["conversations"] == talk["train"]
    assert ledger["places"] == ledger["trained"] + ledger["masked"] + ledger["padded"]
    rows = [json.loads(line) for line in lines(finished / "out" / "chat" / "metrics.jsonl")]
    assert [r["tokens"] for r in rows if "loss" in r][-1] == ledger["trained"]
    whole = json.loads((finished / "out" / "ledger.json").read_text())["stages"]["chat"]
    assert whole["preflight"]["trained"] == seen["trained"]


def test_no_first_turn_is_on_both_sides(finished):
    folder = finished / "out" / "chat" / "conversations"
    firsts = [
        {json.loads(line)["messages"][0]["content"] for line in lines(folder / f"{side}.jsonl")}
        for side in ("train", "heldout")
    ]
    assert firsts[0] and firsts[1] and not firsts[0] & firsts[1]


class Killed(BaseException):
    """Stands for the end of the process at any line."""


@pytest.mark.parametrize("step", [1, 4, 7])
def test_killed_stage_resumes_to_the_same_bits(finished, tmp_path, monkeypatch, step):
    write_project(tmp_path)
    real = training.RowFile.add

    def add(self, **row):
        real(self, **row)
        if "loss" in row and row["step"] == step and self.path.parent.name == "chat":
            raise Killed

    monkeypatch.setattr(training.RowFile, "add", add)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    run(tmp_path)
    ours, theirs = (
        load_file(f / "out" / "chat" / "final" / "model.safetensors") for f in (tmp_path, finished)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("samples.jsonl",):
        files = [f / "out" / "chat" / name for f in (tmp_path, finished)]
        assert files[0].read_text() == files[1].read_text()
    losses = [
        [
            (row["step"], row.get("loss"), row.get("heldout_answer_loss"))
            for row in map(json.loads, lines(f / "out" / "chat" / "metrics.jsonl"))
            if "step" in row
        ]
        for f in (tmp_path, finished)
    ]
    assert losses[0] == losses[1]


def in_the_middle(monkeypatch, number, act):
    """Do something at a micro-batch of the chat stage, whose loss alone this is."""
    real, seen = sft.assistant_loss, []

    def loss(model, batch):
        seen.append(batch)
        if model.training and sum(1 for _ in seen) == number:
            act()
        return real(model, batch)

    monkeypatch.setattr(sft, "assistant_loss", loss)


def chat_weights(folder):
    return sha256_file(folder / "out" / "chat" / "final" / "model.safetensors")


def killed():
    raise Killed


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_a_step(finished, tmp_path, monkeypatch, workers):
    write_project(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_the_middle(patch, 10, killed)
        run(tmp_path, f"chat.workers={workers}")
    run(tmp_path, f"chat.workers={2 - workers}")
    assert chat_weights(tmp_path) == chat_weights(finished)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_in_the_middle_of_a_step(finished, tmp_path, monkeypatch, sent, code, workers):
    write_project(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match="saved") as stopped:
        in_the_middle(patch, 10, lambda: signal.raise_signal(sent))
        run(tmp_path, f"chat.workers={workers}")
    assert stopped.value.exit_code == code
    step = int(re.search(r"after step (\d+)", str(stopped.value))[1])
    assert (tmp_path / "out" / "chat" / "steps" / f"{step:08d}" / "state.json").is_file()
    run(tmp_path)
    assert chat_weights(tmp_path) == chat_weights(finished)


def test_conversations_may_change_in_the_middle_where_that_is_asked_for(tmp_path, monkeypatch):
    write_project(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_the_middle(patch, 10, killed)
        run(tmp_path)
    write_talk(tmp_path / "talk.jsonl", count=60)
    with pytest.raises(UsageError, match=r"chat: .*\(input files was .*; --reset-data goes on"):
        run(tmp_path)
    with pytest.raises(UsageError, match=r"init was 'base', now .*--reset-data changes data alone"):
        shutil.copytree(tmp_path / "out" / "base" / "final", tmp_path / "other")
        run(tmp_path, "chat.init=./other", reset_data=True)
    run(tmp_path, "chat.epochs=3", reset_data=True)
    summary, (reset,) = record(tmp_path, "chat")["summary"], record(tmp_path, "chat")["data_resets"]
    ledger = summary["ledger"]
    assert reset["step"] == 3 and summary["conversations"]["read"] == 60
    assert ledger["places"] == ledger["trained"] + ledger["masked"] + ledger["padded"]
    assert ledger["places"] == 256 * summary["steps"] and ledger["padded"] >= 0
    rows = [json.loads(line) for line in lines(tmp_path / "out" / "chat" / "metrics.jsonl")]
    assert [r["tokens"] for r in rows if "loss" in r][-1] == ledger["trained"]


def test_epochs_that_are_over_after_a_reset_are_refused(tmp_path, monkeypatch):
    write_project(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        in_the_middle(patch, 18, killed)
        run(tmp_path, "chat.checkpoint_every=1")
    assert len(list((tmp_path / "out" / "chat" / "steps" / "00000006").iterdir())) == 4
    write_talk(tmp_path / "talk.jsonl", count=16)
    with pytest.raises(UsageError, match=r"[67] steps are done, .* now make 5; give it m"):
        run(tmp_path, reset_data=True)


def test_samples_say_whether_the_answer_ended(finished):
    rows = [json.loads(line) for line in lines(finished / "out/chat/samples.jsonl")][1:]
    assert rows and all(row["ended"] in (True, False) for row in rows)
    assert any(not row["ended"] for row in rows)  # five tokens are few
    base = [json.loads(line) for line in lines(finished / "out/base/samples.jsonl")][1:]
    assert base and not any("ended" in row for row in base)


def test_only_what_is_named_learns(finished, tmp_path):
    write_project(tmp_path)
    run(tmp_path, "chat.trainable=[blocks.*.mlp, head]", until="chat")
    ours = load_file(tmp_path / "out" / "chat" / "final" / "model.safetensors")
    base = load_file(tmp_path / "out" / "base" / "final" / "model.safetensors")
    moved = {
        n for n in base if ours[n].shape == base[n].shape and not torch.equal(ours[n], base[n])
    }
    assert moved == {n for n in base if ".mlp." in n}


def test_pattern_that_names_nothing_stops_before_the_first_step(finished, tmp_path):
    write_project(tmp_path)
    with pytest.raises(UsageError, match=r"no module matches 'q_proj'; nearest: "):
        run(tmp_path, "chat.trainable=[q_proj]", until="chat")


def test_held_out_file_that_overlaps_is_told_or_refused(tmp_path, caplog):
    write_project(tmp_path)
    (tmp_path / "other.jsonl").write_text(
        "".join((tmp_path / "talk.jsonl").read_text().splitlines(keepends=True)[:3])
    )
    keys = ("chat.heldout=[other.jsonl]", "chat.holdout=0")
    with caplog.at_level("WARNING", logger="stemma"):
        run(tmp_path, *keys, until="chat")
    assert any("3" in m and "held" in m for m in caplog.messages)
    with pytest.raises(DataError):
        run(tmp_path, *keys, "chat.strict=true", until="chat", overwrite=True)


def test_added_tokens_that_cannot_learn_are_refused(tmp_path):
    write_project(tmp_path)
    with pytest.raises(UsageError, match=r"chat: trainable: the token that ends a turn .*; add h"):
        run(tmp_path, "chat.trainable=[blocks.*]", until="chat")


def test_held_out_turns_that_do_not_fit_are_left_out_and_told(tmp_path, caplog):
    write_project(tmp_path)
    long = {"role": "user", "content": "the cat sat on the mat " * 40}
    said = [{"messages": [long, {"role": "assistant", "content": "the cat"}]}]
    said += [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    ]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    recipe = (tmp_path / "tiny.yaml").read_text().replace(", prompts: [the cat]}", "}")
    (tmp_path / "tiny.yaml").write_text(recipe)
    with caplog.at_level("WARNING", logger="stemma"):
        run(tmp_path, "chat.heldout=[other.jsonl]", "chat.holdout=0", until="scores")
    rows = record(tmp_path, "scores")["summary"]["chat"]["scores"]
    assert [(row["scored"], row["answers"], row["not_asked"]) for row in rows] == [(1, 1, 1)] * 2
    assert any("is not asked 1 of 2 first turns" in message for message in caplog.messages)
    samples = (tmp_path / "out" / "chat" / "samples.jsonl").read_text()
    assert '"prompt": "a"' in samples and "the mat" not in samples


def test_prompt_of_the_recipe_that_does_not_fit_is_refused_before_a_step(tmp_path):
    write_project(tmp_path)
    with pytest.raises(UsageError, match=r"chat: samples\.prompts: a prompt leaves no room"):
        run(tmp_path, f"chat.samples.prompts=[{'the cat ' * 60}]", until="chat")
    assert not (tmp_path / "out" / "chat" / "steps").exists()
