"""The stage translate, from two files to a translator that the command line can use."""

import json
import shlex
import shutil
import sys

import pytest
import sacrebleu
from transformers import GenerationConfig

import stemma
from stemma import api, cli
from stemma.core.errors import ModelError, UsageError
from stemma.infer.translate import BeamSearch
from tests.faults.trainers import TRANSLATE, write_pairs


def run(*arguments):
    sys.argv = ["stemma", *arguments]
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny translator, trained once."""
    folder = tmp_path_factory.mktemp("translator")
    write_pairs(folder)
    (folder / "tiny.yaml").write_text(TRANSLATE)
    before, argv = folder.cwd(), sys.argv
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("run", "tiny.yaml") == 0
    sys.argv = argv
    assert folder.cwd() == before
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the recipe and its files, as the working folder."""
    write_pairs(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TRANSLATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def test_it_leaves_scores_with_signatures_and_all_translations(finished):
    stage = finished / "out" / "german"
    found = json.loads((stage / "stage.json").read_text())["summary"]
    score = found["translation"]
    assert score["sentences"] == 5 and 0 <= score["bleu"] <= 100
    assert "tok:13a" in score["bleu_signature"] and "nc:6" in score["chrf_signature"]
    assert len((stage / "translations.txt").read_text().splitlines()) == 5
    assert found["ledger"]["pairs"] == {"lines": 70, "train": 70, "empty": 0, "too_long": 0}
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()[1:]]
    assert [row["step"] for row in rows if "heldout_target_loss" in row] == [6, 12, 18, 24]
    assert (finished / "out" / "report.html").exists()


def test_what_it_says_is_what_beam_search_finds(finished):
    model, tokenizer = stemma.load(finished / "out")
    texts = (finished / "held.en").read_text().splitlines()
    written = (finished / "out" / "german" / "translations.txt").read_text().splitlines()
    assert api.translate(model, tokenizer, texts, beams=2, max_new_tokens=4) == written
    assert stemma.generate(model, tokenizer, texts[0], beams=2, max_new_tokens=4) == written[0]


def test_the_command_line_translates_and_refuses_to_sample(finished, capsys):
    model = str(finished / "out")
    assert run("generate", model, "--prompt", "the cat", "--max-new-tokens", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["completion_tokens"] <= 4 and found["prompt_tokens"] > 1
    assert run("generate", model, "--prompt", "the cat", "--top-p", "0.5") == 2
    assert "--top-p has no meaning" in capsys.readouterr().err
    for command in (["chat", model], ["generate", model, "--input", "a", "--output", "b"]):
        assert run(*command) in (2, 3)
    assert "\n" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        (["german.model.family=llama"], 2, "llama cannot be trained by kind: translate"),
        (["german.model.num_heads=3"], 2, "width (16) must be a multiple of num_heads (3)"),
        (["german.model.vocab_size=9"], 2, "vocab_size"),
        (["german.batch_tokens=65"], 2, "batch_tokens (65) must be a multiple of context (64)"),
        (["german.vocab_size=100"], 2, "vocab_size"),
        (["german.source=[missing.en]"], 2, "missing.en"),
        (["german.search.beams=0"], 2, "beams"),
        (["german.epochs=2"], 2, "give one of epochs, tokens and steps"),
        (["german.context=2", "german.batch_tokens=2"], 3, "held.en:1: 6 tokens of a held-out"),
        (["german.samples.temperature=0.5"], 2, "temperature: unknown key"),
        (["german.samples.max_new_tokens=3"], 2, "max_new_tokens: unknown key"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(place, capsys, changed, code, words):
    assert run("run", "tiny.yaml", *changed) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert words in last and last.startswith("error: ")


def begun(place):
    """Whether a step was taken."""
    return (place / "out" / "german" / "metrics.jsonl").exists()


def test_one_held_out_sentence_too_long_is_refused_before_training(place, capsys):
    lines = (place / "held.en").read_text().splitlines()
    lines[2] = "the cat sat " * 30
    lines[4] = "the dog sat " * 30
    (place / "held.en").write_text("\n".join(lines) + "\n")
    assert run("run", "tiny.yaml") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "held.en:3: " in last and "do not fit context (64), nor do 1 more" in last
    assert not begun(place)


def test_a_held_out_sentence_may_be_just_as_long_as_the_context(finished, place, capsys):
    _, tokenizer = stemma.load(finished / "out")
    texts = (place / "held.en").read_text().splitlines()
    longest = max(len(tokenizer.encode(text)) + 1 for text in texts)
    for context, code in ((longest - 1, 3), (longest, 0)):
        numbers = [f"german.context={context}", f"german.batch_tokens={context}"]
        assert run("run", "tiny.yaml", "german.steps=1", *numbers) == code
    assert f"{longest} tokens of a held-out sentence" in capsys.readouterr().err


def test_a_sample_too_long_is_refused_before_training(place, capsys):
    long = "the cat sat " * 30
    assert run("run", "tiny.yaml", f"german.samples={{every: 9, prompts: [a, {long}]}}") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "german: samples.prompts: a prompt of" in last and "fit context (64)" in last
    assert not begun(place)


def test_samples_are_the_sentences_asked_for(place):
    asked = "german.samples={every: 2, prompts: [the cat, a dog]}"
    assert run("run", "tiny.yaml", "german.steps=4", asked) == 0
    rows = (place / "out" / "german" / "samples.jsonl").read_text().splitlines()[1:]
    found = [json.loads(row) for row in rows]
    asked_for = [(row["step"], row["prompt"]) for row in found]
    assert asked_for == [(step, text) for step in (2, 4) for text in ("the cat", "a dog")]
    assert all("temperature" not in row and "seed" not in row for row in found)
    model, tokenizer = stemma.load(place / "out")
    made = stemma.generate(model, tokenizer, ["the cat", "a dog"])
    assert made == [row["text"] for row in found[2:]]


def test_without_sacrebleu_nothing_is_trained(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert run("run", "tiny.yaml") == 5
    assert 'pip install "stemma-lm[eval]"' in capsys.readouterr().err.splitlines()[-1]
    assert not begun(place)


def harm_tokens(data):
    path = data / "target" / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])


def lose_store(data):
    shutil.rmtree(data / "source")


def harm_plan(data):
    (data / "plan.safetensors").write_bytes(b"x")


def lose_account(data):
    (data / "pairs.json").unlink()


def harm_account(data):
    (data / "pairs.json").write_text('{"lines": 70, "train": "many"}')


@pytest.mark.parametrize(
    "harm",
    [harm_tokens, lose_store, harm_plan, lose_account, harm_account],
    ids=lambda f: f.__name__,
)
def test_a_damaged_store_is_made_again(finished, tmp_path, capsys, monkeypatch, harm):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    stage = folder / "out" / "german"
    record = json.loads((stage / "stage.json").read_text())
    whole = record["summary"]
    (stage / "stage.json").write_text(json.dumps(record | {"status": "running", "summary": {}}))
    harm(stage / "data")
    assert run("run", "tiny.yaml") == 0
    said = capsys.readouterr().err
    assert "the token store is made again" in said and "resumed from step 24" in said
    again = json.loads((stage / "stage.json").read_text())["summary"]
    assert again["ledger"] == whole["ledger"] and again["translation"] == whole["translation"]


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """A run over files with empty lines, long targets, and held-out pairs that training has."""
    folder = tmp_path_factory.mktemp("ragged")
    write_pairs(folder)
    sides = {end: (folder / f"talk.{end}").read_text().splitlines() for end in ("en", "de")}
    sides["en"][3], sides["de"][5], sides["de"][7] = "", " ", "sat " * 70
    held = {"en": ["", "the cat", "a", "moon saw blue", sides["en"][0], sides["en"][1], "the cat"]}
    held["de"] = ["nothing", "cat the", "", "saw " * 70, sides["de"][0], "another one", "cat the"]
    for end in ("en", "de"):
        (folder / f"talk.{end}").write_text("\n".join(sides[end]) + "\n")
        (folder / f"held.{end}").write_text("\n".join(held[end]) + "\n")
    (folder / "tiny.yaml").write_text(TRANSLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert run("run", "tiny.yaml", "german.steps=9") == 0
    return folder, held


def test_every_line_is_accounted_for(ragged):
    folder, _ = ragged
    found = json.loads((folder / "out" / "german" / "stage.json").read_text())["summary"]["ledger"]
    assert found["pairs"] == {"lines": 70, "train": 67, "empty": 2, "too_long": 1}
    assert found["heldout"] == {
        "lines": 7,
        "scored": 5,
        "empty": 2,
        "outside_loss": 1,
        "seen_sources": 2,
        "seen_pairs": 1,
    }
    assert found["places"] == found["trained"] + found["padded"] > 0
    assert json.loads((folder / "out" / "ledger.json").read_text())["stages"]["german"] == found


def test_translations_stay_beside_their_lines(ragged):
    folder, held = ragged
    written = (folder / "out" / "german" / "translations.txt").read_text().split("\n")
    model, tokenizer = stemma.load(folder / "out")
    made = [stemma.generate(model, tokenizer, text) if text else "" for text in held["en"]]
    assert written == [*made, ""] and written[0] == "" and all(made[1:])
    score = json.loads((folder / "out" / "german" / "stage.json").read_text())["summary"]
    pairs = [(m, w) for m, e, w in zip(made, held["en"], held["de"], strict=True) if e and w]
    theirs = sacrebleu.CHRF().corpus_score([m for m, _ in pairs], [[w.strip() for _, w in pairs]])
    assert score["translation"]["chrf"] == pytest.approx(theirs.score)
    assert score["translation"]["sentences"] == 5


def test_what_is_left_out_and_what_was_seen_is_said(place, capsys):
    lines = {end: (place / f"talk.{end}").read_text().splitlines() for end in ("en", "de")}
    for end in ("en", "de"):
        (place / f"held.{end}").write_text("\n".join([*lines[end][:3], "", ""]) + "\n")
    (place / "talk.de").write_text("\n".join(["", *lines["de"][1:-1], "sat " * 70]) + "\n")
    assert run("run", "tiny.yaml", "german.steps=1") == 0
    said = capsys.readouterr().err
    assert "left out of training, lines with an empty side: 1" in said
    assert "left out of training, pairs longer than 64 tokens: 1" in said
    assert "not scored, held-out lines with an empty side: 2" in said
    assert "2 of 3 held-out sentences are in training too, 2 with the same translation" in said


@pytest.mark.parametrize("name", ["talk", "held"])
def test_files_without_a_pair_are_refused(place, capsys, name):
    count = len((place / f"{name}.en").read_text().splitlines())
    (place / f"{name}.de").write_text("\n" * count)
    assert run("run", "tiny.yaml") == 3
    assert "no line has text on both sides" in capsys.readouterr().err.splitlines()[-1]


def test_the_model_keeps_how_the_recipe_searched(finished, capsys, monkeypatch):
    final = finished / "out" / "german" / "final"
    kept = json.loads((final / "generation_config.json").read_text())
    assert (kept["num_beams"], kept["length_penalty_alpha"], kept["max_new_tokens"]) == (2, 0.6, 4)
    assert "length_penalty" not in kept  # another formula in transformers
    theirs = GenerationConfig.from_pretrained(final)
    assert (theirs.num_beams, theirs.max_new_tokens) == (2, 4)
    model, tokenizer = stemma.load(finished / "out")
    assert api.search_of(model) == BeamSearch(beams=2, alpha=0.6, max_new_tokens=4)
    assert api.search_of(model, alpha=0.0) == BeamSearch(beams=2, alpha=0.0, max_new_tokens=4)
    written = (finished / "out" / "german" / "translations.txt").read_text().splitlines()
    text = (finished / "held.en").read_text().splitlines()[0]
    assert stemma.generate(model, tokenizer, text) == written[0]
    monkeypatch.setattr(sys, "argv", sys.argv)
    capsys.readouterr()
    assert run("generate", str(finished / "out"), "--prompt", text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == written[0] and found["completion_tokens"] == 4


def test_settings_that_are_none_are_told_by_whose_they_are():
    model = api.build("transformer", width=8, depth=1, num_heads=2, vocab_size=11)
    assert api.search_of(model) == BeamSearch()
    api.translate_with(model, BeamSearch(beams=3, alpha=1.5, max_new_tokens=7))
    assert api.search_of(model, beams=5) == BeamSearch(beams=5, alpha=1.5, max_new_tokens=7)
    with pytest.raises(UsageError, match="beam search: beams"):
        api.search_of(model, beams=0)
    with pytest.raises(UsageError, match="beam search: width: unknown key"):
        api.search_of(model, width=3)
    object.__setattr__(model, "generation", {"num_beams": 0, "length_penalty": 2.0})
    with pytest.raises(ModelError, match="generation_config.json: num_beams"):
        api.search_of(model)
    assert api.search_of(model, beams=2) == BeamSearch(beams=2)


def test_the_last_lines_tell_the_score_and_how_to_translate(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert run("run", "tiny.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    score = json.loads((finished / "out/german/stage.json").read_text())["summary"]["translation"]
    bleu, chrf = (f"{score[key]:.1f}" for key in ("bleu", "chrf"))
    assert f"held out, german: BLEU {bleu} and chrF {chrf} on 5 held-out sentences" in lines
    said, command = lines[-1].split(": ", 1)
    text = (finished / "held.en").read_text().splitlines()[0]
    assert said == "translate with it"
    assert shlex.split(command) == ["stemma", "generate", "out/german", "--prompt", text]
    assert run(*shlex.split(command)[1:]) == 0
    written = (finished / "out" / "german" / "translations.txt").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == written[:1]


def test_scores_that_are_no_numbers_are_an_error_and_no_translation(finished):
    model, tokenizer = stemma.load(finished / "out")
    model.embedding.weight.data[:] = float("nan")
    with pytest.raises(ModelError, match="scores are not finite numbers"):
        stemma.generate(model, tokenizer, "the cat")


def test_files_that_do_not_pair_up_are_refused_with_both_counts(place, capsys):
    lines = (place / "talk.de").read_text().splitlines()
    (place / "talk.de").write_text("\n".join(lines[:-1]) + "\n")
    assert run("run", "tiny.yaml") == 3
    assert "talk.en: 70 lines, but talk.de has 69" in capsys.readouterr().err


def test_recurrent_networks_are_trained_by_the_same_stage(place):
    numbers = "{family: bahdanau, width: 8, embedding_width: 8, hidden: 8, maxout: 4}"
    text = TRANSLATE.replace(
        "{family: transformer, width: 16, depth: 1, num_heads: 2, dropout: 0.1}", numbers
    )
    (place / "tiny.yaml").write_text(text)
    assert run("run", "tiny.yaml", "german.steps=3") == 0
    model, tokenizer = stemma.load(place / "out")
    assert model.config.family == "bahdanau"
    assert isinstance(api.translate(model, tokenizer, "the cat", max_new_tokens=3), str)


def test_a_finished_translator_is_skipped_and_other_pairs_are_told(
    finished, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert run("run", "tiny.yaml") == 0
    assert "complete, skipped" in capsys.readouterr().err
    (folder / "held.de").write_text("a\nb\nc\nd\ne\n")
    assert run("run", "tiny.yaml") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_models_that_do_not_write_are_refused_by_name():
    reader = api.build("bert", width=8, depth=1, num_heads=2, vocab_size=11)
    with pytest.raises(UsageError, match="a bert reads texts whole and writes none"):
        api.require_writer(reader)
    writer = api.build("gru", width=8, depth=1, vocab_size=11)
    api.require_writer(writer)
    with pytest.raises(UsageError, match="a gru does not translate"):
        api.translate(writer, None, "x")


def test_what_a_family_does_is_told_by_its_builder():
    kinds = {family: api.does(family) for family in api.families()}
    assert kinds["llama"] == kinds["lstm"] == kinds["delta"] == "continue"
    assert kinds["transformer"] == kinds["bahdanau"] == kinds["t5"] == "translate"
    assert kinds["bert"] == "read"
