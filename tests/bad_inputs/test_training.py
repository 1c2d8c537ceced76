# ruff: noqa: E501  (tables are read by rows)
"""Bad settings of training, cases 45 and 46: modules that do not exist, texts that do not fit."""

import json
import re
import shutil

import pytest

from tests.bad_inputs.command_line import Refused, call, names, refuse
from tests.bad_inputs.layouts import good_documents, put, recipe
from tests.bad_inputs.test_conversations import RECIPE as TALK
from tests.bad_inputs.test_conversations import line

AT = r"tiny\.yaml:15\S* trainable: "
RUN = "run tiny.yaml"
SHORT, HELPER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "cat"}
LONG = {"role": "user", "content": "the cat sat on the mat " * 4}


def trainable(patterns):
    """The recipe with patterns of modules to train."""
    return recipe("    device: cpu", f"    trainable: [{patterns}]\n    device: cpu")


def nearest(*among):
    return rf"; nearest: (?=.*{'.*'.join(map(re.escape, among))})([^,]+, ){{4}}[^,]+"


CASES = [
    # 45: patterns that name no module: never no parameter in silence
    Refused(
        45,
        "foreign-name",
        trainable('"*.q_proj"'),
        RUN,
        2,
        AT + r"no module matches '\*\.q_proj'; nearest: .+",
    ),
    Refused(
        45,
        "misspelt",
        trainable("blocks.*.attention.querry"),
        RUN,
        2,
        AT
        + r"no module matches 'blocks\.\*\.attention\.querry'"
        + nearest("blocks.*.attention.query"),
    ),
    Refused(
        45,
        "one-of-two",
        trainable("norm, blocks.7.mlp"),
        RUN,
        2,
        AT + r"no module matches 'blocks\.7\.mlp'" + nearest("blocks.*.mlp"),
    ),
    Refused(45, "empty-name", trainable("''"), RUN, 2, AT + r"no module matches ''; .+"),
    # 46: a context that the model does not have
    Refused(
        46,
        "scored-longer",
        recipe(
            "    device: cpu\n",
            "    device: cpu\n  scores: {kind: evaluate, model: base, corpus: corpus, context: 17, stride: 8}\n",
        ),
        RUN,
        2,
        r"tiny\.yaml:\d+\S* context: context \(17\) is longer than base's \(16\); use at most 16",
    ),
    Refused(
        46,
        "tuned-longer",
        recipe(
            "    device: cpu\n",
            "    device: cpu\n  chat: {kind: sft, init: base, inputs: [docs], context: 32, steps: 1, batch_tokens: 32, learning_rate: 1e-3}\n",
        ),
        RUN,
        2,
        r"tiny\.yaml:\d+\S* context: context \(32\) is longer than base's \(16\); use at most 16",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=names)
def test_bad_setting_is_refused(case, tmp_path):
    refuse(case, tmp_path)


@pytest.mark.parametrize("pattern", ["blocks.0.mlp", "norm"], ids=["45-sound-a", "45-sound-b"])
def test_pattern_that_names_a_module_is_taken(pattern, tmp_path):
    trainable(pattern)(tmp_path)
    assert call(tmp_path, f"{RUN} --dry-run").code == 0


def test_pattern_is_tried_on_a_model_from_outside(sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    put(tmp_path / "talk.yaml", TALK.replace("    device", "    trainable: [q_proj]\n    device"))
    put(tmp_path / "talk" / "a.jsonl", line(SHORT, HELPER))
    outcome = call(tmp_path, "run talk.yaml")
    assert outcome.code == 2
    (error,) = outcome.errors
    assert re.search(r"chat: trainable: no module matches 'q_proj'; nearest: \S+", error), error


# 46: what is longer than the context is cut by a stated rule, and counted in a printed line


def messages(outcome):
    rows = [json.loads(text) for text in outcome.err.splitlines() if text.startswith("{")]
    return [row["message"] for row in rows if "message" in row]


@pytest.mark.parametrize(
    ("rows", "said", "kept"),
    [
        (line(SHORT, HELPER) * 1 + line(LONG, HELPER), r"1 left out: no answer fits", 1),
        (line(SHORT, HELPER, LONG, HELPER), r"1 samples cut after their last whole answer", 1),
    ],
    ids=["46-left-out", "46-cut"],
)
def test_conversation_longer_than_the_context_is_counted(rows, said, kept, sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    put(tmp_path / "talk.yaml", TALK.replace("holdout: 0", "holdout: 0\n    template: chatml"))
    put(tmp_path / "talk" / "a.jsonl", rows)
    outcome = call(tmp_path, "run talk.yaml")
    assert outcome.code == 0, outcome.err
    assert any(re.search(said, text) for text in messages(outcome)), outcome.err
    assert any(re.search(r"[1-9]\d* cropped", text) for text in messages(outcome)), outcome.err
    record = json.loads((tmp_path / "runs" / "talk" / "chat" / "stage.json").read_text())
    seen = record["summary"]["preflight"]
    assert seen["samples"] == kept and seen["cropped"] > 0 and seen["balanced"]


def test_document_longer_than_the_context_is_cut_between_samples_and_nothing_is_lost(tmp_path):
    good_documents(tmp_path)
    put(tmp_path / "docs" / "long.txt", "the cat sat on the mat " * 200)
    assert call(tmp_path, RUN).code == 0
    record = json.loads((tmp_path / "runs" / "tiny" / "base" / "stage.json").read_text())
    assert record["summary"]["ledger"]["cropped"] == 0
