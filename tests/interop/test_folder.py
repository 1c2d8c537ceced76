"""Hugging Face folders: what we write we read, and a folder that lies is refused by name."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stemma import api
from stemma.core.errors import ModelError, StemmaError, UsageError
from stemma.data.bpe import train_tokenizer
from stemma.interop.folder import read_folder, read_tokenizer, write_folder
from stemma.interop.tables import tables

transformers.utils.logging.disable_progress_bar()
NUMBERS = {"width": 24, "depth": 2, "num_heads": 3, "vocab_size": 300, "context": 32}
HEADS = {"llama": {"num_kv_heads": 1}, "gpt2": {}}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat, naïve " * 9], vocab_size=270)


@dataclass
class Folder:
    """A sound model folder that a test may damage."""

    path: Path

    def config(self, **changed):
        """Change keys of config.json; `...` removes one."""
        place = self.path / "config.json"
        config = json.loads(place.read_text()) | changed
        place.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

    def tensors(self, change):
        """Change the dict of tensors in place."""
        place = self.path / "model.safetensors"
        found = load_file(place)
        change(found)
        save_file({k: v.clone().contiguous() for k, v in found.items()}, place)

    def refused(self, *words, error=ModelError):
        with pytest.raises(error) as raised:
            read_folder(self.path)
        message = str(raised.value)
        assert all(word in message for word in words), message
        assert len(message) <= 300 and "\n" not in message


@pytest.fixture(params=HEADS)
def family(request):
    return request.param


def made(family, path, tokenizer=None, **numbers):
    api.save(api.build(family, **NUMBERS, **HEADS[family], **numbers), tokenizer, path)
    return Folder(path)


@pytest.fixture
def folder(family, tmp_path, tokenizer):
    return made(family, tmp_path / "model", tokenizer, tied=False)


@pytest.fixture
def llama(tmp_path, tokenizer):
    return made("llama", tmp_path / "model", tokenizer, tied=False)


@pytest.fixture
def gpt2(tmp_path, tokenizer):
    return made("gpt2", tmp_path / "model", tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_what_is_written_comes_back(family, dtype, tmp_path, tokenizer):
    model = api.build(family, **NUMBERS, **HEADS[family], dtype=dtype, dropout=0.25)
    generation = {"temperature": 0.5}
    write_folder(tmp_path / "m", model.config, model.state_dict(), tokenizer, generation)
    found = read_folder(tmp_path / "m", dtype=getattr(torch, dtype))
    assert found.family == family and found.numbers == model.config.model_dump()
    assert found.state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert found.state[name].dtype == value.dtype and torch.equal(found.state[name], value)
    assert found.tokenizer.fingerprint == tokenizer.fingerprint
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    ids["pad_token_id"] = tokenizer.pad_id
    assert found.generation == {**generation, **ids}
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert {key: config[key] for key in ids} == ids
    assert config["dtype"] == config["torch_dtype"] == dtype


counts = st.integers(1, 8)
OWN = {  # what a family needs besides, or cannot have in its foreign form
    "neox": {"rotary_fraction": 1.0},
    "switch": {"capacity_factor": None, "expert_capacity": 8},
    "chatglm": {"rope_base": 10_000.0},
    "transformer": {"interleaved": False, "head_bias": True, "norm_eps": 1e-5},
    "gpt3": {"score_scale": 1.0, "qkv_bias": False, "windows": (None,)},
}


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "depth": counts,
            "hidden": counts,
            "vocab_size": counts,
            "context": counts,
            "norm_eps": st.floats(1e-12, 1),
            "tied": st.booleans(),
            "dropout": st.floats(0, 0.99),
            "initial_std": st.floats(1e-6, 1),
        }
    ),
    counts,
    counts,
    st.floats(1.0, 1e9),
)
def test_any_config_survives_the_foreign_form(numbers, groups, share, rope_base):
    """Every number of every family, as far as the family has it."""
    heads = groups * share
    drawn = {
        **numbers,
        "num_heads": heads,
        "width": 4 * heads,
        "num_kv_heads": groups,
        "rope_base": rope_base,
        "encoder_depth": share,
        "num_experts": 4,
        "top_k": 2,
        "shared": numbers["tied"],
        "source_vocab_size": None if numbers["tied"] else numbers["vocab_size"],
        "hidden": 2 * numbers["hidden"],
    }
    for family, table in tables().items():
        known = table.CONFIG.model_fields
        own = {key: value for key, value in drawn.items() if key in known}
        config = table.CONFIG(**(own | OWN.get(family, {})))
        foreign = json.loads(json.dumps(table.config_to_foreign(config)))
        again = table.CONFIG(**table.config_from_foreign(foreign)).model_dump()
        assert again == config.model_dump(), family


def test_transformers_reads_our_tokenizer(folder, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(folder.path)
    for text in ("the cat sat", "naïve\n\n  mats 123", ""):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos_id


def test_template_and_special_tokens_in_files_of_their_own(folder, tokenizer):
    place = folder.path / "tokenizer_config.json"
    config = json.loads(place.read_text())
    word = config.pop("eos_token")
    place.write_text(json.dumps(config))
    (folder.path / "special_tokens_map.json").write_text(json.dumps({"eos_token": word}))
    (folder.path / "chat_template.jinja").write_text("{{ messages }}\n")
    found = read_tokenizer(folder.path)
    assert found.eos_id == tokenizer.eos_id and found.template == "{{ messages }}\n"


def test_several_end_tokens_survive_a_round_trip(tmp_path, tokenizer):
    model = api.build("gpt2", **NUMBERS)
    several = {"eos_token_id": [tokenizer.eos_id, 7]}
    write_folder(tmp_path / "m", model.config, model.state_dict(), tokenizer, several)
    assert read_folder(tmp_path / "m").generation["eos_token_id"] == [tokenizer.eos_id, 7]
    others = {"eos_token_id": [7, 8]}  # of another tokenizer: no longer true
    write_folder(tmp_path / "n", model.config, model.state_dict(), tokenizer, others)
    assert read_folder(tmp_path / "n").generation["eos_token_id"] == tokenizer.eos_id


def test_loaded_weights_outlive_their_file(folder):
    found = read_folder(folder.path).state["embedding.weight"]
    before = found.clone()
    place = folder.path / "model.safetensors"
    size = place.stat().st_size
    with open(place, "r+b") as file:
        file.write(b"\xff" * size)
    assert torch.equal(found, before)


# Writing: nothing of somebody else's is touched


def tree(path):
    return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_existing_target_is_refused_untouched(folder, family):
    model = api.build(family, **NUMBERS)
    before = tree(folder.path.parent)
    with pytest.raises(UsageError, match="exists"):
        api.save(model, None, folder.path)
    assert tree(folder.path.parent) == before
    api.save(model, None, folder.path, overwrite=True)
    assert not (folder.path / "tokenizer.json").exists()  # the old model is gone as a whole
    assert [p.name for p in folder.path.parent.iterdir()] == ["model"]


def test_overwrite_refuses_a_folder_with_other_files(folder, family):
    (folder.path / "thesis.tex").write_text("years of work")
    before = tree(folder.path.parent)
    with pytest.raises(UsageError, match="holds thesis.tex, which is no file of a model"):
        api.save(api.build(family, **NUMBERS), None, folder.path, overwrite=True)
    assert tree(folder.path.parent) == before


def test_plain_file_is_never_overwritten(tmp_path):
    (tmp_path / "m").write_text("mine")
    with pytest.raises(UsageError, match="is not a folder"):
        api.save(api.build("gpt2", **NUMBERS), None, tmp_path / "m", overwrite=True)
    assert (tmp_path / "m").read_text() == "mine"


@pytest.mark.parametrize("name", ["write_tensors", "_replace"])
def test_failed_write_leaves_the_old_folder(name, folder, family, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    before = tree(folder.path.parent)
    monkeypatch.setattr(f"stemma.interop.folder.{name}", full)
    with pytest.raises(StemmaError, match="the disk is full"):
        api.save(api.build(family, **NUMBERS), None, folder.path, overwrite=True)
    assert tree(folder.path.parent) == before


def test_failed_exchange_puts_the_old_folder_back(folder, family, monkeypatch):
    before, rename = tree(folder.path.parent), os.rename

    def refuse_new(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("stemma.interop.folder.os.rename", refuse_new)
    with pytest.raises(StemmaError, match="input/output error"):
        api.save(api.build(family, **NUMBERS), None, folder.path, overwrite=True)
    assert tree(folder.path.parent) == before


def test_state_that_does_not_fit_its_config_is_not_written(tmp_path):
    model = api.build("gpt2", **NUMBERS)
    state = dict(model.state_dict())
    norm = state.pop("norm.weight")
    with pytest.raises(ModelError, match="norm.weight"):
        write_folder(tmp_path / "m", model.config, state, None)
    with pytest.raises(ModelError, match=r"norm.weight has shape \[23\], wanted \[24\]"):
        write_folder(tmp_path / "m", model.config, {**state, "norm.weight": norm[1:]}, None)
    assert not list(tmp_path.iterdir())


# Configs


def test_old_and_new_spelling_of_the_rotary_base(llama):
    for change in (
        {"rope_theta": 500.0, "rope_parameters": ..., "rope_scaling": None},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        {"rope_theta": 500.0, "rope_parameters": ..., "rope_scaling": {"type": "default"}},
    ):
        llama.config(**change)
        assert read_folder(llama.path).numbers["rope_base"] == 500.0
    llama.config(rope_theta=..., rope_parameters=..., rope_scaling=...)
    assert read_folder(llama.path).numbers["rope_base"] == 10_000.0
    llama.config(rope_theta=3.0, rope_parameters={"rope_theta": 4.0})
    llama.refused("rope_theta is given twice", "3.0", "4.0")


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_act", "gelu"),
        ("pretraining_tp", 2),
        ("rope_interleaved", True),
        ("quantization_config", {"bits": 4}),
        ("is_encoder_decoder", True),
    ],
)
def test_llama_setting_that_changes_the_equation_is_refused(key, value, llama):
    llama.config(**{key: value})
    llama.refused(f"config.json: {key}: ", "is not supported, only")


@pytest.mark.parametrize(
    "key, value",
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
    ],
)
def test_gpt2_setting_that_changes_the_equation_is_refused(key, value, gpt2):
    gpt2.config(**{key: value})
    gpt2.refused(f"config.json: {key}: ", "is not supported, only")


def test_a_function_that_is_not_known_is_refused_with_those_that_are(gpt2):
    gpt2.config(activation_function="tanh")
    gpt2.refused("activation_function is 'tanh', supported are gelu")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0},
        {"type": "longrope", "factor": 2.0},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "default", "surprise": 1},
        [1],
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotary_positions_that_we_cannot_compute_are_refused(key, rope, llama):
    llama.config(rope_theta=..., rope_parameters=..., **{} if key == "rope_parameters" else {})
    llama.config(**{key: rope})
    llama.refused(key)


def test_head_width_that_does_not_fit_the_weights_is_refused(llama):
    for head_dim in (16, "8", 8.5):
        llama.config(head_dim=head_dim)
        llama.refused("head_dim")
    llama.config(head_dim=...)
    read_folder(llama.path)


def test_harmless_keys_change_nothing(folder):
    before = read_folder(folder.path).numbers
    folder.config(transformers_version="4.40.1", use_cache=False, torch_dtype="bfloat16")
    folder.config(_name_or_path="x", reorder_and_upcast_attn=True, is_llama_config=True)
    assert read_folder(folder.path).numbers == before


def test_key_nobody_knows_is_logged(folder, caplog):
    read_folder(folder.path)
    assert not caplog.records
    folder.config(quantum_flux=3)
    read_folder(folder.path)
    assert "quantum_flux" in caplog.text


@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code", "_attn_implementation_internal"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_and_not_imported(name, key, folder):
    import sys

    (folder.path / "evil.py").write_text("raise SystemExit('imported')")
    place = folder.path / name
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: {"AutoModel": "evil.Evil"}}))
    folder.refused(f"{name}: {key}: ", "never run")
    assert "evil" not in sys.modules


def test_unknown_model_type_lists_the_known(folder):
    for value in ("mamba", 3, None, ...):
        folder.config(model_type=value)
        folder.refused(
            "config.json: model_type: unknown model type", "known: ", "gpt2, ", "llama, "
        )
    folder.config(model_type="lama")
    folder.refused("config.json: model_type: ", "did you mean llama")


def test_other_architecture_is_refused(llama):
    llama.config(architectures=["LlamaForSequenceClassification"])
    llama.refused(
        "found architecture ['LlamaForSequenceClassification'], wanted 'LlamaForCausalLM'"
    )


def test_config_of_another_family_does_not_fit(tmp_path, tokenizer):
    llama, gpt2 = (made(f, tmp_path / f, tokenizer) for f in ("llama", "gpt2"))
    (gpt2.path / "config.json").write_bytes((llama.path / "config.json").read_bytes())
    gpt2.refused(
        "does not fit LlamaForCausalLM: 21 tensors missing, 28 unused",
        "missing model.",
        "unused transformer.",
    )


def test_wrong_numbers_are_named_in_the_words_of_the_file(llama, tmp_path, tokenizer):
    for key, value, words in (
        ("hidden_size", "24", "config.json: hidden_size: "),
        ("hidden_size", 0, "config.json: hidden_size: "),
        ("num_hidden_layers", 1.5, "config.json: num_hidden_layers: "),
        ("num_attention_heads", [3], "config.json: num_attention_heads: "),
        ("rms_norm_eps", -1e-5, "config.json: rms_norm_eps: "),
        ("tie_word_embeddings", "yes", "config.json: tie_word_embeddings: "),
        ("vocab_size", ..., "config.json: vocab_size: the key is missing"),
    ):
        made("llama", tmp_path / f"{key}{value}", tokenizer)
        damaged = Folder(tmp_path / f"{key}{value}")
        damaged.config(head_dim=..., **{key: value})
        damaged.refused(words)
    llama.config(num_attention_heads=5, num_key_value_heads=5, head_dim=...)
    llama.refused("hidden_size (24) must be a multiple of num_attention_heads (5), such as hidden")


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "not usable JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'{"a": Infinity}', "Infinity is not JSON"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b'{"a":' * 100_000, "nested too deep"),
    ],
)
def test_malformed_json_is_refused(raw, words, folder):
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        (folder.path / name).write_bytes(raw)
        folder.refused(f"{name}: ", words)


def test_huge_json_is_refused_unread(folder):
    with open(folder.path / "config.json", "wb") as file:
        file.truncate(100_000_001)  # sparse: takes no disk
    folder.refused("config.json: 100000001 bytes, more than")


@pytest.mark.parametrize(
    "key, value",
    [("num_hidden_layers", 10**12), ("hidden_size", 3 * 10**17), ("vocab_size", 10**18)],
)
def test_lying_sizes_are_refused_at_once(key, value, llama):
    llama.config(head_dim=..., **{key: value})
    llama.refused()


# Tensors: every one is accounted for


def test_missing_and_unused_tensors_are_counted_and_named(llama):
    def change(tensors):
        for index in (0, 1):
            del tensors[f"model.layers.{index}.mlp.up_proj.weight"]
        tensors["model.layers.0.surprise"] = torch.zeros(1)

    llama.tensors(change)
    llama.refused(
        "2 tensors missing, 1 unused",
        "missing model.layers.{0, 1}.mlp.up_proj.weight",
        "unused model.layers.0.surprise",
    )


def test_one_tensor_too_many_is_enough(folder):
    folder.tensors(lambda tensors: tensors.update({"surprise.weight": torch.zeros(1)}))
    folder.refused("0 tensors missing, 1 unused", "surprise.weight")


def test_no_more_than_five_names_are_shown(gpt2):
    gpt2.tensors(lambda tensors: [tensors.pop(n) for n in list(tensors) if ".h.1." in n])
    with pytest.raises(ModelError, match="12 tensors missing, 0 unused") as error:
        read_folder(gpt2.path)
    shown = str(error.value).partition("{")[2].partition("}")[0].split(", ")
    assert len(shown) == 6 and shown[-1] == "…"


def test_wrong_shape_is_explained(tmp_path, tokenizer):
    for family, key, value, words in (
        ("llama", "vocab_size", 310, ("model.embed_tokens.weight", "[300, 24]", "[310, 24]")),
        ("llama", "intermediate_size", 70, ("mlp.gate_proj.weight", "[64, 24]", "[70, 24]")),
        ("llama", "num_key_value_heads", 3, ("k_proj.weight", "[8, 24]", "[24, 24]")),
        ("gpt2", "n_inner", 90, ("mlp.c_fc.weight", "[24, 96]", "[24, 90]")),
        ("gpt2", "n_positions", 33, ("wpe.weight", "[32, 24]", "[33, 24]")),
    ):
        damaged = made(family, tmp_path / key / family, tokenizer, tied=False)
        damaged.config(**{key: value})
        name, found, wanted = words
        damaged.refused(name, f"shape {found}, wanted {wanted}", f"check {key}", "in config.json")


def test_head_follows_the_tie_flag(family, folder, tmp_path):
    key = tables()[family].KEYS["tied"][0]
    folder.config(**{key: True})
    folder.refused("lm_head.weight differs from", f"{key} is true")
    embedding = tables()[family].EMBEDDING
    folder.tensors(lambda t: t.update({"lm_head.weight": t[embedding]}))
    assert "head.weight" not in read_folder(folder.path).state  # equal: accepted as tied
    folder.tensors(lambda t: t.pop("lm_head.weight"))
    assert "head.weight" not in read_folder(folder.path).state
    folder.config(**{key: False})
    folder.refused("lm_head.weight is missing", f"{key} is false")


def test_old_gpt2_files_lack_the_prefix_and_carry_masks(gpt2):
    before = read_folder(gpt2.path).state

    def age(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for index in (0, 1):
            tensors[f"h.{index}.attn.bias"] = torch.ones(1, 1, 32, 32)
            tensors[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)

    gpt2.tensors(age)
    gpt2.config(tie_word_embeddings=..., n_ctx=32, activation_function=...)
    after = read_folder(gpt2.path).state
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_old_llama_files_carry_rotary_tables(llama):
    llama.tensors(
        lambda t: t.update({"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    read_folder(llama.path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bad_numbers_are_counted(value, dtype, folder, family):
    name = {"llama": "model.layers.1.mlp.down_proj.weight", "gpt2": "transformer.wte.weight"}[
        family
    ]

    def change(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name][3, 4:6] = value

    folder.tensors(change)
    folder.refused(name, "2 of ", "values are NaN or infinite")


def test_large_sound_numbers_are_not_called_infinite(llama):
    llama.tensors(lambda t: t["model.norm.weight"].fill_(3e38))  # their sum overflows
    assert read_folder(llama.path).state["norm.weight"].max() > 2e38
    with pytest.raises(ModelError, match="24 values are too large for torch.float16"):
        read_folder(llama.path, dtype=torch.float16)


def test_quantized_tensor_is_refused(llama):
    llama.tensors(lambda t: t.update({"model.norm.weight": torch.ones(24, dtype=torch.int8)}))
    llama.refused("model.norm.weight", "torch.int8")


def test_tokenizer_larger_than_the_embedding(folder):
    folder.config(vocab_size=200)
    folder.refused("tokenizer.json", "270 token ids", "config.json has 200 rows")
    with pytest.raises(ModelError, match="270 token ids, but the embedding has 200 rows"):
        small = api.build("gpt2", **{**NUMBERS, "vocab_size": 200})
        api.save(small, read_tokenizer(folder.path), folder.path.parent / "new")


# Shards


@pytest.fixture
def shards(llama):
    tensors = load_file(llama.path / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == shard}, llama.path / shard)
    (llama.path / "model.safetensors").unlink()
    index = llama.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    llama.places = places
    return llama


def test_missing_shard_is_named(shards):
    read_folder(shards.path)
    (shards.path / "model-00002-of-00002.safetensors").unlink()
    shards.refused("the shard model-00002-of-00002.safetensors is missing")


@pytest.mark.parametrize(
    "shard",
    ["../../etc/passwd", "/etc/passwd", "..", "", "a/b.safetensors", "..\\x.safetensors",
     "x.bin", ".safetensors", "a\0.safetensors", "model.safetensors/../../x.safetensors"],
)  # fmt: skip
def test_shard_elsewhere_is_never_opened(shard, shards):
    place = shards.path / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": {**shards.places, "lm_head.weight": shard}}))
    shards.refused("is not the name of a safetensors file in this folder")


def test_index_and_shards_must_agree(shards):
    place = shards.path / "model.safetensors.index.json"
    moved = {**shards.places, "lm_head.weight": "model-00002-of-00002.safetensors"}
    place.write_text(json.dumps({"weight_map": moved}))
    shards.refused("lm_head.weight")
    for wrong in ([], {"a": 3}, None):
        place.write_text(json.dumps({"weight_map": wrong}))
        shards.refused("weight_map")


def test_pickle_folder_is_refused(llama):
    (llama.path / "model.safetensors").rename(llama.path / "pytorch_model.bin")
    llama.refused("pytorch_model.bin", "pickle files are not loaded", "trusted machine")
    (llama.path / "pytorch_model.bin").unlink()
    llama.refused("holds no model.safetensors")
