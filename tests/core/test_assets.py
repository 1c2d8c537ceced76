"""The catalogue and pulling, through the real pip with a package index of one folder."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from stemma.core import assets
from stemma.core.catalogue import parts_of
from stemma.core.errors import MAX_MESSAGE, ResourceError, UsageError
from stemma.core.files import install_folder, sha256_file

METADATA = "Metadata-Version: 2.1\nName: tiny-texts\nVersion: 1.0\n"
WRONG = "0" * 64


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, request):
    """A cache folder of its own, and a pip that knows one folder and no network."""
    (tmp_path / "index").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("STEMMA_HOME", str(tmp_path / "home"))
    if request.node.get_closest_marker("net"):
        return tmp_path / "home"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "home"


def sdist(folder, files):
    """A source archive whose setup.py leaves a trace wherever it is executed."""
    trace = f"open({str(folder / 'executed')!r}, 'w')\nfrom setuptools import setup\nsetup()\n"
    members = {"PKG-INFO": METADATA, "setup.py": trace, **files}
    path = folder / "tiny-texts-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            entry = tarfile.TarInfo(f"tiny-texts-1.0/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


def wheel(folder, files):
    path = folder / "tiny_texts-1.0-py3-none-any.whl"
    info = "tiny_texts-1.0.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, text in {**files, f"{info}/METADATA": METADATA, f"{info}/WHEEL": tags}.items():
            zipped.writestr(name, text)
        zipped.writestr(f"{info}/RECORD", "")
    return path


def entry(source, **changed):
    fields = {
        "kind": "text",
        "summary": "small texts",
        "source": source,
        "licence": "CC0-1.0",
        "files": ["texts/*.txt"],
    } | changed
    return {key: value for key, value in fields.items() if value is not None}


def register(home, **entries):
    (home / "assets.yaml").write_text(json.dumps(entries))  # JSON is YAML


def pinned(archive, **changed):
    facts = {"sha256": sha256_file(archive), "bytes": archive.stat().st_size}
    return entry("pypi:tiny-texts==1.0", **(facts | changed))


def local(folder, **changed):
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    (folder / "texts" / "a.txt").write_text("first")
    (folder / "texts" / "b.txt").write_text("second")
    return entry(f"path:{folder}", **changed)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}


def leftovers(home):
    return [path.name for path in (home / "assets").iterdir() if path.name.startswith(".")]


def refusal_of(name):
    with pytest.raises(ResourceError) as caught:
        assets.pull(name)
    message = str(caught.value)
    assert caught.value.exit_code == 5
    assert "\n" not in message and len(message) <= MAX_MESSAGE
    return message


# The catalogue.


def test_our_catalogue_is_whole(home):
    ours = assets.catalogue()
    assert {"shakespeare", "smollm2-135m", "all-minilm-l6", "gemma3-270m"} <= ours.keys()
    for name, asset in ours.items():
        assert asset.name == name
        assert asset.licence and asset.summary and asset.bytes > 0
        assert not asset.source.startswith("path:")
        assert all(part.bytes > 0 and part.sha256 for part in parts_of(asset))


def test_an_unknown_name_is_answered_with_the_nearest(home):
    with pytest.raises(UsageError, match="no asset is named shakespear; did you mean shakespeare"):
        assets.pull("shakespear")


def test_a_name_of_ours_cannot_be_taken(home, tmp_path):
    register(home, shakespeare=local(tmp_path / "mine"))
    with pytest.raises(UsageError, match=r"assets\.yaml:1.*shakespeare is taken") as caught:
        assets.find("smollm2-135m")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"sourse": "x"}, r"assets\.yaml:1: sourse: unknown key; did you mean source"),
        ({"source": "https://example.org/a.zip"}, "is not written as pypi:NAME==VERSION"),
        ({"source": "pypi:tiny-texts>=1.0"}, "is not written as"),
        ({"source": "pypi:--index-url=x==1"}, "is not written as"),
        ({"source": "npm:a@1.0 --registry=x"}, "is not written as"),
        ({"source": "path:relative/folder"}, "is not written as"),
        ({"sha256": "abc"}, "64 lower-case hex digits"),
        ({"sha256": None}, "64 lower-case hex digits"),
        ({"source": "path:/texts", "sha256": "abc"}, "64 lower-case hex digits"),
        ({"files": []}, "at least 1 item"),
        ({"kind": "film"}, "unknown value"),
        ({"licence": None}, "licence: required key is missing"),
        ({"joined": "../whole"}, "joined must be a plain file name"),
        ({"further": [{"source": "pypi:more==1", "files": ["*"]}]}, "64 lower-case hex digits"),
        ({"further": [{"source": "more", "sha256": WRONG, "files": ["*"]}]}, "is not written as"),
        ({"name": "other"}, "its name stands before the colon"),
    ],
)
def test_a_malformed_entry_is_one_line_with_its_place(home, changed, complaint):
    fields = {"source": "pypi:tiny-texts==1.0", "sha256": WRONG} | changed
    register(home, mine=entry(**fields))
    with pytest.raises(UsageError, match=complaint) as caught:
        assets.catalogue()
    assert "assets.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "Big"])
def test_a_name_is_always_a_plain_folder_name(home, tmp_path, name):
    register(home, **{name: local(tmp_path / "mine")})
    with pytest.raises(UsageError, match=r"assets\.yaml:1: name"):
        assets.catalogue()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STEMMA_HOME", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("STEMMA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert assets.cache_folder() == tmp_path / "cache" / "stemma"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.cache_folder() == tmp_path / ".cache" / "stemma"


# Pulling through pip.


def test_a_source_archive_is_pulled_and_its_code_never_runs(home, tmp_path):
    texts = {"data/texts/a.txt": "alpha\n", "data/texts/b.txt": "beta", "data/c.md": "gamma"}
    archive = sdist(tmp_path / "index", texts)
    register(home, tiny=pinned(archive))
    told = []
    folder = assets.pull("tiny", on_progress=told.append)
    assert tree(folder) == {"a.txt": "alpha\n", "b.txt": "beta"}
    assert told[-1] == archive.stat().st_size and told == sorted(told)
    assert not (tmp_path / "index" / "executed").exists()
    assert leftovers(home) == []
    record = json.loads((folder.parent / "asset.json").read_text())
    assert record["format_version"] == 1
    assert record["source"] == "pypi:tiny-texts==1.0"
    assert record["sha256"] == sha256_file(archive)
    assert {file["path"]: file["sha256"] for file in record["files"]} == {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in tree(folder).items()
    }


def test_a_kept_asset_needs_neither_pip_nor_its_source(home, tmp_path, monkeypatch):
    archive = wheel(tmp_path / "index", {"tiny/texts/a.txt": "alpha"})
    register(home, tiny=pinned(archive))
    assert assets.pulled("tiny") is None
    folder = assets.pull("tiny")
    assert tree(folder) == {"a.txt": "alpha"}
    archive.unlink()
    monkeypatch.setenv("PATH", "")
    assert assets.pull("tiny") == assets.pulled("tiny") == folder


def test_a_wrong_sha256_stops_before_anything_is_unpacked(home, tmp_path):
    archive = sdist(tmp_path / "index", {"texts/a.txt": "alpha"})
    register(home, tiny=pinned(archive, sha256=WRONG))
    message = refusal_of("tiny")
    assert "asset tiny" in message and "nothing was unpacked" in message
    assert WRONG[:12] in message and sha256_file(archive)[:12] in message
    assert list((home / "assets").iterdir()) == []


def test_without_network_the_message_names_asset_need_and_place(home):
    register(home, tiny=entry("pypi:tiny-texts==1.0", sha256=WRONG))
    message = refusal_of("tiny")
    assert "asset tiny" in message and "No matching distribution" in message
    assert "network is needed once" in message and f"STEMMA_HOME ({home})" in message
    assert leftovers(home) == []


@pytest.mark.parametrize(
    ("source", "tool"), [("npm:tiny@1.0.0", "npm"), ("deb:tiny=1.0", "dpkg-deb")]
)
def test_a_missing_tool_is_named(home, monkeypatch, tmp_path, source, tool):
    register(home, tiny=entry(source, sha256=WRONG))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"asset tiny: {tool} is needed" in refusal_of("tiny")


def test_the_hub_out_of_reach_is_one_line(home):
    register(home, tiny=entry("hf:owner/repo/a.txt@main", sha256=WRONG))
    assert "hf:owner/repo/a.txt@main" in refusal_of("tiny")


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Looking\nERROR: Could not find\nERROR: No match\n", "No match"),
        ("npm error code E404\nnpm error 404 Not found\nnpm error A log\n", "404 Not found"),
        ("Reading\nE: Unable to locate package x\n", "Unable to locate package x"),
        ("one\ntwo\n", "two"),
        ("", "no output"),
    ],
)
def test_the_telling_line_of_a_tool_is_kept(log, line):
    assert assets.complaint(log) == line


# An asset in several archives.


def in_pieces(folder, **changed):
    """An asset cut in three, each piece in an archive of its own, with a licence in the last."""
    parts = []
    for number, text in enumerate(("one ", "two ", "three")):
        (folder / f"part{number}" / "data").mkdir(parents=True)
        (folder / f"part{number}" / "data" / f"whole.bin.part{number}").write_text(text)
        parts.append({"source": f"path:{folder / f'part{number}'}", "files": ["data/*"]})
    (folder / "part2" / "data" / "LICENCE").write_text("terms")
    first, *further = parts
    return entry(**first | {"further": further, "joined": "whole.bin"} | changed)


def test_pieces_from_several_archives_are_joined_in_their_order(home, tmp_path):
    register(home, cut=in_pieces(tmp_path))
    folder = assets.pull("cut")
    assert tree(folder) == {"whole.bin": "one two three"} and leftovers(home) == []
    assert (folder / "LICENCE").read_text() == "terms"
    record = json.loads((folder.parent / "asset.json").read_text())
    assert {file["path"]: (file["bytes"], file["sha256"]) for file in record["files"]} == {
        path.name: (path.stat().st_size, sha256_file(path)) for path in folder.iterdir()
    }
    shutil.rmtree(tmp_path / "part1")
    assert assets.pull("cut") == assets.pulled("cut") == folder


def test_a_wrong_piece_stops_before_anything_is_unpacked(home, tmp_path):
    fields = in_pieces(tmp_path)
    fields["further"][1]["sha256"] = WRONG
    register(home, cut=fields)
    message = refusal_of("cut")
    assert f"path:{tmp_path / 'part2'}" in message and "nothing was unpacked" in message
    assert list((home / "assets").iterdir()) == []


def test_a_changed_piece_of_the_entry_is_pulled_anew(home, tmp_path):
    fields = in_pieces(tmp_path)
    register(home, cut=fields)
    assets.pull("cut")
    fields["further"].pop()
    register(home, cut=fields)
    assert assets.pulled("cut") is None
    assert tree(assets.pull("cut")) == {"whole.bin": "one two "}


def test_archives_that_hold_the_same_file_are_refused(home, tmp_path):
    fields = in_pieces(tmp_path)
    (tmp_path / "part1" / "data" / "LICENCE").write_text("other terms")
    register(home, cut=fields)
    message = refusal_of("cut")
    assert f"path:{tmp_path / 'part2'}: another archive holds LICENCE too" in message


def test_a_file_without_pieces_is_refused(home, tmp_path):
    register(home, cut=in_pieces(tmp_path, joined="other.bin"))
    assert "no file of it is a piece of other.bin" in refusal_of("cut")
    assert leftovers(home) == []


def test_progress_of_a_later_archive_counts_those_before_it(home, tmp_path):
    archive = wheel(tmp_path / "index", {"texts/a.txt": "alpha"})
    size = archive.stat().st_size
    wanted = pinned(archive)
    rest = {key: wanted[key] for key in ("source", "sha256", "bytes", "files")}
    register(home, two=local(tmp_path / "mine", files=["b.txt"], bytes=500 + size, further=[rest]))
    told = []
    assert tree(assets.pull("two", on_progress=told.append)) == {
        "b.txt": "second",
        "a.txt": "alpha",
    }
    assert told == sorted(told) and told[0] > 500 and told[-1] == 500 + size


# Local sources, and a cache that lives.


def test_a_local_folder_is_copied_and_checked(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    folder = assets.pull("mine")
    assert tree(folder) == {"a.txt": "first", "b.txt": "second"}
    register(home, mine=local(tmp_path / "mine", sha256=WRONG))
    assert "another sha256" in refusal_of("mine")
    found = json.loads((folder.parent / "asset.json").read_text())["sha256"]
    register(home, mine=local(tmp_path / "mine", sha256=found))
    assert assets.pull("mine") == folder


def test_a_local_source_that_is_not_there_is_a_usage_error(home, tmp_path):
    register(home, mine=entry(f"path:{tmp_path}/nowhere"))
    with pytest.raises(UsageError, match="asset mine: its source is not there"):
        assets.pull("mine")


def damage_shorten(folder):
    (folder / "a.txt").write_text("fir")


def damage_remove(folder):
    (folder / "a.txt").unlink()


def damage_record(folder):
    (folder.parent / "asset.json").write_text('{"format_version": 1')


def damage_other_version(folder):
    record = json.loads((folder.parent / "asset.json").read_text())
    (folder.parent / "asset.json").write_text(json.dumps(record | {"format_version": 2}))


def damage_all(folder):
    shutil.rmtree(folder.parent)
    folder.parent.write_text("a file where the folder was")


@pytest.mark.parametrize(
    "damage", [damage_shorten, damage_remove, damage_record, damage_other_version, damage_all]
)
def test_a_damaged_cache_is_noticed_and_pulled_anew(home, tmp_path, damage):
    register(home, mine=local(tmp_path / "mine"))
    folder = assets.pull("mine")
    before = tree(folder)
    damage(folder)
    assert assets.pulled("mine") is None
    assert assets.pull("mine") == folder
    assert tree(folder) == before
    assert leftovers(home) == []


def test_a_changed_entry_is_pulled_anew(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    assets.pull("mine")
    register(home, mine=local(tmp_path / "mine", files=["a.txt"]))
    assert assets.pulled("mine") is None
    assert tree(assets.pull("mine")) == {"a.txt": "first"}


def test_a_failed_pull_leaves_what_was_kept(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    folder = assets.pull("mine")
    register(home, mine=local(tmp_path / "mine", files=["*.md"]))
    assert "no file in it matches *.md" in refusal_of("mine")
    assert tree(folder) == {"a.txt": "first", "b.txt": "second"}


def test_a_hostile_archive_writes_nothing(home, tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr("texts/../../../../evil.txt", "evil")
    register(home, mine=entry(f"path:{tmp_path / 'evil.zip'}"))
    assert "leads out of it" in refusal_of("mine")
    assert not list(tmp_path.rglob("evil.txt"))
    assert leftovers(home) == []


def test_the_first_of_two_processes_wins_and_a_damaged_one_gives_way(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    asset, final = assets.find("mine"), assets.pull("mine").parent

    def whole(folder):
        return bool(assets.kept_files(asset, folder))

    marks = [shutil.copytree(final, tmp_path / "staging" / name) for name in ("one", "two")]
    first = (final / "asset.json").stat().st_ino
    install_folder(marks[0], final, whole=whole)
    assert (final / "asset.json").stat().st_ino == first
    damage_remove(final / "files")
    install_folder(marks[1], final, whole=whole)
    assert tree(final / "files") == {"a.txt": "first", "b.txt": "second"}


def test_processes_that_pull_at_once_all_get_it_whole(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    code = (
        "from stemma.core.assets import pull; print(sorted(p.name for p in pull('mine').iterdir()))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == ["['a.txt', 'b.txt']\n"] * 2
    assert leftovers(home) == []


def test_only_old_leftovers_of_killed_pulls_are_cleared(home, tmp_path):
    register(home, mine=local(tmp_path / "mine"))
    room = home / "assets"
    for name, age in ((".mine.old.partial", 2), (".mine.new.partial", 0)):
        (room / name).mkdir(parents=True)
        (room / name / "part").write_text("half")
        then = time.time() - age * 86400
        os.utime(room / name, (then, then))
    assets.pull("mine")
    assert leftovers(home) == [".mine.new.partial"]


def test_a_download_that_cannot_fit_is_refused_before_it_starts(home, tmp_path):
    archive = wheel(tmp_path / "index", {"texts/a.txt": "alpha"})
    register(home, tiny=pinned(archive, bytes=1 << 60))
    message = refusal_of("tiny")
    assert "the disk is full" in message and "STEMMA_HOME" in message


def test_a_cache_folder_that_cannot_be_made_is_one_line(home, tmp_path, monkeypatch):
    register(home, mine=local(tmp_path / "mine"))
    (home / "assets").write_text("a file where the folder should be")
    assert str(home / "assets") in refusal_of("mine")


# With a package index.


@pytest.mark.net
def test_shakespeare_holds_42_modern_works_and_no_licence_header():
    folder = assets.pull("shakespeare")
    files = sorted(folder.iterdir())
    text = b"".join(path.read_bytes() for path in files)
    assert (len(files), len(text)) == (42, 5_057_198)
    assert text.isascii() and b"gutenberg" not in text.lower()
    assert all(re.search(r"_gut\.txt$", path.name) for path in files)
