# ruff: noqa: E501  (tables are read by rows)
"""Bad tokenizers, cases 49 to 52, and cases 61 and 71 in a folder: refused by file and entry.

Every case harms a copy of a sound model. The library behind the tokenizer would take most of them,
and the model would then read one text and write another.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stemma import api
from stemma.core.errors import ModelError
from tests.bad_inputs.command_line import Refused, call, check_line, names, refuse, snapshot
from tests.bad_inputs.layouts import change_json, good_documents, put, recipe

GENERATE = "generate model --raw --prompt ab --max-new-tokens 2 --device cpu"
INFO = "info model"
WORDS = r"model/tokenizer\.json: "
SETTINGS = r"model/tokenizer_config\.json: "
CONFIG = r"model/config\.json: "
AGAIN = r"; download or export the model again"
END = "<|endoftext|>"
OWNED = "owned"  # a file that imported code would make
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"

Change = Callable[[dict[str, Any]], object]


def tokenizer(change: Change) -> Callable[[Path], None]:
    """A model whose tokenizer.json is changed, as a JSON value."""

    def lay_out(folder: Path) -> None:
        path = folder / "model" / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content))

    return lay_out


def vocabulary(**words: Any) -> Callable[[Path], None]:
    """More words, or other ids."""
    return tokenizer(lambda content: content["model"]["vocab"].update(words))


def merge(pair: Any, place: int = 2) -> Callable[[Path], None]:
    """One merge more, among the others."""
    return tokenizer(lambda content: content["model"]["merges"].insert(place, pair))


def added(**entry: Any) -> Callable[[Path], None]:
    """One added token more, like the one that is there but for these values."""

    def change(content: dict[str, Any]) -> None:
        content["added_tokens"].append({**content["added_tokens"][0], **entry})

    return tokenizer(change)


def around(change: Change) -> Callable[[Path], None]:
    """A change of what is put around a text."""
    return tokenizer(lambda content: change(content["post_processor"]["processors"][1]))


def without(word: str) -> Callable[[Path], None]:
    return tokenizer(lambda content: content["model"]["vocab"].pop(word))


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Other bytes for tokenizer.json."""

    def lay_out(folder: Path) -> None:
        path = folder / "model" / "tokenizer.json"
        path.write_bytes(change(path.read_bytes()))

    return lay_out


def settings(name: str = "tokenizer_config.json", **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON file of the model; `...` takes a key out."""

    def lay_out(folder: Path) -> None:
        path = folder / "model" / name
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return lay_out


def special_map(**values: Any) -> Callable[[Path], None]:
    """Special tokens in the file of their own that older folders have."""

    def lay_out(folder: Path) -> None:
        settings(eos_token=...)(folder)
        put(folder / "model" / "special_tokens_map.json", json.dumps(values))

    return lay_out


def code(name: str, key: str, value: Any) -> Callable[[Path], None]:
    """A model that names code which lies with it, and the code."""

    def lay_out(folder: Path) -> None:
        change_json(folder / "model" / name, **{key: value})
        put(folder / "model" / "modeling_own.py", f"open({OWNED!r}, 'w').close()\n")

    return lay_out


def values(name: str, dtype: torch.dtype, *numbers: float) -> Callable[[Path], None]:
    """A model with other numbers at the beginning of one tensor."""

    def lay_out(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        found = {key: tensor.to(dtype).clone() for key, tensor in load_file(path).items()}
        found[name].view(-1)[: len(numbers)] = torch.tensor(numbers, dtype=dtype)
        save_file(found, path, {"format": "pt"})

    return lay_out


def scored(content: dict[str, Any]) -> None:
    """Words with scores, one of them a control token that the text may hold."""
    words = [[END, 0.0], ["a", -1.0], ["b", -1.0], [" ", -1.0]]
    content["model"] = {"type": "Unigram", "unk_id": 3, "vocab": words}
    content["pre_tokenizer"] = None  # which would take the control token apart


def scored_twice(content: dict[str, Any]) -> None:
    scored(content)
    content["model"]["vocab"].append(["a", -2.0])


INF, NAN = float("inf"), float("nan")
IS_NONE = r"'<nope>' is not in the vocabulary of tokenizer\.json; .+"
NEVER = r"asks for code that lies with the model, which is never run; .+"
OWN = {"AutoModelForCausalLM": "modeling_own.Own"}

CASES = [
    # 49: more ids than rows
    Refused(49, "one-more", vocabulary(new=262), GENERATE, 4, WORDS + r"263 token ids, but the embedding of model/config\.json has 262 rows; use the tokenizer that belongs to the model"),
    Refused(49, "info", vocabulary(new=262), INFO, 4, WORDS + r"263 token ids, but the embedding of model/config\.json has 262 rows; .+"),
    Refused(49, "added", added(content="<|im_start|>", id=262), GENERATE, 4, WORDS + r"263 token ids, but the embedding of model/config\.json has 262 rows; .+"),
    Refused(49, "fewer-rows", settings("config.json", vocab_size=200), GENERATE, 4, WORDS + r"262 token ids, but the embedding of model/config\.json has 200 rows; .+"),
    # 51: the file itself
    Refused(51, "half", raw(lambda found: found[: len(found) // 2]), GENERATE, 4, WORDS + r"not usable JSON \(.+\)" + AGAIN),
    Refused(51, "half-info", raw(lambda found: found[: len(found) // 2]), INFO, 4, WORDS + r"not usable JSON \(.+\)" + AGAIN),
    Refused(51, "last-brace", raw(lambda found: found.rstrip()[:-1]), GENERATE, 4, WORDS + r"not usable JSON \(.+\)" + AGAIN),
    Refused(51, "empty", raw(lambda _: b""), INFO, 4, WORDS + r"not usable JSON \(.+\)" + AGAIN),
    Refused(51, "a-list", raw(lambda _: b"[]"), GENERATE, 4, WORDS + r"expected a JSON object, got list" + AGAIN),
    Refused(51, "not-utf8", raw(lambda found: found.replace(b"vocab", b"voc\xe4b")), GENERATE, 4, WORDS + r"not UTF-8 at byte \d+" + AGAIN),
    Refused(51, "word-twice", raw(lambda found: found.replace(b'"vocab": {', b'"vocab": {"a": 1, "a": 2,')), GENERATE, 4, WORDS + r"not usable JSON \(the name 'a' stands there twice\)" + AGAIN),
    Refused(51, "no-model", tokenizer(lambda found: found.pop("model")), INFO, 4, WORDS + r"model: expected an object, got NoneType" + AGAIN),
    Refused(51, "no-vocabulary", tokenizer(lambda found: found["model"].pop("vocab")), GENERATE, 4, WORDS + r"model\.vocab: expected words with ids or with scores" + AGAIN),
    Refused(51, "unknown-model", tokenizer(lambda found: found["model"].update(type="Magic")), GENERATE, 4, WORDS + r"not a usable tokenizer \(.+\)" + AGAIN),
    # 51: merges
    Refused(51, "merge-of-unknown", merge(["q", "zz"]), GENERATE, 4, WORDS + r"model\.merges\[2\]: 'q' and 'zz' need the token 'zz', which is not there" + AGAIN),
    Refused(51, "merge-to-unknown", merge(["q", "z"]), GENERATE, 4, WORDS + r"model\.merges\[2\]: 'q' and 'z' need the token 'qz', which is not there" + AGAIN),
    Refused(51, "merge-info", merge("q z", 0), INFO, 4, WORDS + r"model\.merges\[0\]: 'q' and 'z' need the token 'qz', which is not there" + AGAIN),
    Refused(51, "letter-gone", without("t"), GENERATE, 4, WORDS + r"model\.vocab: no token has the id \d+, but there are ids up to 261" + AGAIN),
    Refused(51, "no-pair", merge("abc"), GENERATE, 4, WORDS + r"model\.merges\[2\]: 'abc' is no pair of tokens" + AGAIN),
    Refused(51, "pair-of-three", merge(["a", "b", "c"]), GENERATE, 4, WORDS + r"model\.merges\[2\]: \['a', 'b', 'c'\] is no pair of tokens" + AGAIN),
    Refused(51, "pair-of-numbers", merge([1, 2]), INFO, 4, WORDS + r"model\.merges\[2\]: \[1, 2\] is no pair of tokens" + AGAIN),
    Refused(51, "prefix", tokenizer(lambda found: found["model"].update(continuing_subword_prefix="##")), GENERATE, 4, WORDS + r"model\.continuing_subword_prefix: '##' does not begin '.+'" + AGAIN),
    # 51: what is put around a text
    Refused(51, "around-unknown", around(lambda found: found["special_tokens"].clear()), GENERATE, 4, WORDS + r"post_processor: '<\|endoftext\|>' is not among its special_tokens" + AGAIN),
    Refused(51, "around-other-id", around(lambda found: found["special_tokens"][END].update(ids=[99999])), INFO, 4, WORDS + r"post_processor: '<\|endoftext\|>' has the ids \[99999\], which the vocabulary does not give it" + AGAIN),
    # 51: ids
    Refused(51, "id-twice", vocabulary(new=5), GENERATE, 4, WORDS + r"model\.vocab: '.+' and 'new' both have the id 5" + AGAIN),
    Refused(51, "id-twice-info", vocabulary(new=0), INFO, 4, WORDS + r"model\.vocab: '<\|endoftext\|>' and 'new' both have the id 0" + AGAIN),
    Refused(51, "added-id-taken", added(content="<|im_start|>", id=5), GENERATE, 4, WORDS + r"model\.vocab: '.+' and '<\|im_start\|>' both have the id 5" + AGAIN),
    Refused(51, "added-id-differs", added(content=END, id=7), GENERATE, 4, WORDS + r"added_tokens\[1\]: '<\|endoftext\|>' has the id 7 here and 0 before" + AGAIN),
    Refused(51, "gap", vocabulary(new=900), GENERATE, 4, WORDS + r"model\.vocab: no token has the id 262, but there are ids up to 900" + AGAIN),
    Refused(51, "gap-added", added(content="<|im_start|>", id=263), INFO, 4, WORDS + r"model\.vocab: no token has the id 262, but there are ids up to 263" + AGAIN),
    Refused(51, "negative-id", vocabulary(new=-1), GENERATE, 4, WORDS + r"model\.vocab: 'new' has the id -1, wanted a whole number" + AGAIN),
    Refused(51, "half-id", vocabulary(new=1.5), GENERATE, 4, WORDS + r"model\.vocab: 'new' has the id 1\.5, wanted a whole number" + AGAIN),
    Refused(51, "truth-for-id", vocabulary(new=True), INFO, 4, WORDS + r"model\.vocab: 'new' has the id True, wanted a whole number" + AGAIN),
    Refused(51, "added-empty", added(content="", id=262), GENERATE, 4, WORDS + r"added_tokens\[1\]: expected a token with content and id" + AGAIN),
    Refused(51, "added-no-list", tokenizer(lambda found: found.update(added_tokens={"a": 1})), INFO, 4, WORDS + r"added_tokens: expected a list, got dict" + AGAIN),
    Refused(51, "score-twice", tokenizer(scored_twice), GENERATE, 4, WORDS + r"model\.vocab: 'a' has the ids 1 and 4" + AGAIN),
    # 51: a control token that text can spell
    Refused(51, "end-by-merge", settings(bos_token="the", eos_token="the"), GENERATE, 4, WORDS + r"added_tokens: \d+: the control token 'the' would come out of plain text; .+"),
    Refused(51, "end-as-letter", settings(eos_token="a"), INFO, 4, WORDS + r"added_tokens: \d+: the control token 'a' would come out of plain text; .+"),
    Refused(51, "end-with-score", tokenizer(scored), GENERATE, 4, WORDS + r"added_tokens: 0: the control token '<\|endoftext\|>' would come out of plain text; .+"),
    # 52: special tokens that are none
    Refused(52, "no-eos", settings(eos_token="<nope>"), GENERATE, 4, SETTINGS + "eos_token: " + IS_NONE),
    Refused(52, "no-eos-info", settings(eos_token={"content": "<nope>", "special": True}), INFO, 4, SETTINGS + "eos_token: " + IS_NONE),
    Refused(52, "no-bos", settings(bos_token="<nope>"), GENERATE, 4, SETTINGS + "bos_token: " + IS_NONE),
    Refused(52, "no-pad", settings(pad_token="<nope>"), GENERATE, 4, SETTINGS + "pad_token: " + IS_NONE),
    Refused(52, "no-pad-info", settings(pad_token="<nope>"), INFO, 4, SETTINGS + "pad_token: " + IS_NONE),
    Refused(52, "in-the-map", special_map(eos_token="<nope>"), GENERATE, 4, r"model/special_tokens_map\.json: eos_token: " + IS_NONE),
    Refused(52, "number", settings(eos_token=0), GENERATE, 4, SETTINGS + r"eos_token: expected the text of a token, got 0; .+"),
    Refused(52, "no-content", settings(eos_token={"text": END}), INFO, 4, SETTINGS + r"eos_token: expected the text of a token, got \{.+\}; .+"),
    # 61: weights that are no numbers
    Refused(61, "folder-nan", values(UP, torch.float32, 1.0, NAN, 2.0, NAN), GENERATE, 4, "model: " + UP + r": 2 of 1024 values are NaN or infinite; use an earlier checkpoint"),
    Refused(61, "folder-infinite", values(NORM, torch.float32, -INF), GENERATE, 4, "model: " + NORM + r": 1 of 16 values are NaN or infinite; .+"),
    Refused(61, "both-signs", values(UP, torch.float32, INF, -INF), GENERATE, 4, "model: " + UP + r": 2 of 1024 values are NaN or infinite; .+"),
    Refused(61, "half-precision", values(UP, torch.float16, NAN), GENERATE, 4, "model: " + UP + r": 1 of 1024 values are NaN or infinite; .+"),
    Refused(61, "brain-half", values(NORM, torch.bfloat16, INF, NAN, -INF), GENERATE, 4, "model: " + NORM + r": 3 of 16 values are NaN or infinite; .+"),
    # 71: code that lies with the model
    Refused(71, "auto-map", code("config.json", "auto_map", OWN), GENERATE, 4, CONFIG + "auto_map: " + NEVER),
    Refused(71, "auto-map-info", code("config.json", "auto_map", OWN), INFO, 4, CONFIG + "auto_map: " + NEVER),
    Refused(71, "internal", code("config.json", "_attn_implementation_internal", "modeling_own"), GENERATE, 4, CONFIG + "_attn_implementation_internal: " + NEVER),
    Refused(71, "internal-info", code("config.json", "_attn_implementation_internal", "a/kernel"), INFO, 4, CONFIG + "_attn_implementation_internal: " + NEVER),
    Refused(71, "trust", code("config.json", "trust_remote_code", True), GENERATE, 4, CONFIG + "trust_remote_code: " + NEVER),
    Refused(71, "pipelines", code("config.json", "custom_pipelines", {"own": {"impl": "modeling_own.Own"}}), GENERATE, 4, CONFIG + "custom_pipelines: " + NEVER),
    Refused(71, "tokenizer", code("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["modeling_own.Own", None]}), GENERATE, 4, SETTINGS + "auto_map: " + NEVER),
    Refused(71, "tokenizer-info", code("tokenizer_config.json", "trust_remote_code", True), INFO, 4, SETTINGS + "trust_remote_code: " + NEVER),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    refuse(case, tmp_path)
    assert not (tmp_path / OWNED).exists() and "modeling_own" not in sys.modules


def test_sound_model_is_taken(sound_model, tmp_path):
    """What the cases harm is otherwise accepted, without a word."""
    shutil.copytree(sound_model, tmp_path / "model")
    for command in (INFO, GENERATE):
        outcome = call(tmp_path, command)
        assert (outcome.code, outcome.warnings) == (0, []), outcome.err


@pytest.mark.parametrize(
    "merges",
    [lambda pairs: [" ".join(pair) for pair in pairs], lambda pairs: pairs],
    ids=["older-form", "newer-form"],
)
def test_merges_of_either_form_are_taken(merges, sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    before = api.load_tokenizer(tmp_path / "model").encode("the cat and the rat")
    tokenizer(lambda c: c["model"].update(merges=merges(c["model"]["merges"])))(tmp_path)
    assert api.load_tokenizer(tmp_path / "model").encode("the cat and the rat") == before


def nameless(folder: Path) -> None:
    """No token has a role."""
    settings(bos_token=..., eos_token=..., pad_token=...)(folder)
    settings("config.json", bos_token_id=..., eos_token_id=..., pad_token_id=...)(folder)
    (folder / "model" / "generation_config.json").unlink()


@pytest.mark.parametrize("command", [GENERATE, INFO], ids=["52-nameless", "52-nameless-info"])
def test_without_an_end_a_text_ends_by_its_length(command, sound_model, tmp_path):
    """The stated way out for generation, and said once; padding wants no token of its own."""
    shutil.copytree(sound_model, tmp_path / "model")
    nameless(tmp_path)
    outcome = call(tmp_path, command)
    assert outcome.code == 0, outcome.err
    told = ["model/tokenizer_config.json names no eos_token: a text ends by its length alone"]
    assert outcome.warnings == (told if command == GENERATE else [])


def test_an_end_of_the_config_is_no_lack(sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    nameless(tmp_path)
    settings("config.json", eos_token_id=3)(tmp_path)
    assert call(tmp_path, GENERATE).warnings == []


INIT = recipe(
    "    tokenizer: words\n    model: {family: llama, width: 16, depth: 1, num_heads: 2}\n",
    "    init: ./model\n",
)


@pytest.mark.parametrize("lay_out", [INIT], ids=["52-training"])
def test_training_needs_an_end(lay_out, sound_model, tmp_path):
    """Documents are told apart by it, so no stage goes on without."""
    lay_out(tmp_path)
    shutil.copytree(sound_model, tmp_path / "model")
    nameless(tmp_path)
    before = snapshot(tmp_path)
    outcome = call(tmp_path, "run tiny.yaml")
    check_line(outcome, 4, r".*no end-of-text token; set eos_token in tokenizer_config\.json")
    assert before.items() <= snapshot(tmp_path).items()
    assert not (tmp_path / "runs" / "tiny" / "base" / "final").exists()


def test_text_cannot_spell_a_token_that_the_settings_name(sound_model, tmp_path):
    """The entry says that the end is a plain added token; transformers makes it special too."""
    shutil.copytree(sound_model, tmp_path / "model")
    good_documents(tmp_path)

    def plain(content: dict[str, Any]) -> None:
        content["added_tokens"][0]["special"] = False

    for change in (plain, lambda content: content.pop("added_tokens")):
        tokenizer(change)(tmp_path)
        found = api.load_tokenizer(tmp_path / "model")
        ids = found.encode(f"a{END}b")
        assert found.eos_id == 0 and 0 not in ids and found.decode(ids) == f"a{END}b"
        assert found.decode([0, *found.encode("a"), 0]) == "a"


TOKENIZER = r"tokenizer \(\w{8}, here \w{8}\)"


def other_merges(stage: Path) -> None:
    """The tokenizer of the run as it might be after another training: as large, and not the same."""
    path = stage.parent / "words" / "final" / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def other_run(stage: Path) -> None:
    """Checkpoints of a run with a larger vocabulary on the same documents."""
    folder = stage.parents[2]
    assert call(folder, "run tiny.yaml words.vocab_size=280 out=other").code == 0
    shutil.rmtree(stage / "steps")
    shutil.copytree(folder / "other" / "base" / "steps", stage / "steps")


@pytest.mark.parametrize(
    "change, others",
    [
        (other_merges, TOKENIZER),
        (other_run, rf"network \(vocab_size 280, here 270\) and {TOKENIZER}"),
    ],
    ids=["50-tokenizer", "50-checkpoint"],
)
def test_resume_with_another_tokenizer(change, others, tmp_path):
    """The ids of a checkpoint mean other words to another tokenizer."""
    good_documents(tmp_path)
    assert call(tmp_path, "run tiny.yaml").code == 0
    stage = tmp_path / "runs" / "tiny" / "base"
    change(stage)
    (stage / "final" / "model.safetensors").unlink()  # so that the stage is to be gone on with
    before = snapshot(stage / "steps")
    outcome = call(tmp_path, "run tiny.yaml")
    line = rf"\S*base/steps/00000002: the checkpoint was made with another {others}; .+"
    check_line(outcome, 4, line)
    assert snapshot(stage / "steps") == before and not (stage / "final/model.safetensors").exists()


ODD = (None, -1, 2**64, 1.5, "", "a", [], {}, True, [[]], {"type": "Split"}, "\x00")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value, of long lists and objects to the first few."""
    keys = (
        range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    )
    for key in list(keys)[:9]:
        yield (*at, key)
        yield from places(value[key], (*at, key))


def test_changed_entries_are_taken_or_refused(sound_model, tmp_path, capfd):
    """Whatever one entry is, there is one line at most: the library may not fall over it."""
    shutil.copytree(sound_model, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    sound = path.read_text("utf-8")
    draw, ways = random.Random(0), list(places(json.loads(sound)))
    for way in draw.sample(ways, 60):
        content = json.loads(sound)
        inside = content
        for key in way[:-1]:
            inside = inside[key]
        inside[way[-1]] = draw.choice(ODD)
        path.write_text(json.dumps(content), "utf-8")
        with suppress(ModelError):
            found = api.load_tokenizer(tmp_path / "model")
            assert found.eos_id not in found.encode(f"a{END}b"), way
    assert capfd.readouterr().err == ""
