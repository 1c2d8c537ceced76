"""The command line, in process: results on stdout, messages on stderr, one line for a failure."""

import json
import shutil
import signal
import sys

import pytest

from stemma import cli
from stemma.core.errors import printable
from tests.pipeline.conftest import RECIPE, write_documents


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEMMA_DEBUG", "")  # undone afterwards, whatever --debug sets


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
    for name in (
        "run",
        "init",
        "generate",
        "chat",
        "serve",
        "info",
        "pull",
        "list",
        "explain",
        "report",
    ):
        assert f" {name} " in out
    for name in ("export", "quantize"):
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


def test_a_terminal_gets_control_characters_as_escapes_and_a_file_as_they_are(
    stemma, trained, monkeypatch
):
    prompt = "a\x1b[2J\x9b\rb\n\tc"
    options = ("--prompt", prompt, "--max-new-tokens", 3, "--temperature", 9, "--top-p", 1)
    texts = []
    for seed in range(6):  # the model writes control characters of its own, too
        given = ("generate", trained, *options, "--seed", seed)
        plain = stemma(*given)[1]
        assert plain.startswith(prompt)
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: True)
            shown = stemma(*given)[1]
        assert shown == printable(plain, keep="\n\t")
        assert shown.startswith("a\\x1b[2J\\x9b\\rb\n\tc")
        texts.append(plain.removeprefix(prompt))
    assert any(printable(text, keep="\n\t") != text for text in texts)


def test_end_tokens_of_the_model_folder_end_the_text(stemma, trained, tmp_path):
    shutil.copytree(trained / "export" / "hf", tmp_path / "model")
    options = ("--prompt", "the cat", "--temperature", 0, "--max-new-tokens", 8)
    before = json.loads(stemma("generate", "model", *options, "--json")[1])
    last = before["token_ids"][3]
    (tmp_path / "model" / "generation_config.json").write_text(f'{{"eos_token_id": [0, {last}]}}')
    after = json.loads(stemma("generate", "model", *options, "--json")[1])
    assert after["finish_reason"] == "stop" and after["token_ids"][-1] == last
    assert len(after["token_ids"]) <= 4 < len(before["token_ids"])
    assert stemma("generate", "model", *options)[1] == "the cat" + after["text"] + "\n"


@pytest.mark.parametrize(
    ("prompt", "raw", "place"),
    [
        ("ab\udce9", b"", "--prompt: not UTF-8 text (character 3)"),
        ("-", b"ab\xe9", "standard input: not UTF-8 text (byte 2)"),
    ],
)
def test_undecodable_prompt_is_refused_before_the_model_is_loaded(
    stemma, monkeypatch, tmp_path, prompt, raw, place
):
    (tmp_path / "prompt").write_bytes(raw)
    for errors in ("strict", "surrogateescape"):  # standard input is either, by the locale
        with open(tmp_path / "prompt", encoding="utf-8", errors=errors) as file:
            monkeypatch.setattr(sys, "stdin", file)
            code, out, err = stemma("generate", "no-such-model", "--prompt", prompt)
        lenient = place.replace("byte 2", "character 3") if errors != "strict" else place
        assert (code, out, err) == (2, "", f"error: {lenient}; give UTF-8\n")


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


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Übungen", "Ubungen"),
        ("文書", "my-docs"),
        ("a b", "a-b"),
        ("-x", "x"),
        ("two\nlines", "two-lines"),
        ("📚 #1: 'x'", "1---x-"),
        ("\x7f\u2028", "my-docs"),
    ],
)
def test_init_makes_a_sound_recipe_of_any_folder_name(stemma, tmp_path, folder, name):
    write_documents(tmp_path / folder)
    code, out, err = stemma("init", f"./{folder}")
    assert (code, err) == (0, "") and out.count("\n") == 2
    code, _, err = stemma("run", f"{name}.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert json.loads(stemma("run", f"{name}.yaml", "--dry-run", "--json")[1])


def test_init_quotes_the_name_of_its_file(stemma, tmp_path):
    write_documents(tmp_path / "docs")
    code, out, _ = stemma("init", "docs", "--output", "my\nown.yaml")
    assert code == 0 and "next: stemma run 'my\\nown.yaml'\n" in out
    assert stemma("run", "my\nown.yaml", "--dry-run")[0] == 0


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
    monkeypatch.setattr(cli.catalogue, "listed_recipes", lambda: 1 / 0)
    code, _, err = stemma("list", "recipes")
    assert code == 1 and len(err.splitlines()) == 1 and "--debug" in err
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(sys, "argv", ["stemma", "--debug", "list", "recipes"])
        cli.main()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_anywhere_is_one_line_and_its_exit_code(stemma, monkeypatch, number, code):
    def shielded():
        try:
            signal.raise_signal(number)
        except Exception:  # foreign code that catches all errors must not swallow a stop
            return {}
        return {}

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(cli.catalogue, "listed_recipes", shielded)
    try:
        got, _, err = stemma("list", "recipes")
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert got == code and err.splitlines() == ["stopped: by a signal; run the same command again"]


def test_full_memory_is_exit_code_5(stemma, monkeypatch):
    def allocate():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes")

    monkeypatch.setattr(cli.catalogue, "listed_recipes", allocate)
    code, _, err = stemma("list", "recipes")
    assert code == 5 and "out of memory" in err
