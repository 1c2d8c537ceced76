"""Unpacking: what a pattern names arrives byte for byte; what could do harm is refused."""

import io
import stat
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemma.core.archives import MAX_EXPANSION, PIECE, extract, fingerprint, safe_path


def tar_of(path, files, *, links=()):
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, kind, to in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, to
            tar.addfile(entry)
    return path


def zip_of(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return path


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


FILES = {
    "p-1/texts/a_gut.txt": b"alpha",
    "p-1/texts/b_gut.txt": b"beta\r\n",
    "p-1/texts/a_gut_f.txt": b"folio",
    "p-1/other/texts/c_gut.txt": b"gamma",
    "p-1/setup.py": b"raise SystemExit",
}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zip", "x.whl", "folder"])
def test_exactly_the_named_files_arrive_without_their_folder(tmp_path, name):
    archive = tmp_path / name
    if name == "folder":
        for path, content in FILES.items():
            (archive / path).parent.mkdir(parents=True, exist_ok=True)
            (archive / path).write_bytes(content)
    else:
        (tar_of if "t" in name else zip_of)(archive, FILES)
    files = extract(archive, ["p-1/texts/*_gut.txt"], tmp_path / "out")
    assert tree(tmp_path / "out") == {"a_gut.txt": b"alpha", "b_gut.txt": b"beta\r\n"}
    assert {(f.path, f.bytes) for f in files} == {("a_gut.txt", 5), ("b_gut.txt", 6)}
    assert {f.path: f.sha256 for f in files} == {
        f.path: fingerprint(tmp_path / "out" / f.path) for f in files
    }


def test_only_the_folders_that_all_share_are_dropped(tmp_path):
    extract(zip_of(tmp_path / "x.zip", FILES), ["*_gut.txt"], tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {
        "texts/a_gut.txt",
        "texts/b_gut.txt",
        "other/texts/c_gut.txt",
    }


def test_a_pattern_starts_at_a_whole_name(tmp_path):
    archive = zip_of(tmp_path / "x.zip", {"d/a.txt": b"a", "d/data.txt": b"data"})
    extract(archive, ["a.txt"], tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"a"}


def test_a_plain_file_is_its_own_archive(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    extract(tmp_path / "model.gguf", ["*.gguf"], tmp_path / "out")
    assert tree(tmp_path / "out") == {"model.gguf": b"GGUF"}


@pytest.mark.parametrize(
    "evil", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a\\..\\evil.txt"]
)
@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_a_path_that_leads_out_is_refused_even_beside_the_chosen(tmp_path, name, evil):
    files = {"a/good.txt": b"good", evil: b"evil"}
    archive = (tar_of if name == "x.tar" else zip_of)(tmp_path / name, files)
    with pytest.raises(ValueError, match="leads out of it"):
        extract(archive, ["good.txt"], tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("*.txt"))


@given(st.text(alphabet="ab./\\: C", max_size=12))
def test_no_accepted_path_can_leave_its_folder(path):
    from pathlib import Path

    try:
        clean = safe_path(path)
    except ValueError:
        return
    assert Path("/root/of/all").joinpath(clean).resolve().is_relative_to("/root/of/all")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused_where_it_is_chosen(tmp_path, kind):
    archive = tar_of(tmp_path / "x.tar", {"a.txt": b"a"}, links=[("b.txt", kind, "a.txt")])
    with pytest.raises(ValueError, match="link or a device"):
        extract(archive, ["*.txt"], tmp_path / "no")
    extract(archive, ["a.txt"], tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"a"}


def test_a_link_in_a_zip_is_refused(tmp_path):
    entry = zipfile.ZipInfo("b.txt")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr(entry, "/etc/passwd")
    with pytest.raises(ValueError, match="link or a device"):
        extract(tmp_path / "x.zip", ["*.txt"], tmp_path / "out")


def test_a_bomb_stops_on_the_way(tmp_path):
    size = MAX_EXPANSION * PIECE // 8
    archive = zip_of(tmp_path / "x.zip", {"a.txt": bytes(size), "b.txt": bytes(1)})
    with pytest.raises(ValueError, match="unpacks to more than"):
        extract(archive, ["*.txt"], tmp_path / "out")
    extract(archive, ["a.txt"], tmp_path / "fits")
    assert (tmp_path / "fits" / "a.txt").stat().st_size == size


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.xz"])
def test_a_broken_archive_is_one_sentence(tmp_path, name):
    whole = (zip_of if name == "x.zip" else tar_of)(tmp_path / name, {"a.txt": bytes(99_999)})
    whole.write_bytes(whole.read_bytes()[:-60])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        extract(whole, ["*.txt"], tmp_path / "out")


def test_a_pattern_that_names_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"matches \*\.md"):
        extract(zip_of(tmp_path / "x.zip", FILES), ["*.txt", "*.md"], tmp_path / "out")


def test_the_fingerprint_of_a_folder_sees_every_name_and_byte(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_bytes(b"a")
    seen = [fingerprint(folder)]
    (folder / "sub" / "a.txt").write_bytes(b"b")
    seen.append(fingerprint(folder))
    (folder / "sub" / "a.txt").rename(folder / "a.txt")
    seen.append(fingerprint(folder))
    assert len(set(seen)) == 3
