"""Errors are one line, at most 300 characters, with the way out at the end."""

import pytest

from stemma.core.errors import (
    DataError,
    ResourceError,
    StemmaError,
    UsageError,
    closest,
    nearest,
    printable,
)
from stemma.core.files import atomic_file, require_writable, write_json


def test_line_has_place_what_and_fix():
    error = DataError("no key text (got body)", place="a.jsonl:3", fix="set text_key")
    assert str(error) == "a.jsonl:3: no key text (got body); set text_key"


def test_long_and_hostile_content_stays_one_line_and_keeps_the_fix():
    error = UsageError("bad\x1b[31m\n" * 200, place="a\nb", fix="do this")
    line = f"error: {error}"
    assert len(line) <= 300 and "\n" not in line and "\x1b" not in line
    assert line.endswith("; do this") and "a\\nb" in line


def test_kept_characters_stay_and_pieces_give_what_the_whole_gives():
    text = "a\x1b[2J\tb\r\nc\x9bd\u2028é\udc80"
    shown = "a\\x1b[2J\tb\\r\nc\\x9bd\\u2028é\\udc80"
    assert printable(text, keep="\n\t") == shown
    assert "".join(printable(character, keep="\n\t") for character in text) == shown
    assert "\n" not in printable(text) and "\t" not in printable(text)


def test_nearest_names_come_first_whatever_their_case():
    known = ["Width", "depth", "heads"]
    assert closest("WIDHT", known) == ["Width"]
    assert closest("nothing", known) == []
    assert closest("dept", known, count=2, likeness=0)[0] == "depth"
    assert len(closest("dept", known, count=2, likeness=0)) == 2
    assert nearest("LLAMA", ["gpt2", "llama"]) == "did you mean llama"
    assert nearest("x", ["b", "a"]) == "known: a, b"


def test_exit_codes_are_those_of_the_design():
    codes = {kind.__name__: kind.exit_code for kind in StemmaError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "DataError": 3,
        "ModelError": 4,
        "ResourceError": 5,
        "DivergedError": 6,
        "StoppedError": 75,
    }


def test_failed_write_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_file(path, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_names_itself(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="file"):
        require_writable(tmp_path / "file" / "below")
