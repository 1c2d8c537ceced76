"""The stage that foretells hidden tokens: from documents to an encoder that other programs open."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from stemma import api
from stemma.core.errors import UsageError
from stemma.data.curate import read_texts
from stemma.data.marked import around, marks_of
from stemma.infer.encoders import fill
from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner
from tests.pipeline.conftest import write_documents

RECIPE = """\
name: tiny
out: out
stages:
  corpus: {kind: curate, inputs: [docs], holdout: {fraction: 0.2}}
  words: {kind: tokenizer, corpus: corpus, vocab_size: 300}
  base:
    kind: masked
    corpus: corpus
    tokenizer: words
    model: {family: bert, width: 32, depth: 1, num_heads: 2, dropout: 0, initial_std: 0.1}
    context: 16
    steps: 120
    batch_tokens: 256
    learning_rate: 3e-3
    schedule: {kind: cosine, warmup: 5}
    optimizer: {embedding_rate: 3}
    checkpoint_every: 100
    watch: {every: 40, windows: 30}
    samples: {every: 60, texts: ["one two [MASK] four"]}
  export: {kind: export, model: base}
"""
TOPICS = ["one two three four", "red blue green black", "cat dog cow hen", "oak elm fir ash"]


def write_topics(folder):
    """Documents of one topic each: a hidden word is told by the others, hardly by frequency."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    words = [TOPICS[number % 4].split() for number in range(240)]
    rows = [{"text": " ".join(draw.choices(topic, k=12))} for topic in words]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def job(folder, *overrides, **settings):
    path = folder / "tiny.yaml"
    loaded = recipes.load(path, list(overrides))
    return runner.Run(
        recipe=loaded,
        root=folder,
        out=folder / "out",
        recipe_text=path.read_text(),
        command=["stemma", "run", "tiny.yaml"],
        overrides=overrides,
        **settings,
    )


def run(folder, *overrides, **settings):
    runner.execute(job(folder, *overrides, **settings), say=lambda line: None)


def record(folder, stage):
    return json.loads((folder / "out" / stage / "stage.json").read_text())


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[1:]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("topics")
    write_topics(folder / "docs")
    (folder / "tiny.yaml").write_text(RECIPE)
    run(folder)
    return folder


@pytest.fixture
def project(tmp_path):
    write_documents(tmp_path / "docs")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def test_neighbours_tell_more_than_frequency(finished):
    found = record(finished, "base")["summary"]["heldout"]
    own, guess = found["model"], found["unigram"]
    assert own["tokens"] == guess["tokens"] > 20
    assert own["loss"] < 0.8 * guess["loss"] and own["accuracy"] > 2 * guess["accuracy"]
    assert own["interval"][0] > guess["accuracy"]


def test_scores_along_training_are_of_the_same_tokens_and_end_in_the_summary(finished):
    held = [r for r in rows(finished / "out" / "base" / "metrics.jsonl") if "loss" not in r]
    assert [row["step"] for row in held] == [0, 40, 80, 120]
    losses = [row["heldout_masked_loss"] for row in held]
    assert losses[-1] < losses[0]
    own = record(finished, "base")["summary"]["heldout"]["model"]
    assert (losses[-1], held[-1]["heldout_masked_accuracy"]) == (own["loss"], own["accuracy"])


def test_every_place_is_accounted_for(finished):
    found = record(finished, "base")["summary"]["ledger"]
    assert found["places"] == found["trained"] + found["masked"] + found["padded"] == 120 * 256
    assert 0.1 < found["trained"] / (found["places"] - found["padded"]) < 0.16


def test_only_the_head_that_was_trained_is_there(finished):
    model, _ = api.load(finished / "out" / "base")
    assert model.head is not None
    assert model.pooler is model.pair_head is model.classifier is None


def test_transformers_opens_the_encoder_and_its_tokenizer(finished):
    from transformers import AutoTokenizer, BertForMaskedLM

    folder = finished / "out" / "export" / "hf"
    theirs = BertForMaskedLM.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    model, tokenizer = api.load(folder)
    text = next(read_texts(finished / "out" / "corpus" / "heldout.jsonl"))
    ids = around(marks_of(tokenizer), tokenizer.encode(text))[:16]
    assert words(text)["input_ids"][:15] == ids[:15]
    with torch.no_grad():
        wanted, got = theirs(torch.tensor([ids])).logits, model(torch.tensor([ids]))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert words.mask_token_id == marks_of(tokenizer).mask


def test_samples_are_the_texts_filled_in(finished):
    found = rows(finished / "out" / "base" / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in found] == [
        (60, "one two [MASK] four"),
        (120, "one two [MASK] four"),
    ]
    model, tokenizer = api.load(finished / "out" / "base")
    assert found[-1]["text"] == fill(model, tokenizer, ["one two [MASK] four"])[0]


def test_the_report_tells_the_score(finished):
    page = (finished / "out" / "report.html").read_text("utf-8")
    wanted = ("base: hidden tokens", "unigram", "Filled in by the model", "fill(model, tokenizer")
    for said in wanted:
        assert said in page
    assert "Does not balance" not in page and "temperature" not in page


def test_training_goes_on_from_a_masked_stage(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    more = """\
  more:
    kind: masked
    corpus: corpus
    init: base
    context: 16
    steps: 1
    batch_tokens: 64
    learning_rate: 1e-9
"""
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text() + more)
    run(tmp_path)
    before, after = (api.load(tmp_path / "out" / name)[0].state_dict() for name in ("base", "more"))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_an_encoder_from_elsewhere_gets_the_head_and_the_marks_it_lacks(project, caplog):
    from stemma.data.bpe import train_tokenizer

    words = train_tokenizer(["the cat sat on the mat"], vocab_size=262)
    heads = {"masked_head": False, "pair_head": False}
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": 32}
    model = api.build("bert", vocab_size=words.vocab_size, seed=5, **numbers, **heads)
    api.save(model, words, project / "theirs")
    text = RECIPE.replace("    tokenizer: words\n", "    init: ./theirs\n")
    lines = [line for line in text.splitlines() if "family: bert" not in line]
    (project / "tiny.yaml").write_text("\n".join(lines) + "\n")
    run(project, "base.steps=1", "base.learning_rate=1e-9", "base.samples.every=0")
    made, tokenizer = api.load(project / "out" / "base")
    assert made.config.vocab_size == words.vocab_size + 4 == tokenizer.vocab_size
    assert made.head is not None and made.pooler is None
    old, new = model.blocks.state_dict(), made.blocks.state_dict()
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert "has no head for masked tokens" in caplog.text


REFUSED = {
    "causal": ("family: bert", "family: llama", "llama cannot be trained by kind: masked"),
    "head": ("dropout: 0,", "pooler: true,", "is not set here"),
    "no-room": ("context: 16\n    steps", "context: 2\n    steps", "no room for a token"),
    "both": ("steps: 120", "steps: 120\n    tokens: 5", "one of tokens and steps"),
    "shares": ("watch:", "masking: {random: 0.5}\n    watch:", r"random \(0.5\) are shares"),
    "chat": ("tokenizer: words", "init: words", "one of model and init"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_settings_are_refused_before_any_stage_runs(project, name):
    old, new, what = REFUSED[name]
    text = RECIPE.replace(old, new)
    assert text != RECIPE
    (project / "tiny.yaml").write_text(text)
    with pytest.raises(UsageError, match=what):
        recipes.load(project / "tiny.yaml", [])


def test_a_text_without_a_hidden_place_is_refused_before_training(project):
    with pytest.raises(UsageError, match=r"nothing to fill in; write \[MASK\]"):
        run(project, "base.samples.texts=[one two]")
    assert not list((project / "out" / "base").glob("steps/*"))


def test_a_causal_model_from_elsewhere_is_refused(project, finished):
    from stemma.data.bpe import train_tokenizer

    words = train_tokenizer(["the cat sat on the mat"], vocab_size=262)
    numbers = {"width": 16, "depth": 1, "num_heads": 2, "context": 32}
    api.save(api.build("llama", vocab_size=words.vocab_size, **numbers), words, project / "theirs")
    lines = [line for line in RECIPE.splitlines() if "family: bert" not in line]
    text = "\n".join(lines).replace("    tokenizer: words\n", "    init: ./theirs\n") + "\n"
    (project / "tiny.yaml").write_text(text)
    with pytest.raises(UsageError, match="the family llama does not read a text from both sides"):
        run(project)


def test_without_held_out_text_there_is_no_score(project):
    run(project, "base.steps=2", "corpus.holdout.fraction=0", "base.samples.every=0")
    assert record(project, "base")["summary"]["heldout"] is None
    assert all("loss" in row for row in rows(project / "out" / "base" / "metrics.jsonl"))
    assert np.isfinite(record(project, "base")["summary"]["final_loss"])


CAUSAL = {
    "pretrain": "kind: pretrain, corpus: corpus, init: ./theirs, context: 16, steps: 1, "
    "batch_tokens: 16, learning_rate: 1e-3",
    "evaluate": "kind: evaluate, model: ./theirs, corpus: corpus, context: 16, stride: 8",
}


@pytest.mark.parametrize("kind", CAUSAL)
def test_an_encoder_is_not_taken_for_a_causal_model(project, finished, kind):
    shutil.copytree(finished / "out" / "base" / "final", project / "theirs")
    text = RECIPE[: RECIPE.index("  words:")] + f"  wrong: {{{CAUSAL[kind]}}}\n"
    (project / "tiny.yaml").write_text(text)
    with pytest.raises(UsageError, match="the family bert does not continue a text"):
        run(project)
