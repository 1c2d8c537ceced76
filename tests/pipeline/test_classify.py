# ruff: noqa: E501  (the table of bad inputs is read by rows)
"""The stage that labels texts: from examples to a classifier that other programs open."""

import json
import random
import shutil

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from stemma import api
from stemma.core.errors import UsageError
from stemma.data.bpe import train_tokenizer
from stemma.infer.encoders import label
from stemma.pipeline import recipe as recipes
from stemma.pipeline import runner
from tests.bad_inputs.command_line import call, check_line

WORDS = {
    "animal": "cat dog cow hen pig owl".split(),
    "colour": "red blue green black white pink".split(),
    "tree": "oak elm fir ash yew box".split(),
}
RECIPE = """\
name: tiny
out: out
stages:
  labels:
    kind: classify
    init: ./theirs
    inputs: [named.jsonl]
    holdout: 0.25
    context: 24
    steps: 100
    batch_tokens: 192
    learning_rate: 1e-2
    schedule: {kind: cosine, warmup: 3}
    optimizer: {embedding_rate: 3}
    checkpoint_every: 100
    watch: {every: 50}
    samples: {every: 50}
    device: cpu
"""


def write_examples(path, count=90):
    """Texts of words of one kind, each third with a second text."""
    draw, rows = random.Random(0), []
    for number in range(count):
        name = list(WORDS)[number % 3]
        text, second = (" ".join(draw.choices(WORDS[name], k=3)) for _ in "ab")
        rows.append({"text": text, "label": name} | ({"second": second} if number % 2 else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_encoder(folder, family="bert", **numbers):
    """An encoder with new weights, whose tokenizer has no marks."""
    texts = [" ".join(words) for words in WORDS.values()]
    words = train_tokenizer(texts, vocab_size=300)
    heads = {"masked_head": True, "pooler": False, "pair_head": False, "initial_std": 0.1}
    chosen = {"width": 24, "depth": 1, "num_heads": 2, "context": 32, "dropout": 0.0} | numbers
    heads = heads if family == "bert" else {}
    model = api.build(family, vocab_size=words.vocab_size, seed=5, **chosen, **heads)
    api.save(model, words, folder)


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


def summary(folder, stage="labels"):
    return json.loads((folder / "out" / stage / "stage.json").read_text())["summary"]


def lines(path, skip=0):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()[skip:]]


def lay_out(folder):
    write_examples(folder / "named.jsonl")
    save_encoder(folder / "theirs")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = lay_out(tmp_path_factory.mktemp("labels"))
    run(folder)
    return folder


@pytest.fixture
def project(tmp_path):
    return lay_out(tmp_path)


def test_labels_are_learned_beyond_the_commonest(finished):
    found = summary(finished)["heldout"]
    assert found["labels"] == ["animal", "colour", "tree"]
    assert found["texts"] > 15 and found["accuracy"] > 0.9
    assert found["majority"] / found["texts"] < 0.5 < found["interval"][0]


def test_the_matrix_counts_what_the_file_of_labelled_texts_holds(finished):
    found, texts = (
        summary(finished)["heldout"],
        lines(finished / "out" / "labels" / "labelled.jsonl"),
    )
    names = found["labels"]
    counted = [
        [sum((e["label"], e["given"]) == (r, g) for e in texts) for g in names] for r in names
    ]
    assert found["matrix"] == counted
    heldout = lines(finished / "out" / "labels" / "examples" / "heldout.jsonl")
    key = [(e["text"], e.get("second"), e["label"]) for e in heldout]
    assert sorted(map(str, key)) == sorted(
        str((e["text"], e.get("second"), e["label"])) for e in texts
    )


def test_given_labels_are_those_of_the_saved_model(finished):
    model, tokenizer = api.load(finished / "out")
    texts = lines(finished / "out" / "labels" / "labelled.jsonl")
    asked = [(e["text"], e["second"]) if "second" in e else e["text"] for e in texts]
    given = [next(iter(shares)) for shares in label(model, tokenizer, asked)]
    assert given == [e["given"] for e in texts]


def test_scores_along_training_begin_before_it_and_end_in_the_summary(finished):
    held = [r for r in lines(finished / "out/labels/metrics.jsonl", 1) if "loss" not in r]
    assert [row["step"] for row in held] == [0, 50, 100]
    assert held[0]["heldout_label_accuracy"] < 0.7
    found = summary(finished)["heldout"]
    assert held[-1]["heldout_label_loss"] == pytest.approx(found["loss"])
    assert held[-1]["heldout_label_accuracy"] == found["accuracy"]


def test_every_example_and_place_is_accounted_for(finished):
    found = summary(finished)
    examples, places = found["examples"], found["ledger"]
    assert examples["balanced"] and examples["read"] == 90
    assert places["places"] == places["read"] + places["padded"] == 100 * 192
    assert places["documents"] == examples["train"]
    assert places["labelled"] == found["tokens"] > 100


def test_transformers_opens_the_classifier_with_its_labels(finished):
    folder = finished / "out" / "labels" / "final"
    theirs = BertForSequenceClassification.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    assert theirs.config.id2label == {0: "animal", 1: "colour", 2: "tree"}
    model, tokenizer = api.load(folder)
    asked = ["cat red", ("oak", "elm fir ash"), "box"]
    firsts = [a if isinstance(a, str) else a[0] for a in asked]
    for text, first, shares in zip(asked, firsts, label(model, tokenizer, asked), strict=True):
        second = None if isinstance(text, str) else text[1]
        with torch.no_grad():
            wanted = theirs(**words(first, second, return_tensors="pt")).logits[0].softmax(-1)
        for number, name in theirs.config.id2label.items():
            assert shares[name] == pytest.approx(wanted[number].item(), abs=1e-5)


def test_samples_and_report_tell_what_was_given(finished):
    found = lines(finished / "out" / "labels" / "samples.jsonl", 1)
    assert {row["step"] for row in found} == {50, 100}
    assert all(row["text"] in WORDS and row["label"] in WORDS for row in found)
    page = (finished / "out" / "report.html").read_text("utf-8")
    for said in ("the commonest label", "Confusion matrix", "(right: ", "label(model, tokenizer"):
        assert said in page
    assert "Does not balance" not in page


def weights(folder, *names):
    return [api.load(folder / name)[0].state_dict() for name in names]


def test_weights_of_the_encoder_stay_or_are_forgotten(project):
    still = ("labels.steps=1", "labels.learning_rate=1e-12", "labels.samples.every=0")
    run(project, *still)
    old, new = weights(project, "theirs", "out/labels")
    shared = [name for name in new if name.startswith("blocks.")]
    assert len(shared) > 10 and all(torch.allclose(old[n], new[n], atol=1e-6) for n in shared)
    assert "pooler.dense.weight" in new and "head.dense.weight" not in new
    run(project, *still, "labels.weights=new", overwrite=True)
    other = weights(project, "out/labels")[0]
    matrices = [name for name in shared if old[name].ndim == 2]
    assert not any(torch.allclose(old[n], other[n], atol=1e-3) for n in matrices)


MORE = """\
  more:
    kind: classify
    init: labels
    inputs: [other.jsonl]
    holdout: 0.25
    context: 24
    steps: 1
    batch_tokens: 96
    learning_rate: 1e-12
"""


@pytest.mark.parametrize("same", [True, False])
def test_a_head_is_kept_for_the_same_labels_alone(finished, tmp_path, same):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny.yaml").write_text(RECIPE + MORE)
    text = (tmp_path / "named.jsonl").read_text()
    (tmp_path / "other.jsonl").write_text(text if same else text.replace("animal", "beast"))
    run(tmp_path)
    old, new = weights(tmp_path, "out/labels", "out/more")
    assert torch.allclose(old["classifier.weight"], new["classifier.weight"], atol=1e-6) == same
    assert torch.allclose(old["pooler.dense.weight"], new["pooler.dense.weight"], atol=1e-6)


def test_names_of_files_can_be_the_labels(project):
    draw = random.Random(1)
    (project / "books").mkdir()
    for name, words in WORDS.items():
        for number in range(3):
            parts = (" ".join(draw.choices(words, k=6)) for _ in range(4))
            (project / "books" / f"{name}-{number}.txt").write_text("\n\n".join(parts) + "\n")
    said = ", ".join(f"{name}: '^{name}'" for name in WORDS)
    passages = f"    passages: {{characters: 20, labels: {{{said}}}}}\n    holdout"
    text = RECIPE.replace("named.jsonl", "books").replace("    holdout", passages)
    (project / "tiny.yaml").write_text(text)
    run(project, "labels.holdout=0.3")
    found = summary(project)
    assert found["heldout"]["labels"] == list(WORDS) and found["heldout"]["accuracy"] > 0.8
    folder = project / "out" / "labels" / "examples"
    sides = [{e["source"] for e in lines(folder / f"{n}.jsonl")} for n in ("train", "heldout")]
    assert not sides[0] & sides[1] and len(sides[1]) == 3  # whole files are held out


def test_long_texts_are_cut_and_counted(project):
    text = " ".join(["oak elm"] * 40)
    with open(project / "named.jsonl", "a") as file:
        file.write(json.dumps({"text": text, "label": "tree"}) + "\n")
        file.write(json.dumps({"text": text + " fir", "second": "ash", "label": "tree"}) + "\n")
    run(project, "labels.holdout=0", "labels.steps=2", "labels.samples.every=0")
    found = summary(project)
    assert found["ledger"]["cut"] == 2 and found["heldout"] is None


def test_few_examples_are_taken_from_all_labels(project):
    run(project, "labels.examples=7", "labels.steps=1", "labels.batch_tokens=24")
    labels = summary(project)["examples"]["labels"]
    assert sorted(one["train"] for one in labels.values()) == [2, 2, 3]


def row(text, name):
    return json.dumps({"text": text, "label": name}) + "\n"


def some(*names):
    """A few texts of each label."""
    return "".join(row(f"cat {number} {name}", name) for name in names for number in range(12))


HELD = "labels.heldout=[held.jsonl] labels.holdout=0"
BAD = {
    "single-label": (some("animal"), "", "", 3, r".*have only the label 'animal'; classification needs .+"),
    "too-few": (row("a", "x") + row("b", "y"), "", "", 3, r"holdout: too few texts to hold out .+"),
    "empty-text": (some("x", "y") + row("  ", "x"), "", "", 3, r"named\.jsonl:25:text: a text that is empty; .+"),
    "no-label": (some("x", "y") + '{"text": "a"}\n', "", "", 3, r"named\.jsonl:25: no key 'label' \(keys: text\); .+"),
    "unknown-held-out": (some("x", "y"), row("new", "z"), HELD, 3, r"held\.jsonl:1: the label 'z' is held out.*"),
    "less-than-a-batch": (some("x", "y"), "", "labels.batch_tokens=4800", 2, r"labels: batch_tokens: \d+ samples of 24 .+"),
    "no-encoder": (some("x", "y"), "", "labels.init=./causal", 2, r"\./causal: the family llama does not .+"),
    "too-long": (some("x", "y"), "", "labels.context=48 labels.batch_tokens=48", 2, r".*context \(48\) is longer .+"),
    "text-file": (some("x", "y"), "", "labels.inputs=[notes.txt]", 2, r".*unknown ending '\.txt'.+"),
    "no-expression": (some("x", "y"), "", "labels.passages.labels={a: '(', b: x}", 2, r".*is no regular expression.+"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_line(project, name):
    named, held, overrides, code, line = BAD[name]
    (project / "named.jsonl").write_text(named)
    (project / "held.jsonl").write_text(held)
    (project / "notes.txt").write_text("a note\n")
    if name == "no-encoder":
        save_encoder(project / "causal", "llama", context=32)
    quoted = "".join(f" '{part}'" for part in [overrides] if part and name == "no-expression")
    check_line(call(project, f"run tiny.yaml {quoted or overrides}"), code, line)
    assert not (project / "out" / "labels" / "final").exists()


def test_bad_lines_can_be_left_out(project):
    with open(project / "named.jsonl", "a") as file:
        file.write('{"text": "", "label": "tree"}\n')
    run(project, "labels.bad_lines=skip", "labels.steps=1")
    assert summary(project)["examples"]["rejected"] == 1
    [reject] = lines(project / "out" / "labels" / "examples" / "rejects.jsonl")
    assert (reject["line"], reject["key"]) == (91, "text")


def test_two_ways_of_holding_out_exclude_each_other(project):
    with pytest.raises(UsageError, match="heldout and holdout exclude each other"):
        recipes.load(project / "tiny.yaml", ["labels.heldout=[held.jsonl]"])
