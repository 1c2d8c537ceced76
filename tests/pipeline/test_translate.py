"""The stage translate, from two files to a translator that the command line can use."""

import json
import shutil
import sys

import pytest

import stemma
from stemma import api, cli
from stemma.core.errors import UsageError
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
    assert found["ledger"] == {"pairs": 70, "too_long": 0}
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
        (["german.context=2", "german.batch_tokens=2"], 3, "pair of at most 2 tokens"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(place, capsys, changed, code, words):
    assert run("run", "tiny.yaml", *changed) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert words in last and last.startswith("error: ")


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
