"""Terms that must be agreed to: asked of a person, refused elsewhere, remembered beside it."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest

from stemma import api
from stemma.core import assets, consent
from stemma.core.errors import MAX_MESSAGE, ResourceError, UsageError

TERMS = "https://example.org/terms"


class Terminal(io.StringIO):
    """A stream at which a person sits."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache with one asset that has terms; nobody sits at the terminal."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.txt").write_text("first")
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    register(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path / "home"


def register(tmp_path, **changed):
    fields = {
        "kind": "text",
        "summary": "a text with terms",
        "source": f"path:{tmp_path / 'source'}",
        "licence": "Some Terms",
        "terms": TERMS,
        "files": ["*.txt"],
    }
    (tmp_path / "home" / "assets.yaml").write_text(json.dumps({"gated": fields | changed}))


def sit_down(monkeypatch, answer):
    """A person at the terminal, who types `answer`; returns what they see."""
    seen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", seen)
    return seen


def refusal():
    with pytest.raises(UsageError) as caught:
        assets.pull("gated")
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_where_nobody_can_answer_one_line_says_how_to_agree(home):
    line = refusal()
    assert "\n" not in line and len(line) <= MAX_MESSAGE
    assert f"Some Terms ({TERMS})" in line
    assert line.endswith("stemma pull gated --accept-licence")
    assert [path.name for path in home.iterdir()] == ["assets.yaml"], "nothing was fetched"


@pytest.mark.parametrize("answer", ["y\n", "yes\n", " YES \n", "Y"])
def test_a_person_who_says_yes_gets_the_files(answer, monkeypatch):
    seen = sit_down(monkeypatch, answer)
    assert (assets.pull("gated") / "a.txt").read_text() == "first"
    assert "Some Terms" in seen.getvalue() and TERMS in seen.getvalue()
    assert seen.getvalue().endswith("Do you agree? [y/N] ")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "no\n", "yesterday\n", "ja\n"])
def test_anything_else_is_no(answer, monkeypatch, home):
    sit_down(monkeypatch, answer)
    assert "must be agreed to" in refusal()
    assert not (home / "assets").exists()


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_a_question_that_nobody_sees_or_answers_is_not_asked(stream, monkeypatch):
    sit_down(monkeypatch, "y\n")
    for other in (io.StringIO("y\n"), None):
        monkeypatch.setattr(sys, stream, other)
        assert "must be agreed to" in refusal()


def test_consent_is_asked_for_once(monkeypatch):
    sit_down(monkeypatch, "y\n")
    folder = assets.pull("gated")
    seen = sit_down(monkeypatch, "")
    assert assets.pull("gated") == assets.pulled("gated") == folder
    assert seen.getvalue() == ""


def test_what_was_agreed_to_stands_beside_the_asset(home):
    assets.agree(assets.find("gated"), given=True)
    record = json.loads((home / "assets" / "gated.agreed.json").read_text())
    assert record.pop("agreed").endswith("+00:00")
    assert record == {"format_version": 1, "licence": "Some Terms", "terms": TERMS}


def test_a_failed_fetch_does_not_ask_again(tmp_path):
    register(tmp_path, files=["*.md"])
    assets.agree(assets.find("gated"), given=True)
    with pytest.raises(ResourceError, match=r"no file in it matches \*\.md"):
        assets.pull("gated")
    (tmp_path / "source" / "b.md").write_text("second")
    assert (assets.pull("gated") / "b.md").exists()


@pytest.mark.parametrize("changed", [{"licence": "Other Terms"}, {"terms": f"{TERMS}/2"}])
def test_other_terms_are_asked_for_anew(changed, tmp_path):
    assets.agree(assets.find("gated"), given=True)
    assets.pull("gated")
    register(tmp_path, **changed)
    assert assets.pulled("gated") is None
    assert changed.popitem()[1] in refusal()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format_version": 2}'])
def test_a_damaged_record_is_no_consent(damage, home):
    assets.agree(assets.find("gated"), given=True)
    (home / "assets" / "gated.agreed.json").write_text(damage)
    assert "must be agreed to" in refusal()


def test_a_record_that_cannot_be_written_is_one_line(home):
    (home / "assets").write_text("in the way")
    with pytest.raises(ResourceError, match=r"assets.*STEMMA_HOME"):
        assets.agree(assets.find("gated"), given=True)


def test_an_asset_without_terms_asks_nothing(tmp_path, home):
    register(tmp_path, terms="")
    assert assets.pull("gated")
    assert not (home / "assets" / "gated.agreed.json").exists()


def test_the_first_use_by_name_asks_as_well(tmp_path):
    register(tmp_path, kind="model")
    with pytest.raises(UsageError, match=r"stemma pull gated --accept-licence"):
        api.load("gated")


def test_a_real_terminal_is_asked_and_can_say_yes(home):
    """Through a terminal of the system, in a process of its own."""
    ours, theirs = pty.openpty()
    code = "from stemma.core.assets import pull; print([p.name for p in pull('gated').iterdir()])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    ) as process:
        os.write(ours, b"y\n")
        out = process.stdout.read()
    os.close(theirs)
    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert out == "['a.txt']\n"
    assert TERMS in seen and "Do you agree? [y/N]" in seen


def test_our_gated_asset_names_where_its_terms_are():
    gemma = assets.find("gemma3-270m")
    assert (gemma.licence, gemma.terms) == (
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
    )
    assert not consent.has_agreed(
        assets.agreement_file(gemma), licence=gemma.licence, terms=gemma.terms
    )
