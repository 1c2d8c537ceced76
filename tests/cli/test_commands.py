"""The command line, in process: results on stdout, messages on stderr, one line for a failure."""

import json
import sys

import pytest

from stemma import cli
from tests.pipeline.conftest import RECIPE, write_documents


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("STEMMA_DEBUG", raising=False)


@pytest.fixture
def stemma(capsys, monkeypatch):
    """Call the command; returns exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stemma", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished tiny run, made by the command itself."""
    folder = tmp_path_factory.mktemp("trained")
    write_documents(folder / "docs")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["stemma", "run", "tiny.yaml", "--json"])
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert left.value.code == 0
    return folder / "runs" / "tiny"


def test_help_names_every_command_and_none_of_later(stemma):
    code, out, _ = stemma("--help")
    assert code == 0
    for name in ("run", "init", "generate", "info", "pull", "list", "explain", "report"):
        assert f" {name} " in out
    for name in ("serve", "chat", "quantize"):
        assert f" {name} " not in out


def test_generate_prints_the_promised_fields(stemma, trained):
    options = ("--prompt", "the cat", "--max-new-tokens", 5, "--seed", 3, "--json")
    code, out, err = stemma("generate", trained, *options)
    assert code == 0 and err == ""
    got = json.loads(out)
    names = ["text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "seed"]
    assert list(got) == names
    assert got["seed"] == 3 and got["completion_tokens"] == len(got["token_ids"]) <= 5
    assert json.loads(stemma("generate", trained, *options)[1]) == got


def test_streamed_text_is_prompt_and_continuation(stemma, trained):
    options = ("--prompt", "the cat", "--max-new-tokens", 8, "--temperature", 0)
    plain = stemma("generate", trained / "base", *options)[1]
    as_json = json.loads(stemma("generate", trained / "base", *options, "--json")[1])
    assert plain == "the cat" + as_json["text"] + "\n"


def test_prompt_comes_from_standard_input(stemma, trained, monkeypatch, tmp_path):
    (tmp_path / "prompt").write_text("the dog")
    with open(tmp_path / "prompt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, _ = stemma("generate", trained, "--prompt", "-", "--max-new-tokens", 1)
    assert code == 0 and out.startswith("the dog")


def test_info_says_what_a_model_is(stemma, trained):
    facts = json.loads(stemma("info", trained, "--json")[1])
    assert facts["family"] == "llama" and facts["context"] == 16
    assert facts["parameters"] > 1000
    assert "parameters" in stemma("info", trained / "export" / "hf")[1]


def test_dry_run_says_what_and_does_nothing(stemma, tmp_path):
    write_documents(tmp_path / "docs")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    code, out, _ = stemma("run", "tiny.yaml", "base.minutes=2", "--dry-run")
    assert code == 0 and "budget: 2 min" in out and not (tmp_path / "runs").exists()
    rows = json.loads(stemma("run", "tiny.yaml", "--dry-run", "--json")[1])
    assert [r["stage"] for r in rows] == ["corpus", "words", "base", "scores", "export"]
    assert {r["state"] for r in rows} == {"new"}


def test_init_writes_a_recipe_that_is_valid_as_it_stands(stemma, tmp_path):
    write_documents(tmp_path / "my notes")
    code, out, _ = stemma("init", "my notes")
    assert code == 0 and "stemma run my-notes.yaml" in out
    code, out, _ = stemma("run", "my-notes.yaml", "--dry-run")
    assert code == 0 and "corpus" in out
    code, _, err = stemma("init", "my notes")
    assert code == 2 and "exists" in err


def test_report_is_written_again(stemma, trained, monkeypatch):
    monkeypatch.chdir(trained.parents[1])  # the page names the folder as seen from here
    before = (trained / "report.html").read_bytes()
    (trained / "report.html").unlink()
    code, out, _ = stemma("report", trained)
    assert code == 0 and out.strip().endswith("report.html")
    assert (trained / "report.html").read_bytes() == before


@pytest.mark.parametrize("what", ["assets", "families", "recipes"])
def test_lists(stemma, what):
    names = json.loads(stemma("list", what, "--json")[1])
    wanted = {"assets": "shakespeare", "families": "llama", "recipes": "quickstart"}[what]
    assert wanted in names and wanted in stemma("list", what)[1]


def test_explain_answers_for_key_stage_and_family(stemma):
    entries = json.loads(stemma("explain", "pretrain.learning_rate", "--json")[1])
    assert [e["key"] for e in entries] == ["pretrain.learning_rate"]
    assert "fraction" in stemma("explain", "holdout.fraction")[1]
    assert "default 0.02" in stemma("explain", "model.llama.initial_std")[1]
    code, _, err = stemma("explain", "learning_rat")
    assert code == 2 and "did you mean learning_rate" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "nope"], "no such recipe"),
        (["run", "quickstart", "--until", "nope"], "no such stage"),
        (["generate", "nope", "--prompt", "x"], "no such model"),
        (["run", "quickstart", "--fresh", "--overwrite"], "exclude each other"),
        (["run", "quickstart", "base.tokens=1k", "base.tokens=2k"], "set twice"),
        (["generate", "x", "--seed", "1", "--seed", "2"], "given twice"),
        (["list", "asets"], "did you mean assets"),
        (["pull", "shakespear"], "did you mean shakespeare"),
        (["report", "nowhere"], "not a run folder"),
        (["init", "nowhere"], "no such file or folder"),
    ],
)
def test_mistake_is_one_line_with_exit_code_2(stemma, arguments, words):
    code, out, err = stemma(*arguments)
    assert code == 2 and out == ""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


def test_misspelt_variable_is_named(stemma, monkeypatch):
    monkeypatch.setenv("STEMMA_HOEM", "x")
    code, _, err = stemma("list", "recipes")
    assert code == 0 and "STEMMA_HOEM" in err and "did you mean STEMMA_HOME" in err


def test_bug_is_one_line_too(stemma, monkeypatch):
    monkeypatch.setattr(cli, "listed_recipes", lambda: 1 / 0)
    code, _, err = stemma("list", "recipes")
    assert code == 1 and len(err.splitlines()) == 1 and "--debug" in err
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(sys, "argv", ["stemma", "--debug", "list", "recipes"])
        cli.main()
