# ruff: noqa: E501  (tables are read by rows)
"""Bad model folders, cases 53 to 60, 62, 65 and 66: refused by file, tensor and numbers.

Every case harms a copy of a sound model. A header that lies must not be believed for one
allocation, a pickle must not be opened, and no file outside the folder may be read.
"""

import io
import json
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.bad_inputs.command_line import (
    Refused,
    call,
    check_line,
    names,
    refuse,
    snapshot,
)
from tests.bad_inputs.layouts import (
    change_header,
    change_json,
    good_documents,
    join_file,
    put,
    recipe,
    split_file,
)

GENERATE = "generate model --prompt x --max-new-tokens 1 --device cpu"
INFO = "info model"
WEIGHTS = r"model/model\.safetensors: "
AGAIN = r"; download or export the model again"
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
OWNED = "owned"  # a file that an opened pickle would make


class Payload:
    """What runs code when a pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (OWNED, "w")


def zipped(content: bytes) -> bytes:
    """A pickle as torch wraps it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


PICKLE = pickle.dumps({NORM: Payload()})


def weights(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A model whose weights file is changed."""
    return lambda folder: change(folder / "model" / "model.safetensors")  # type: ignore[return-value]


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A model whose header is changed, as a JSON value."""
    return weights(lambda path: change_header(path, change))


def entry(name: str, **values: Any) -> Callable[[Path], None]:
    """A model with another entry of one tensor in its header."""
    return header(lambda entries: entries[name].update(values))


def moved(name: str, offset: int) -> Callable[[Path], None]:
    """A model with the bytes of one tensor elsewhere."""

    def change(entries: dict[str, Any]) -> None:
        start, end = entries[name]["data_offsets"]
        entries[name]["data_offsets"] = [start + offset, end + offset]

    return header(change)


def raw_header(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A model with other bytes for its header."""

    def change(path: Path) -> None:
        found, buffer = split_file(path)
        made = content if isinstance(content, bytes) else content(json.dumps(found).encode())
        join_file(path, made, buffer)

    return weights(change)


def length(number: int, size: int | None = None) -> Callable[[Path], None]:
    """A model whose header claims a length; the file may be made longer without taking room."""

    def change(path: Path) -> None:
        with open(path, "r+b") as file:
            file.write(struct.pack("<Q", number))
            if size is not None:
                file.truncate(size)

    return weights(change)


def cut(size: int) -> Callable[[Path], None]:
    """A model whose weights end early; negative sizes count from the end."""
    return weights(lambda path: path.write_bytes(path.read_bytes()[:size]))


def tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A model with other tensors, in a sound file."""

    def rewrite(path: Path) -> None:
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(found)
        path.unlink()
        save_file(found, path, {"format": "pt"})

    return weights(rewrite)


def without(*gone: str) -> Callable[[Path], None]:
    """A model that lacks tensors whose names hold one of these words."""

    def change(found: dict[str, Any]) -> None:
        for name in [name for name in found if any(word in name for word in gone)]:
            del found[name]

    return tensors(change)


def config(**values: Any) -> Callable[[Path], None]:
    """A model with other values in its config.json."""
    return lambda folder: change_json(folder / "model" / "config.json", **values)


def in_shards(places: Callable[[str], str]) -> Callable[[Path], None]:
    """A model in two shards, with an index that says where each tensor lies."""

    def lay_out(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        path.unlink()
        for shard in ("a.safetensors", "b.safetensors"):
            part = {n: t for n, t in found.items() if (EMBEDDING == n) == (shard[0] == "a")}
            save_file(part, folder / "model" / shard, {"format": "pt"})
        save_file(found, folder / "outside.safetensors", {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: places(name) for name in found}}
        put(folder / "model" / "model.safetensors.index.json", json.dumps(index))

    return lay_out


def rightly(name: str) -> str:
    """Where `in_shards` puts a tensor."""
    return "a.safetensors" if name == EMBEDDING else "b.safetensors"


def elsewhere(shard: str) -> Callable[[Path], None]:
    """A sharded model whose last norm is said to lie in another file."""
    return in_shards(lambda name: shard if name == NORM else rightly(name))


def pickled(name: str, content: bytes) -> Callable[[Path], None]:
    """A model whose weights are a pickle."""

    def lay_out(folder: Path) -> None:
        (folder / "model" / "model.safetensors").unlink()
        put(folder / "model" / name, content)

    return lay_out


def lone(name: str, content: bytes) -> Callable[[Path], None]:
    """A file that is given as a model."""
    return lambda folder: put(folder / name, content)


def million(count: int) -> bytes:
    """A header of so many empty tensors."""
    one = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join([one % number for number in range(count)]) + "}").encode()


def many_extra(found: dict[str, Any]) -> None:
    for number in range(7):
        found[f"extra.{number}.weight"] = found[NORM].clone()


REPEATED = b'{"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},' % NORM.encode()
PICKLES = r"pickle files are not loaded.*; convert it on a trusted machine.*"

CASES = [
    # 53: truncated
    Refused(53, "last-bytes", cut(-10), GENERATE, 4, WEIGHTS + r"\S+: truncated: wanted \d+ bytes of tensors, got \d+" + AGAIN),
    Refused(53, "info", cut(-10), INFO, 4, WEIGHTS + r"\S+: truncated: wanted \d+ bytes of tensors, got \d+" + AGAIN),
    Refused(53, "in-header", cut(100), GENERATE, 4, WEIGHTS + r"truncated: wanted a header of \d+ bytes, got 92" + AGAIN),
    Refused(53, "in-length", cut(5), GENERATE, 4, WEIGHTS + r"truncated: wanted 8 bytes of header length, got 5" + AGAIN),
    Refused(53, "empty", cut(0), GENERATE, 4, WEIGHTS + r"truncated: wanted 8 bytes of header length, got 0" + AGAIN),
    # 54: a header length that lies
    Refused(54, "two-to-63", length(2**63), GENERATE, 4, WEIGHTS + r".*header of 9223372036854775808 bytes, at most 100000000" + AGAIN),
    Refused(54, "all-ones", length(2**64 - 1), GENERATE, 4, WEIGHTS + r".*header of 18446744073709551615 bytes, at most 100000000" + AGAIN),
    Refused(54, "above-limit", length(100_000_001, 100_000_009), GENERATE, 4, WEIGHTS + r".*header of 100000001 bytes, at most 100000000" + AGAIN),
    Refused(54, "above-file", length(99_000_000), GENERATE, 4, WEIGHTS + r"truncated: wanted a header of 99000000 bytes, got \d+" + AGAIN),
    Refused(54, "info", length(2**63), INFO, 4, WEIGHTS + r".*header of 9223372036854775808 bytes.*" + AGAIN),
    # 55: byte ranges that do not cover the buffer once
    Refused(55, "overlap", moved(NORM, -4), GENERATE, 4, WEIGHTS + r"\S+: data_offsets overlap: begin at \d+, wanted \d+" + AGAIN),
    Refused(55, "out-of-range", moved(NORM, 10**9), GENERATE, 4, WEIGHTS + r"\S+: .*1\d{9}.*" + AGAIN),
    Refused(55, "hole", header(lambda found: found.pop(UP)), GENERATE, 4, WEIGHTS + r"\S+: data_offsets leave a hole: begin at \d+, wanted \d+" + AGAIN),
    Refused(55, "backwards", entry(NORM, data_offsets=[64, 0]), GENERATE, 4, WEIGHTS + NORM.replace(".", r"\.") + r": F32 of shape \[16\] takes 64 bytes, its data_offsets -64" + AGAIN),
    Refused(55, "negative", entry(NORM, data_offsets=[-64, 0]), GENERATE, 4, WEIGHTS + NORM + r": data_offsets \[-64, 0\] are not two whole numbers" + AGAIN),
    Refused(55, "bytes-after", weights(lambda path: path.write_bytes(path.read_bytes() + b"tail")), GENERATE, 4, WEIGHTS + r"tensors end at byte \d+ of the buffer, wanted \d+" + AGAIN),
    # 56: sizes beyond 64 bits
    Refused(56, "product", entry(NORM, shape=[2**62, 8], data_offsets=[0, 0]), GENERATE, 4, WEIGHTS + NORM + r": F32 of shape \[4611686018427387904, 8\] takes \d{21} bytes, its data_offsets 0" + AGAIN),
    Refused(56, "one-axis", entry(NORM, shape=[2**64]), GENERATE, 4, WEIGHTS + NORM + r": shape \[18446744073709551616\] is not a list of whole numbers" + AGAIN),
    Refused(56, "many-axes", entry(NORM, shape=[2] * 1000), GENERATE, 4, WEIGHTS + NORM + r": shape .* is not a list of whole numbers" + AGAIN),
    Refused(56, "dtype", entry(NORM, dtype="F128"), GENERATE, 4, WEIGHTS + NORM + r": unknown dtype 'F128'; known: .*F32.*"),
    Refused(56, "info", entry(NORM, shape=[2**62, 8], data_offsets=[0, 0]), INFO, 4, WEIGHTS + NORM + r": F32 of shape .*" + AGAIN),
    # 57: names twice, too many names
    Refused(57, "twice", raw_header(lambda found: REPEATED + found[1:]), GENERATE, 4, WEIGHTS + rf"header: .*'{NORM}' stands there twice.*" + AGAIN),
    Refused(57, "million", raw_header(lambda _: million(1_000_000)), GENERATE, 4, WEIGHTS + r"header: JSON of \d{7} items, more than the \d+ that are read" + AGAIN),
    Refused(57, "above-limit", raw_header(lambda _: million(100_001)), GENERATE, 4, WEIGHTS + r"100001 tensors, more than the 100000 that are read" + AGAIN),
    # 58: no JSON for a header
    Refused(58, "not-json", raw_header(b"{not json}"), GENERATE, 4, WEIGHTS + r"header: not usable JSON .*" + AGAIN),
    Refused(58, "zeros", raw_header(bytes(64)), GENERATE, 4, WEIGHTS + r"not a safetensors file: its header begins with .*" + AGAIN),
    Refused(58, "a-list", raw_header(b"[]      "), GENERATE, 4, WEIGHTS + r"not a safetensors file: its header begins with .*" + AGAIN),
    Refused(58, "deep", raw_header(b'{"a":' + b"[" * 1_000_000), GENERATE, 4, WEIGHTS + r"header: JSON nested too deep" + AGAIN),
    Refused(58, "not-utf8", raw_header(b'{"caf\xe9": 1}'), GENERATE, 4, WEIGHTS + r"header: not UTF-8 at byte 5" + AGAIN),
    Refused(58, "metadata", header(lambda found: found.update(__metadata__={"a": 1})), GENERATE, 4, WEIGHTS + r"__metadata__ must map text to text" + AGAIN),
    Refused(58, "no-entry", header(lambda found: found.update({NORM: 7})), GENERATE, 4, WEIGHTS + NORM + r": wanted dtype, shape and data_offsets.*" + AGAIN),
    Refused(58, "config-not-json", lambda f: put(f / "model" / "config.json", "{"), GENERATE, 4, r"model/config\.json: not usable JSON .*" + AGAIN),
    Refused(58, "config-deep", lambda f: put(f / "model" / "config.json", '{"a":' * 100_000), INFO, 4, r"model/config\.json: JSON nested too deep" + AGAIN),
    # 59: tensors that are missing or too many
    Refused(59, "missing", without(UP), GENERATE, 4, r"model\S*: .*1 tensors missing, 0 unused; missing " + UP + r"; .+"),
    Refused(59, "extra", tensors(lambda found: found.update(extra=found[NORM].clone())), GENERATE, 4, r"model\S*: .*0 tensors missing, 1 unused; unused extra; .+"),
    Refused(59, "both", tensors(lambda found: found.update(extra=found.pop(NORM))), GENERATE, 4, r"model\S*: .*1 tensors missing, 1 unused; missing " + NORM + r"; unused extra; .+"),
    Refused(59, "nine-missing", without("layers.1."), GENERATE, 4, r"model\S*: .*9 tensors missing, 0 unused; missing model\.layers\.1\.\{[^,]+(, [^,]+){4}, …\}\.weight; .+"),
    Refused(59, "seven-extra", tensors(many_extra), GENERATE, 4, r"model\S*: .*0 tensors missing, 7 unused; unused extra\.\{0, 1, 2, 3, 4, …\}\.weight; .+"),
    Refused(59, "more-blocks", config(num_hidden_layers=3), GENERATE, 4, r"model\S*: .*9 tensors missing, 0 unused; missing model\.layers\.2\..*; .+"),
    Refused(59, "fewer-blocks", config(num_hidden_layers=1), GENERATE, 4, r"model\S*: .*0 tensors missing, 9 unused; unused model\.layers\.1\..*; .+"),
    Refused(59, "no-weights", weights(Path.unlink), GENERATE, 4, r"model: holds no model\.safetensors.*" + AGAIN),
    # 60: another shape
    Refused(60, "hidden", config(intermediate_size=96), GENERATE, 4, r"model: \S*mlp\.gate_proj\.weight: shape \[64, 16\], wanted \[96, 16\]; check intermediate_size in config\.json"),
    Refused(60, "rows", config(vocab_size=300), GENERATE, 4, r"model: " + EMBEDDING + r": shape \[\d+, 16\], wanted \[300, 16\]; check vocab_size in config\.json"),
    Refused(60, "tensor", tensors(lambda found: found.update({NORM: found[NORM][:8].clone()})), GENERATE, 4, r"model: " + NORM + r": shape \[8\], wanted \[16\]; check hidden_size in config\.json"),
    Refused(60, "axes", tensors(lambda found: found.update({UP: found[UP].T.contiguous()})), GENERATE, 4, r"model: " + UP + r": shape \[16, 64\], wanted \[64, 16\]; check .*intermediate_size.* in config\.json"),
    # 62: an index that names other files
    Refused(62, "missing-shard", elsewhere("c.safetensors"), GENERATE, 4, r"model/model\.safetensors\.index\.json: the shard c\.safetensors is missing" + AGAIN),
    Refused(62, "passwd", elsewhere("../../etc/passwd"), GENERATE, 4, r"model/model\.safetensors\.index\.json: the shard '\.\./\.\./etc/passwd' is not the name .*" + AGAIN),
    Refused(62, "above", elsewhere("../outside.safetensors"), GENERATE, 4, r"model/model\.safetensors\.index\.json: the shard '\.\./outside\.safetensors' is not the name .*" + AGAIN),
    Refused(62, "absolute", elsewhere("/etc/hostname"), INFO, 4, r"model/model\.safetensors\.index\.json: the shard '/etc/hostname' is not the name .*" + AGAIN),
    Refused(62, "other-tensors", elsewhere("a.safetensors"), GENERATE, 4, r"model/a\.safetensors: the tensor " + NORM + r" is in model\.safetensors\.index\.json but not here" + AGAIN),
    Refused(62, "no-map", lambda f: (in_shards(rightly)(f), put(f / "model" / "model.safetensors.index.json", "{}"))[0], GENERATE, 4, r"model/model\.safetensors\.index\.json: weight_map: wanted names of files by tensor" + AGAIN),
    # 65: pickles
    Refused(65, "bin-in-folder", pickled("pytorch_model.bin", zipped(PICKLE)), GENERATE, 4, r"model/pytorch_model\.bin: " + PICKLES),
    Refused(65, "pt-in-folder", pickled("model.pt", PICKLE), INFO, 4, r"model/model\.pt: " + PICKLES),
    Refused(65, "disguised", pickled("model.safetensors", PICKLE), GENERATE, 4, WEIGHTS + PICKLES),
    Refused(65, "disguised-zip", pickled("model.safetensors", zipped(PICKLE)), GENERATE, 4, WEIGHTS + PICKLES),
    Refused(65, "disguised-info", pickled("model.safetensors", PICKLE), INFO, 4, WEIGHTS + PICKLES),
    Refused(65, "lone-pt", lone("net.pt", zipped(PICKLE)), "generate net.pt --prompt x", 4, r"net\.pt: " + PICKLES),
    Refused(65, "lone-bin", lone("net.bin", PICKLE), "info net.bin", 4, r"net\.bin: " + PICKLES),
    Refused(65, "shard", elsewhere("b.bin"), GENERATE, 4, r"model/model\.safetensors\.index\.json: the shard 'b\.bin' is not the name .*" + AGAIN),
    # 66: another architecture
    Refused(66, "type", config(model_type="rwkv"), GENERATE, 4, r"model/config\.json: model_type: unknown model type 'rwkv'; known: .*llama.*"),
    Refused(66, "info", config(model_type="lama", architectures=["LamaModel"]), INFO, 4, r"model/config\.json: model_type: unknown model type 'lama'; did you mean llama"),
    Refused(66, "head", config(architectures=["LlamaForSequenceClassification"]), GENERATE, 4, r"model/config\.json: architectures: found architecture .*LlamaForSequenceClassification.*, wanted 'LlamaForCausalLM'; .+"),
    Refused(66, "no-type", config(model_type=None), GENERATE, 4, r"model/config\.json: model_type: unknown model type None; known: .*llama.*"),
    Refused(66, "lying-type", config(model_type="gpt2", architectures=["GPT2LMHeadModel"]), GENERATE, 4, r"model/config\.json.*; .+"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=names)
def test_refused(case, sound_model, tmp_path):
    good_documents(tmp_path)
    shutil.copytree(sound_model, tmp_path / "model")
    refuse(case, tmp_path)
    assert not (tmp_path / OWNED).exists()


@pytest.mark.parametrize("harm", [cut(-10), length(2**63)], ids=["53-recipe", "54-recipe"])
def test_recipe_names_the_harmed_model(harm, sound_model, tmp_path):
    """A stage that begins with a bad model fails as the command does, and makes no result."""
    recipe(
        "    tokenizer: words\n    model: {family: llama, width: 16, depth: 1, num_heads: 2}\n",
        "    init: ./model\n",
    )(tmp_path)
    shutil.copytree(sound_model, tmp_path / "model")
    harm(tmp_path)
    before = snapshot(tmp_path)
    outcome = call(tmp_path, "run tiny.yaml")
    check_line(outcome, 4, r"\S*model/model\.safetensors: .*(truncated: |header of ).*" + AGAIN)
    assert before.items() <= snapshot(tmp_path).items()
    stage = tmp_path / "runs" / "tiny" / "base"
    assert [path.name for path in stage.iterdir()] == ["stage.json"]
    assert json.loads((stage / "stage.json").read_text())["status"] == "running"


def test_payload_would_have_run(tmp_path, monkeypatch):
    """The trap of case 65 is a real one: loading the pickle makes the file."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLE)[NORM].close()
    assert (tmp_path / OWNED).exists()


def test_sound_model_is_taken(sound_model, tmp_path):
    """What the cases harm is otherwise accepted, whole and in shards."""
    shutil.copytree(sound_model, tmp_path / "model")
    assert call(tmp_path, INFO).code == 0
    whole = call(tmp_path, GENERATE + " --temperature 0")
    in_shards(rightly)(tmp_path)
    before = snapshot(tmp_path)
    parted = call(tmp_path, GENERATE + " --temperature 0")
    assert (whole.code, parted.code) == (0, 0), whole.err + parted.err
    assert whole.out == parted.out
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("claimed", [2**63, 99_000_000], ids=["54-huge", "54-above-file"])
def test_claimed_length_is_not_allocated(claimed, sound_model, tmp_path):
    shutil.copytree(sound_model, tmp_path / "model")
    length(claimed)(tmp_path)
    tracemalloc.start()
    try:
        assert call(tmp_path, GENERATE).code == 4
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
