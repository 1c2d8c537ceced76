"""`stemma init`: whatever is asked for, the recipe it writes is sound and names what was given."""

import json

import pytest

from stemma import api
from stemma.core.errors import UsageError
from stemma.pipeline import recipe as recipes
from stemma.pipeline.initial import write_recipe
from tests.pipeline.test_sft import write_talk


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "my \u00fcber notes"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"body": "some words " * 30}) + "\n")
    write_talk(tmp_path / "talk: a.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("examples", [None, "talk: a.jsonl"])
@pytest.mark.parametrize("model", [None, "smollm2-135m", "own"])
def test_every_recipe_is_sound(place, model, examples):
    own = api.build("llama", width=16, depth=1, num_heads=2, vocab_size=300, context=200)
    api.save(own, None, place / "own")
    path = write_recipe(
        place / "my \u00fcber notes",
        place / "out.yaml",
        model=model,
        examples=place / examples if examples else None,
    )
    loaded = recipes.load(path, [])
    names = ["corpus", "tokenizer", "base", "chat", "scores", "export"]
    absent = {"tokenizer"} if model else set()
    absent |= set() if examples else {"chat"}
    assert list(loaded.stages) == [name for name in names if name not in absent]
    last = "chat" if examples else "base"
    assert loaded.stages["export"].model == loaded.stages["scores"].model == last
    assert loaded.stages["corpus"].text_key == "body"
    assert loaded.stages["corpus"].inputs == ("my \u00fcber notes",)
    spoken = {None: None, "smollm2-135m": "asset:smollm2-135m", "own": "./own"}[model]
    assert loaded.stages["base"].init == spoken
    if examples:
        assert loaded.stages["chat"].inputs == (examples,)
        assert loaded.stages["scores"].conversations == "chat"
    before = [spoken, "base"] if model else ["base"]
    assert list(loaded.stages["scores"].before) == before[: None if examples else -1]
    room = 128 if model == "own" else 256
    assert loaded.stages["base"].context == loaded.stages["scores"].context == room
    assert loaded.name == "my-uber-notes" and "runs/my-docs" not in path.read_text()


def test_unknown_model_is_refused_with_the_nearest(place):
    with pytest.raises(UsageError, match=r"did you mean smollm2-135m"):
        write_recipe(place / "my \u00fcber notes", None, model="smolm2-135m")


def test_missing_examples_are_refused(place):
    with pytest.raises(UsageError, match="no such file or folder"):
        write_recipe(place / "my \u00fcber notes", None, examples=place / "nothing.jsonl")


def test_model_below_a_run_of_that_name_keeps_its_path(place):
    own = api.build("llama", width=16, depth=1, num_heads=2, vocab_size=300, context=64)
    api.save(own, None, place / "runs" / "my-docs")
    path = write_recipe(place / "my \u00fcber notes", None, model="runs/my-docs")
    loaded = recipes.load(path, [])
    assert loaded.stages["base"].init == loaded.stages["scores"].before[0] == "runs/my-docs"


def test_line_end_in_a_name_does_not_leave_the_comment(place):
    own = api.build("llama", width=16, depth=1, num_heads=2, vocab_size=300, context=64)
    api.save(own, None, place / "od\nd: {x")
    path = write_recipe(place / "my \u00fcber notes", None, model="od\nd: {x")
    assert recipes.load(path, []).stages["base"].init == "./od\nd: {x"
