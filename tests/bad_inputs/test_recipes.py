# ruff: noqa: E501  (tables are read by rows)
"""Bad recipes, options and environment, cases 37 to 44: the line and the key are named."""

import json
import re
from pathlib import Path

import pytest

from tests.bad_inputs.command_line import Refused, call, names, refuse, snapshot
from tests.bad_inputs.layouts import CORPUS, RECIPE, change_json, good_documents, put, recipe

AT = r"tiny\.yaml:"
RUN = "run tiny.yaml"
DROPOUT = ("num_heads: 2}", "num_heads: 2, dropout: 1.5}")
OWNED = "owned"  # a file that code from a recipe would make


def base(key: str, value: str):
    """The recipe with another value of a key that stands once."""
    (old,) = re.findall(rf"\b{key}: [^,}}\n]+", RECIPE)
    return recipe(old, f"{key}: {value}")


def executed(tag: str):
    """The recipe with a tag that unsafe loaders run."""
    return recipe("steps: 2", f'steps: !!python/{tag} ["touch {OWNED}"]')


def newer_stage(folder: Path) -> None:
    """A finished corpus whose record is of a later version."""
    good_documents(folder)
    assert call(folder, CORPUS).code == 0
    change_json(folder / "runs" / "tiny" / "corpus" / "stage.json", format_version=2)


def newer_run(folder: Path) -> None:
    """A finished corpus in a run folder of a later version."""
    good_documents(folder)
    assert call(folder, CORPUS).code == 0
    change_json(folder / "runs" / "tiny" / "run.json", format_version=2)


CASES = [
    # 37: an unknown key
    Refused(37, "misspelt", recipe("learning_rate", "learing_rate"), RUN, 2, AT + r"13: learing_rate: unknown key; did you mean learning_rate"),
    Refused(37, "nothing-near", recipe("learning_rate", "zzz"), RUN, 2, AT + r"13: zzz: unknown key; known: batch_tokens, .*"),
    Refused(37, "top-level", recipe("name: tiny", "name: tiny\nsede: 1"), RUN, 2, AT + r"2\S*: sede: unknown key; did you mean seed"),
    Refused(37, "in-model", recipe("num_heads", "num_head"), RUN, 2, AT + r"9\S*: \S*num_head: unknown key; did you mean num_heads"),
    Refused(37, "in-schedule", recipe("warmup: 1", "warmups: 1"), RUN, 2, AT + r"14\S*: \S*warmups: unknown key; did you mean warmup"),
    Refused(37, "override", good_documents, f"{RUN} base.learing_rate=1", 2, r".*base\.learing_rate.*: unknown key; did you mean learning_rate"),
    Refused(37, "override-stage", good_documents, f"{RUN} bsae.steps=1", 2, r".*bsae\.steps=1.*: unknown key; did you mean base"),
    Refused(37, "explain-nothing-near", good_documents, "explain qqqqqqq", 2, r"explain qqqqqqq: no such key; known: activation, .*…"),
    Refused(37, "explain", good_documents, "explain pretrain.learing_rate", 2, r".*learing_rate.*; did you mean .*learning_rate.*"),
    # 38: a wrong type
    Refused(38, "quoted-number", base("learning_rate", '"3e-4"'), RUN, 2, AT + r"13\S*: \S*learning_rate: expected a number, got '3e-4'; .+"),
    Refused(38, "yes", recipe("inputs: [docs]", "inputs: [docs], drop_duplicates: yes"), RUN, 2, AT + r"3\S*: \S*drop_duplicates: expected true or false, got yes; .+"),
    Refused(38, "word", base("steps", "ten"), RUN, 2, AT + r"11\S*: \S*steps: expected a whole number, got ten; .+"),
    Refused(38, "fraction", base("steps", "1.5"), RUN, 2, AT + r"11\S*: \S*steps: expected a whole number, got 1\.5; .+"),
    Refused(38, "list", base("context", "[16]"), RUN, 2, AT + r"10\S*: \S*context: expected a whole number, got a list; .+"),
    Refused(38, "no-list", recipe("inputs: [docs]", "inputs: docs"), RUN, 2, AT + r"3\S*: \S*inputs: expected a list, got docs; .+"),
    Refused(38, "no-mapping", recipe("{kind: cosine, warmup: 1}", "cosine"), RUN, 2, AT + r"14\S*: \S*schedule: expected .*, got cosine; .+"),
    Refused(38, "nothing", base("batch_tokens", ""), RUN, 2, AT + r"12\S*: \S*batch_tokens: expected a whole number, got nothing; .+"),
    Refused(38, "not-finite", base("learning_rate", ".nan"), RUN, 2, AT + r"13\S*: \S*learning_rate: expected a number, got \.nan; .+"),
    Refused(38, "override", good_documents, f"{RUN} base.steps=many", 2, r".*base\.steps.*: expected a whole number, got many; .+"),
    Refused(38, "option", good_documents, "generate . --prompt x --seed many", 2, r".*--seed.*integer.*; see `stemma generate --help`"),
    # 39: out of range
    Refused(39, "rate", base("learning_rate", "-1"), RUN, 2, AT + r"13\S*: \S*learning_rate: .*greater than 0 .*-1.*; .+"),
    Refused(39, "rate-zero", base("learning_rate", "0"), RUN, 2, AT + r"13\S*: \S*learning_rate: .*greater than 0 .*; .+"),
    Refused(39, "vocabulary", base("vocab_size", "0"), RUN, 2, AT + r"4\S*: \S*vocab_size: .*greater than or equal to 257 .*0.*; .+"),
    Refused(39, "batch", base("batch_tokens", "0"), RUN, 2, AT + r"12\S*: \S*batch_tokens: .*greater than or equal to 1 .*0.*; .+"),
    Refused(39, "dropout", recipe(*DROPOUT), RUN, 2, AT + r"9\S*: \S*dropout: .*less than 1 .*1\.5.*; .+"),
    Refused(39, "holdout", base("fraction", "0.9"), RUN, 2, AT + r"3\S*: \S*fraction: .*less than 0\.5 .*0\.9.*; .+"),
    Refused(39, "infinite", base("learning_rate", "1e999"), RUN, 2, AT + r"13\S*: \S*learning_rate: .*; .+"),
    Refused(39, "heads", base("num_heads", "3"), RUN, 2, AT + r"9\S*: .*width \(16\) must be a multiple of num_heads \(3\).*; .+"),
    Refused(39, "batch-and-context", base("batch_tokens", "40"), RUN, 2, AT + r"\d+\S*: .*batch_tokens \(40\) must be a multiple of context \(16\).*; .+"),
    Refused(39, "override", good_documents, f"{RUN} base.learning_rate=-1", 2, r".*base\.learning_rate.*greater than 0 .*-1.*; .+"),
    Refused(39, "stage-name", recipe("  words:", "  ../words:"), RUN, 2, AT + r".*'\.\./words' cannot name a folder; use letters.*"),
    Refused(39, "run-name", recipe("name: tiny", "name: ../tiny"), RUN, 2, AT + r".*'\.\./tiny' cannot name a folder; use letters.*"),
    # 40: broken YAML
    Refused(40, "twice", recipe("steps: 2", "steps: 2\n    context: 8"), RUN, 2, AT + r"12:5: the key context stands twice \(first at tiny\.yaml:10:5\); remove one.*"),
    Refused(40, "stage-twice", recipe("  words:", "  corpus:"), RUN, 2, AT + r"4:3: the key corpus stands twice \(first at tiny\.yaml:3:3\); remove one.*"),
    Refused(40, "tab", recipe("    steps", "\tsteps"), RUN, 2, AT + r"11:1: not YAML .*; check indentation.*"),
    Refused(40, "indentation", recipe("    steps", "      steps"), RUN, 2, AT + r"11:\d+: not YAML .*; check indentation.*"),
    Refused(40, "unclosed", recipe("inputs: [docs]", "inputs: [docs"), RUN, 2, AT + r"\d+:\d+: not YAML .*; .+"),
    Refused(40, "empty", recipe(RECIPE, ""), RUN, 2, r"tiny\.yaml: the file is empty; see `stemma init`"),
    Refused(40, "list", recipe(RECIPE, "- a\n- b\n"), RUN, 2, r"tiny\.yaml\S*: a recipe holds keys and values; .+"),
    Refused(40, "list-as-key", recipe("steps: 2", "[a, b]: 2"), RUN, 2, AT + r"11:5: a key must be a plain word; .+"),
    Refused(40, "not-text", lambda f: put(f / "tiny.yaml", b"name: \xff\n"), RUN, 2, AT + r"1: not UTF-8 text; save as UTF-8"),
    Refused(40, "nested", lambda f: put(f / "tiny.yaml", "a: " + "[" * 100_000), RUN, 2, r"tiny\.yaml\S*: .+; .+"),
    # 41: a tag that would run code
    Refused(41, "apply", executed("object/apply:os.system"), RUN, 2, AT + r"11: the tag \S*python/object/apply:os\.system is refused; remove the tag"),
    Refused(41, "new", executed("object/new:os.system"), RUN, 2, AT + r"11: the tag \S*python/object/new:os\.system is refused; remove the tag"),
    Refused(41, "own-tag", recipe("steps: 2", "steps: !steps 2"), RUN, 2, AT + r"11: the tag !steps is refused; remove the tag"),
    Refused(41, "override", good_documents, f"{RUN} 'base.steps=!!python/object/apply:os.system [touch {OWNED}]'", 2, r".*the tag \S*python/object/apply:os\.system is refused; remove the tag"),
    # 42: options that exclude each other
    Refused(42, "fresh-overwrite", good_documents, f"{RUN} --fresh --overwrite", 2, r".*--fresh.*--overwrite.*; choose one"),
    Refused(42, "fresh-no-fresh", good_documents, f"{RUN} --fresh --no-fresh", 2, r".*--fresh.*--no-fresh.*; .+"),
    Refused(42, "flag-twice", good_documents, f"{RUN} --until corpus --until=words", 2, r".*--until is given twice; .+"),
    Refused(42, "switch-twice", good_documents, f"{RUN} --fresh --fresh", 2, r".*--fresh is given twice; .+"),
    Refused(42, "override-twice", good_documents, f"{RUN} base.steps=1 base.steps=2", 2, r".*base\.steps is set twice; .+"),
    Refused(42, "steps-and-tokens", recipe("steps: 2", "steps: 2\n    tokens: 64"), RUN, 2, AT + r".*tokens and steps.*; .+"),
    Refused(42, "neither", recipe("    steps: 2\n", ""), RUN, 2, AT + r".*tokens and steps.*; .+"),
    Refused(42, "steps-and-override", good_documents, f"{RUN} base.tokens=64", 2, AT + r".*tokens and steps.*; .+"),
    Refused(42, "model-and-init", recipe("    steps: 2", "    steps: 2\n    init: ./model"), RUN, 2, AT + r".*model and init.*; .+"),
    Refused(42, "unknown-option", good_documents, f"{RUN} --fersh", 2, r".*--fersh.*--fresh.*; .+"),
    # 44: made by a later version
    Refused(44, "recipe", recipe("name: tiny", "format_version: 2\nname: tiny\nlater: 1"), RUN, 2, AT + r"1\S*: format_version: format_version 2 is newer than the 1 .*; update stemma-lm"),
    Refused(44, "stage", newer_stage, RUN, 2, r"runs/tiny/corpus/stage\.json: format_version 2 is newer than the 1 .*; update stemma-lm"),
    Refused(44, "stage-report", newer_stage, "report runs/tiny", 2, r"runs/tiny/corpus/stage\.json: format_version 2 is newer than the 1 .*; update stemma-lm"),
    Refused(44, "run-report", newer_run, "report runs/tiny", 2, r"runs/tiny/run\.json: format_version 2 is newer than the 1 .*; update stemma-lm"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, tmp_path):
    refuse(case, tmp_path)
    assert not (tmp_path / OWNED).exists()


@pytest.mark.parametrize(
    "name, nearest",
    [("STEMMA_HOEM", "STEMMA_HOME"), ("STEMMA_DEBUGG", "STEMMA_DEBUG")],
    ids=["43-home", "43-debug"],
)
def test_unknown_variable_warns(name, nearest, tmp_path):
    good_documents(tmp_path)
    before = snapshot(tmp_path)
    outcome = call(tmp_path, "list families", {name: "x"})
    assert outcome.code == 0 and "llama" in outcome.out
    (warning,) = outcome.warnings
    assert name in warning and warning.endswith(f"did you mean {nearest}")
    assert snapshot(tmp_path) == before


def test_known_variable_is_silent(tmp_path):
    outcome = call(tmp_path, "list families --json", {"STEMMA_HOME": str(tmp_path)})
    assert outcome.code == 0 and outcome.err == "" and "llama" in json.loads(outcome.out)
