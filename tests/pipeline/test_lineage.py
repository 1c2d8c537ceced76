"""The lineage stage: one trainer for all, the same tokens in the same order, and exact resume."""

import json
import sys

import numpy as np
import pytest
import torch

from stemma import api, cli
from stemma.eval.compute import flops_per_token
from stemma.eval.decoding import decode_costs
from stemma.pipeline import lineage, training
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


def test_what_is_watched_is_never_what_is_scored():
    texts = ["".join(chr(97 + k % 26) + str(k) for k in range(300)), "short", "x"]
    for total in (10, 100, 10_000):
        watched = pieces(texts, total, begin=0.1, end=0.5)
        scored = pieces(texts, total, begin=0.5, end=1.0)
        assert watched and scored
        for text in texts:
            ours = [p for p in watched if p and p in text]
            theirs = [p for p in scored if p and p in text]
            for one in ours:
                assert all(text.index(one) + len(one) <= text.index(two) for two in theirs[:1])


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


@torch.no_grad()
def test_decoding_keeps_more_with_a_cache_and_the_same_with_a_state():
    sizes = {}
    for family in ("llama", "gru", "delta"):
        heads = {} if family == "gru" else {"num_heads": 2}
        model = api.build(family, width=8, depth=1, vocab_size=10, context=200, **heads)
        sizes[family] = [cost.state_bytes for cost in decode_costs(model, (16, 128))]
    assert sizes["llama"][1] > 4 * sizes["llama"][0]
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
