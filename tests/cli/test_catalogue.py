"""`pull`, `list assets` and `info` where an asset has terms that must be agreed to."""

import io
import json
import sys

import pytest

from stemma import api, cli
from stemma.data.bpe import train_tokenizer

TERMS = "https://example.org/terms"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own that knows one small model with terms; nobody at the terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], vocab_size=270)
    model = api.build("llama", width=16, depth=1, num_heads=2, hidden=16, vocab_size=270)
    api.save(model, tokenizer, tmp_path / "source")
    fields = {
        "kind": "model",
        "summary": "a small model",
        "source": f"path:{tmp_path / 'source'}",
        "licence": "Some Terms",
        "files": ["*.json", "*.safetensors"],
    }
    (tmp_path / "home").mkdir()
    entries = {"gated": fields | {"terms": TERMS}, "free": fields | {"licence": "MIT"}}
    (tmp_path / "home" / "assets.yaml").write_text(json.dumps(entries))
    return tmp_path / "home"


@pytest.fixture
def stemma(capsys, monkeypatch):
    """Call the command; returns exit code, stdout, stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["stemma", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


GENERATE = ("generate", "gated", "--raw", "--prompt", "the", "--max-new-tokens", "2")


@pytest.mark.parametrize("words", [("pull", "gated"), ("info", "gated"), GENERATE])
def test_no_command_uses_what_was_not_agreed_to(words, stemma, home):
    code, out, err = stemma(*words)
    assert (code, out) == (2, "")
    assert err == (
        f"error: gated: its licence, Some Terms ({TERMS}), must be agreed to before use; "
        "read it, then: stemma pull gated --accept-licence\n"
    )
    assert not (home / "assets").exists()


def test_the_line_that_is_shown_agrees_for_every_command(stemma):
    code, out, _ = stemma("pull", "gated", "--accept-licence", "--json")
    facts = json.loads(out)
    assert (code, facts["licence"], facts["terms"]) == (0, "Some Terms", TERMS)
    assert stemma("pull", "gated")[0] == 0
    code, out, _ = stemma("info", "gated", "--json")
    facts = json.loads(out)
    assert (code, facts["licence"], facts["terms"]) == (0, "Some Terms", TERMS)
    code, out, _ = stemma(*GENERATE)
    assert code == 0 and out.startswith("the")


def test_the_list_tells_licences_and_terms(stemma):
    code, out, _ = stemma("list", "assets", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows["gated"].endswith(f"Some Terms, to be agreed to: {TERMS})")
    assert rows["free"].endswith("MIT)")
    assert "https://ai.google.dev/gemma/terms" in rows["gemma3-270m"]


def test_agreeing_to_nothing_is_said(stemma):
    code, _, err = stemma("pull", "free", "--accept-licence")
    assert code == 0 and "free has no terms that must be agreed to" in err
