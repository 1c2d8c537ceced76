"""The lineage stage: one trainer for all, the same tokens in the same order, and exact resume."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from stemma import api, cli
from stemma.eval.compute import flops_per_token, kind_of
from stemma.eval.decoding import decode_costs
from stemma.pipeline import lineage, training
from stemma.pipeline import recipe as recipes
from stemma.pipeline.lineage import LineageStage, pieces, without_embedding
from tests.pipeline.conftest import WORDS

RECIPE = """\
name: tiny
out: out
stages:
  corpus: {kind: curate, inputs: [docs], holdout: {fraction: 0.2}}
  words: {kind: tokenizer, corpus: corpus, vocab_size: 270}
  tree:
    kind: lineage
    corpus: corpus
    tokenizer: words
    networks:
      gru: {family: gru, width: 16, depth: 1, tied: true}
      llama: {family: llama, width: 16, depth: 1, num_heads: 2, tied: true}
      mixtral: {family: mixtral, width: 16, depth: 1, num_heads: 2, hidden: 8, num_experts: 2}
    context: 16
    tokens: 1000
    batch_tokens: 64
    learning_rates: [1e-3, 1e-2]
    seeds: 2
    watch_bytes: 300
    watch_points: 2
    score_bytes: 600
    decode: {lengths: [4, 8]}
    checkpoint_every: 3
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A folder with the recipe and its documents, as the working folder."""
    draw = np.random.default_rng(0)
    (tmp_path / "docs").mkdir()
    rows = [{"text": " ".join(draw.choice(WORDS, size=30))} for _ in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "docs" / "log.jsonl").write_text(text)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # put back afterwards
    return tmp_path


def run(*more):
    sys.argv = ["stemma", "run", "tiny.yaml", *more]
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


def summary(folder):
    return json.loads((folder / "out" / "tree" / "stage.json").read_text())["summary"]


def untimed(found):
    """What does not depend on the clock."""
    kept = json.loads(json.dumps(found))
    for network in kept["networks"].values():
        del network["tokens_per_second"], network["decode"]
        for curve in network["curves"]:
            for point in curve:
                del point["seconds"]
    return kept


def test_every_network_is_swept_and_trained_from_every_seed(recipe):
    assert run() == 0
    found = summary(recipe)
    assert found["networks"].keys() == {"gru", "llama", "mixtral"}
    for name, network in found["networks"].items():
        assert len(network["bits_per_byte"]) == 2 and len(network["curves"][0]) == 2
        assert network["learning_rate"] in (1e-3, 1e-2)
        swept = {
            r["learning_rate"]: r["bits_per_byte"] for r in found["sweep"] if r["network"] == name
        }
        assert swept[network["learning_rate"]] == min(swept.values())
        last = network["curves"][0][-1]
        assert last["flops"] == last["tokens"] * network["flops_per_token"]
        assert [cost["length"] for cost in network["decode"]] == [4, 8]
    assert not list((recipe / "out").rglob("*/steps/*"))  # no weights are kept
    assert [row["order"] for row in found["ngrams"]] == [2, 3, 4]


def test_all_networks_see_the_same_tokens_in_the_same_order(recipe, monkeypatch):
    real, seen = training.batches, {}

    def watched(state, order, windows):
        for window in real(state, order, windows):
            seen.setdefault(state.work.name, []).append([b.tokens_BT.copy() for b in window])
            yield window

    monkeypatch.setattr(training, "batches", watched)
    assert run() == 0
    for seed in (0, 1):
        streams = [seen[f"tree {name} seed-{seed}"] for name in ("gru", "llama", "mixtral")]
        for step in zip(*streams, strict=True):
            for ours, theirs in zip(step[0], step[1], strict=True):
                assert np.array_equal(ours, theirs)
    first, second = (seen[f"tree gru seed-{seed}"][0][0] for seed in (0, 1))
    assert not np.array_equal(first, second)  # another seed is another order


@pytest.mark.parametrize("at", [2, 17, 40])
def test_a_stopped_comparison_goes_on_to_the_same_numbers(recipe, monkeypatch, at):
    """Killed inside a trial, after some of its checkpoints, or between two trials."""
    assert run() == 0
    whole = untimed(summary(recipe))
    real, steps = training.note, 0

    def stopping(*arguments):
        nonlocal steps
        steps += 1
        if steps == at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "note", stopping)
    assert run("out=again") == 130
    monkeypatch.setattr(training, "note", real)
    assert run("out=again") == 0
    again = json.loads((recipe / "again" / "tree" / "stage.json").read_text())["summary"]
    assert untimed(again) == whole


def test_a_rate_that_diverges_is_a_result_and_not_an_end(recipe):
    assert run("tree.learning_rates=[1e-2, 1e30]", "tree.seeds=1") == 0
    found = summary(recipe)
    assert all(network["learning_rate"] == 1e-2 for network in found["networks"].values())
    wild = [r["bits_per_byte"] for r in found["sweep"] if r["learning_rate"] == 1e30]
    assert wild == [None, None, None]
    assert (recipe / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("family: gru,", "unknown family"),
        ("family: bert, num_heads: 2,", "bert cannot be trained by kind: lineage"),
        ("family: transformer, num_heads: 2,", "cannot be trained by kind: lineage"),
        ("family: gpt2, num_heads: 3,", "width (16) must be a multiple of num_heads (3)"),
        ("", "networks.gru names no family and no preset"),
    ],
)
def test_networks_are_checked_before_any_stage_runs(recipe, capsys, changed, words):
    wrong = changed.replace("gru", "gruu")
    text = RECIPE.replace("family: gru,", wrong).replace(
        ", tied: true}\n      llama", "}\n      llama"
    )
    (recipe / "tiny.yaml").write_text(text)
    assert run() == 2
    assert words in capsys.readouterr().err and not (recipe / "out" / "corpus").exists()


@pytest.mark.parametrize("total", [10, 100, 10_000])
def test_what_is_watched_is_never_what_is_scored(total):
    """Every part of every text is of one half; no part is cut inside a character."""
    texts = [
        "".join(f"{n:03d};" for n in range(200)),
        "".join(f"ä{n:03d};" for n in range(90)),
        "x",
    ]
    watched = pieces(texts, total, begin=0.1, end=0.5)
    scored = pieces(texts, total, begin=0.5, end=1.0)
    numbers = [set(re.findall(r"\d{3};", "|".join(found))) for found in (watched, scored)]
    for text in texts[:2]:
        own = [sum(n in text and text.index(n) for n in found) for found in numbers]
        assert all(own) or total == 10
    first = [found for found in watched if found in texts[0]][0]
    second = [found for found in scored if found in texts[0]][0]
    assert texts[0].index(first) + len(first) <= texts[0].index(second)


def test_steps_follow_from_tokens():
    stage = LineageStage.model_validate(
        {
            "kind": "lineage",
            "corpus": "c",
            "tokenizer": "t",
            "networks": {"a": {"family": "gru"}, "b": {"family": "rnn"}},
            "context": 16,
            "tokens": 1000,
            "batch_tokens": 64,
            "learning_rates": (1e-3,),
        }
    )
    assert (stage.steps(), stage.steps(0.25)) == (16, 4)


def test_operations_are_counted_from_the_layers():
    """Two operations a weight of every matrix, and four for each key that is seen."""
    model = api.build("llama", width=8, depth=2, num_heads=2, hidden=12, vocab_size=10, context=16)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    matrices -= model.embedding.weight.numel()  # read by index
    seen = sum(range(1, 17)) / 16
    assert flops_per_token(model, 16) == int(2 * matrices + 2 * 4 * 8 * seen)
    tied = api.build(
        "llama", width=8, depth=2, num_heads=2, hidden=12, vocab_size=10, context=16, tied=True
    )
    assert flops_per_token(tied, 16) == flops_per_token(model, 16)


def test_only_the_experts_that_are_asked_count():
    numbers = {
        "width": 8,
        "depth": 1,
        "num_heads": 2,
        "hidden": 12,
        "vocab_size": 10,
        "context": 16,
    }
    few = api.build("mixtral", num_experts=2, top_k=1, **numbers)
    many = api.build("mixtral", num_experts=6, top_k=1, **numbers)
    assert flops_per_token(many, 16) - flops_per_token(few, 16) == 2 * 4 * 8  # the router's rows
    assert without_embedding(many) > 2 * without_embedding(few)


def test_random_directions_are_products_too():
    """A direction with each query and each key, two operations a number."""
    numbers = {"width": 8, "depth": 1, "num_heads": 2, "vocab_size": 10, "context": 16}
    few = api.build("performer", features=4, **numbers)
    many = api.build("performer", features=8, **numbers)
    # 4 directions more: with query and key of 8 numbers, and in a matrix written and read
    assert flops_per_token(many, 16) - flops_per_token(few, 16) == 2 * 2 * 8 * 4 + 2 * 2 * 8 * 4


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru"])
def test_a_recurrent_network_costs_its_matrices(family):
    model = api.build(family, width=8, depth=2, vocab_size=10, context=16)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert flops_per_token(model, 16) == 2 * (matrices - model.embedding.weight.numel())


@pytest.mark.parametrize("family", [f for f in api.families() if api.does(f) == "continue"])
def test_every_family_that_writes_can_be_counted_and_has_a_kind(family):
    preset = next(name for name, of in api.presets().items() if of == family)
    model = api.sketch(*api.network({"preset": preset})[:1], **api.network({"preset": preset})[1])
    assert kind_of(model) in ("recurrent", "attention", "linear", "experts")
    assert flops_per_token(model, 128) > 0


def test_first_weights_have_one_rule_and_one_deviation_for_all(recipe):
    stage = recipes.load(recipe / "tiny.yaml", []).stages["tree"]
    for name in stage.networks:
        job = lineage.Job(name, "x", 0, 1e-3, 1)
        assert lineage.trial_stage(stage, job).model["initial_std"] == 0.25  # 16^-0.5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("tree.learning_rates=[0]", "learning_rates"),
        ("tree.learning_rates=[1e-3, 1e-3]", "names a rate twice"),
        ("tree.decode.lengths=[0, 8]", "lengths"),
        ("tree.seeds=0", "seeds"),
        ("tree.batch_tokens=65", "batch_tokens (65) must be a multiple of context (16)"),
    ],
)
def test_bad_numbers_are_refused_before_anything_runs(recipe, capsys, changed, words):
    assert run(changed) == 2
    assert words in capsys.readouterr().err and not (recipe / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", '""'])
def test_a_network_cannot_be_named_out_of_its_folder(recipe, capsys, name):
    text = RECIPE.replace(
        "      gru: {", f"      {name if name == chr(34) * 2 else repr(name)}: {{"
    )
    (recipe / "tiny.yaml").write_text(text)
    assert run() == 2
    assert "cannot name a folder" in capsys.readouterr().err
    assert sorted(p.name for p in recipe.iterdir()) == ["docs", "tiny.yaml"]


def test_a_result_of_another_trial_is_not_taken(recipe):
    assert run("tree.seeds=1") == 0
    path = recipe / "out" / "tree" / "trials" / "gru" / "seed-0" / "result.json"
    found = json.loads(path.read_text())
    job = lineage.Job("gru", "seed-0", 0, found["learning_rate"], found["steps"])
    assert lineage.kept_result(path, job) == found
    other = lineage.Job("gru", "seed-0", 1, found["learning_rate"], found["steps"])
    assert lineage.kept_result(path, other) is None


@torch.no_grad()
def test_decoding_keeps_more_with_a_cache_and_the_same_with_a_state():
    sizes = {}
    for family in ("llama", "gru", "delta"):
        heads = {} if family == "gru" else {"num_heads": 2}
        model = api.build(family, width=8, depth=1, vocab_size=10, context=200, **heads)
        sizes[family] = [cost.state_bytes for cost in decode_costs(model, (16, 128))]
    assert sizes["llama"][1] > 3 * sizes["llama"][0]
    assert sizes["gru"][0] == sizes["gru"][1] and sizes["delta"][0] == sizes["delta"][1]


def test_networks_of_other_sizes_are_told(caplog):
    stage = LineageStage.model_validate(
        {
            "kind": "lineage",
            "corpus": "c",
            "tokenizer": "t",
            "networks": {
                "small": {"family": "gru", "width": 8, "depth": 1},
                "large": {"family": "gru", "width": 32, "depth": 1},
            },
            "context": 16,
            "tokens": 1000,
            "batch_tokens": 64,
            "learning_rates": (1e-3,),
        }
    )
    lineage.tell_of_sizes(stage)
    assert "the comparison is also one of size" in caplog.text
