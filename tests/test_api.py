"""The Python face: building is a pure function, loading finds what a name stands for."""

import json

import pytest
import torch

import stemma
from stemma import api
from stemma.core.errors import ModelError, UsageError
from stemma.data.bpe import train_tokenizer
from stemma.infer.sampling import Sampling
from stemma.nn.initial import initialise
from tests.bad_inputs.gguf_pieces import Pieces

LLAMA = {"width": 24, "depth": 3, "num_heads": 3, "vocab_size": 270, "context": 32}
GPT2 = {"width": 24, "depth": 3, "num_heads": 3, "vocab_size": 270, "context": 32}
FAMILIES = {"llama": LLAMA, "gpt2": GPT2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat " * 9], vocab_size=265)


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# Building


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_a_function_of_seed_and_name(family):
    first = api.build(family, seed=3, **FAMILIES[family])
    torch.rand(100)  # whatever was drawn before
    assert equal(first, api.build(family, seed=3, **FAMILIES[family]))
    assert not equal(first, api.build(family, seed=4, **FAMILIES[family]))
    deeper = api.build(family, seed=3, **{**FAMILIES[family], "depth": 5}).state_dict()
    for name, value in first.state_dict().items():
        if not name.endswith(("output.weight", "down.weight")):  # those are scaled by depth
            assert torch.equal(deeper[name], value), name


def test_order_of_initialisation_does_not_matter():
    model = api.build("llama", seed=5, **LLAMA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for part in reversed(list(model.blocks)):  # other parameters in between, other order
        initialise(part, seed=9, std=0.1, depth=1)
    parameters = list(model.named_parameters())[::-1]
    shuffled = torch.nn.Module()
    shuffled.named_parameters = lambda: iter(parameters)
    shuffled.get_submodule = model.get_submodule
    initialise(shuffled, seed=5, std=0.02, depth=3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_follow_the_rule_of_gpt2(family):
    numbers = {**FAMILIES[family], "width": 96, "vocab_size": 400}
    for name, value in api.build(family, **numbers, initial_std=0.05).named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif value.ndim == 1:
            assert (value == 1).all(), name
        else:
            into_stream = name.endswith(("output.weight", "down.weight"))
            std = 0.05 / 6**0.5 if into_stream else 0.05
            assert abs(value.std().item() / std - 1) < 0.06, name
            assert abs(value.mean().item()) < 0.06 * std, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16, None])
def test_built_model_has_memory_and_dtype(dtype):
    model = api.build("llama", dtype=dtype, **LLAMA)
    wanted = getattr(torch, str(dtype or "float32").removeprefix("torch."))
    assert all(p.dtype == wanted and not p.is_meta for p in model.parameters())
    assert not list(model.buffers())


def test_building_and_loading_leave_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    api.save(api.build("gpt2", **GPT2), None, tmp_path / "m")
    api.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_replace_those_of_a_preset():
    small = {"width": 48, "depth": 1, "num_heads": 3, "hidden": 8, "vocab_size": 50}
    config = api.build("smollm2-135m", **small).config
    assert config.family == "llama" and config.width == 48
    assert config.context == 8192 and config.rope_base == 1e5 and config.tied
    with torch.device("meta"):
        assert api._choose("gpt2", {})[1] == api._family("gpt2").PRESETS["gpt2"]
    assert api.build("gpt2", **GPT2).config.width == 24  # with numbers, the family itself


@pytest.mark.parametrize(
    "preset, millions",
    [("gpt2", 124.4), ("gpt2-xl", 1557.6), ("llama-7b", 6738.4), ("smollm2-135m", 134.5),
     ("llama2-70b", 68976.6)],
)  # fmt: skip
def test_presets_have_the_published_number_of_parameters(preset, millions):
    family, numbers = api._choose(preset, {})
    model = api._on_meta(family, api._config(family, numbers))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 1) == millions


def test_every_preset_is_valid_and_names_are_listed():
    assert {"gpt2", "llama", "lstm", "mixtral", "transformer", "bert"} < set(api.families())
    for preset in api.presets():
        family, numbers = api._choose(preset, {})
        assert api._config(family, numbers).family == family == api.presets()[preset]


@pytest.mark.parametrize(
    "name, numbers, words",
    [
        ("lama", LLAMA, "unknown family or preset 'lama'; did you mean llama"),
        ("../llama", LLAMA, "unknown family or preset"),
        ("gpt2-medum", {}, "did you mean gpt2-medium"),
        ("llama", {}, "width: required key is missing"),
        ("llama", {**LLAMA, "widht": 3}, "widht: unknown key; did you mean width"),
        ("llama", {**LLAMA, "depth": 0}, "llama: depth: input should be greater than or equal"),
        ("llama", {**LLAMA, "depth": "3"}, "llama: depth: "),
        ("llama", {**LLAMA, "depth": 2.0}, "llama: depth: "),
        ("llama", {**LLAMA, "num_heads": 5}, "width (24) must be a multiple of num_heads (5)"),
        ("llama", {**LLAMA, "num_kv_heads": 2}, "num_heads (3) must be a multiple of num_kv_h"),
        ("gpt2", {**GPT2, "num_kv_heads": 1}, "num_kv_heads: unknown key"),
        ("llama", {**LLAMA, "dtype": "int8"}, "unknown dtype 'int8'"),
        ("llama", {**LLAMA, "device": "abacus"}, "no such device here (abacus)"),
    ],
)
def test_wrong_numbers_are_one_line(name, numbers, words):
    with pytest.raises(UsageError) as error:
        api.build(name, **numbers)
    assert words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


# Loading


def test_loading_gives_back_what_was_saved(tmp_path, tokenizer):
    model = api.build("llama", **LLAMA, dropout=0.5)
    stemma.save(model, tokenizer, tmp_path / "m")
    again, found = stemma.load(str(tmp_path / "m"))
    assert equal(model, again) and again.config == model.config
    assert found.fingerprint == tokenizer.fingerprint
    assert not again.training and all(p.requires_grad for p in again.parameters())
    assert api.load_tokenizer(tmp_path / "m").fingerprint == tokenizer.fingerprint


def test_folder_without_tokenizer(tmp_path):
    api.save(api.build("gpt2", **GPT2), None, tmp_path / "m")
    assert stemma.load(tmp_path / "m")[1] is None
    with pytest.raises(ModelError, match="has no tokenizer.json"):
        api.load_tokenizer(tmp_path / "m")


def run_folder(path, made):
    """A run of three stages; those in `made` have a finished model of that depth."""
    path.mkdir()
    (path / "recipe.yaml").write_text("name: x\nstages:\n  zero: {}\n  base: {}\n  also: {}\n")
    (path / "zero" / "final").mkdir(parents=True)  # a tokenizer's, not a model's
    for stage in ("base", "also"):
        (path / stage / "steps").mkdir(parents=True)
        (path / stage / "config.json").write_text("{}")
        if stage in made:
            model = api.build("gpt2", **{**GPT2, "depth": made[stage]})
            api.save(model, None, path / stage / "final")
    return path


def test_run_folder_means_its_last_finished_stage(tmp_path):
    both = run_folder(tmp_path / "both", {"base": 1, "also": 2})
    assert api.load(both)[0].config.depth == 2
    assert api.load(both / "base")[0].config.depth == 1
    assert api.load(both / "base" / "final")[0].config.depth == 1
    first = run_folder(tmp_path / "first", {"base": 1})
    assert api.load(first)[0].config.depth == 1
    with pytest.raises(ModelError, match="this stage is not finished"):
        api.load(first / "also")
    with pytest.raises(ModelError, match="no stage of this run has made a model yet"):
        api.load(run_folder(tmp_path / "none", {}))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An own catalogue with one model folder and one GGUF file."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("STEMMA_HOME", str(home))
    api.save(api.build("gpt2", **GPT2), None, tmp_path / "small")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "x.gguf").write_bytes(Pieces().built())
    common = "{kind: model, summary: s, licence: MIT, files: ['*'], source: 'path:"
    entries = [f"{name}: {common}{tmp_path / name}'}}\n" for name in ("small", "packed")]
    (home / "assets.yaml").write_text("".join(entries))
    return home


def test_a_comparison_says_that_it_keeps_no_model(tmp_path):
    """Going on, or running again, would never give one."""
    (tmp_path / "recipe.yaml").write_text("stages: {tree: {kind: lineage}}\n")
    (tmp_path / "tree" / "trials").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "tree"):
        with pytest.raises(ModelError, match="tree: a lineage compares networks and keeps no mo"):
            api.load(place)


def test_text_without_a_tokenizer_is_refused():
    model = api.build("llama", width=8, depth=1, num_heads=2, vocab_size=9)
    with pytest.raises(ModelError, match="the model has no tokenizer; add tokenizer.json"):
        api.generate(model, None, "hi")


def test_asset_is_found_by_its_name(cache):
    assert api.load("small")[0].config.width == 24
    assert api.info("small")["licence"] == "MIT"
    assert api.load("packed")[0].config.width == 8
    assert api.info("packed")["licence"] == "MIT"
    with pytest.raises(UsageError, match="no such model; .*did you mean small"):
        api.load("smal")


@pytest.mark.parametrize(
    "name, words",
    [
        ("model.gguf", "not a GGUF file: it begins with"),
        (
            "model.safetensors",
            "a model is a folder with config.json, or a GGUF file; give its folder",
        ),
        ("pytorch_model.bin", "pickle files are not loaded"),
    ],
)
def test_plain_file_is_no_model(name, words, tmp_path):
    (tmp_path / name).write_bytes(bytes(16))
    with pytest.raises(ModelError) as error:
        api.load(tmp_path / name)
    assert words in str(error.value) and str(tmp_path / name) in str(error.value)


def test_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="config.json: no such file"):
        api.load(tmp_path)


def test_asset_of_another_kind_is_no_model(cache):
    with pytest.raises(UsageError, match="shakespeare: an asset of kind text, not a model"):
        api.load("shakespeare")


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'gguf'; known: hf"):
        api.save(api.build("gpt2", **GPT2), None, tmp_path / "m", format="gguf")
    assert not list(tmp_path.iterdir())


def test_info_counts_without_reading_weights(tmp_path, tokenizer):
    model = api.build("llama", **LLAMA, dtype="bfloat16")
    api.save(model, tokenizer, tmp_path / "m")
    facts = api.info(tmp_path / "m")
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["bytes"] == (tmp_path / "m" / "model.safetensors").stat().st_size
    assert (facts["family"], facts["dtype"], facts["context"]) == ("llama", "bfloat16", 32)
    assert facts["tokenizer"] is True and facts["template"] is False


def test_fingerprint_tells_networks_apart():
    first = api.build("llama", **LLAMA).config
    assert api.fingerprint(first) == api.fingerprint(api.build("llama", seed=1, **LLAMA).config)
    others = [first.model_copy(update={"rope_base": 9.0}), api.build("gpt2", **GPT2).config]
    assert len({api.fingerprint(config) for config in (first, *others)}) == 3


# Generating


@torch.no_grad()
def test_greedy_text_is_the_argmax_of_full_passes(tokenizer):
    model = api.build("llama", **LLAMA, initial_std=0.3).eval()
    ids = [tokenizer.bos_id, *tokenizer.encode("the cat")]
    start = len(ids)
    while len(ids) < start + 8:
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_id:
            break
    wanted = tokenizer.decode(ids)[len("the cat") :]
    for prompt in ("the cat", ["the cat"]):
        text = stemma.generate(model, tokenizer, prompt, max_new_tokens=8, temperature=0)
        assert text == (wanted if isinstance(prompt, str) else [wanted])


def test_generation_settings_come_from_the_file_unless_given(tmp_path, tokenizer):
    api.save(api.build("gpt2", **GPT2), tokenizer, tmp_path / "m")
    place = tmp_path / "m" / "generation_config.json"
    for text, given, wanted in (
        ("{}", {}, Sampling()),
        ("{}", {"top_k": 5}, Sampling(top_k=5)),
        ('{"temperature": 0.6}', {}, Sampling(temperature=0.6, top_p=1)),
        (
            '{"temperature": 0.6, "top_p": null}',
            {"temperature": 2},
            Sampling(temperature=2, top_p=1),
        ),
        ('{"do_sample": true, "top_k": 50}', {}, Sampling(temperature=1, top_p=1, top_k=50)),
        ('{"do_sample": false, "temperature": 0.6}', {}, Sampling(temperature=0, top_p=1)),
        (
            '{"do_sample": false, "repetition_penalty": 1.2}',
            {},
            Sampling(temperature=0, top_p=1, repetition_penalty=1.2),
        ),
        ('{"do_sample": false}', {"temperature": 1}, Sampling(temperature=1, top_p=1)),
    ):
        place.write_text(text)
        assert api.sampling(api.load(tmp_path / "m")[0], **given) == wanted
    place.write_text('{"temperature": -1}')
    model = api.load(tmp_path / "m")[0]
    with pytest.raises(ModelError, match="generation_config.json: temperature: "):
        api.sampling(model)
    assert api.sampling(model, temperature=0.5).temperature == 0.5
    with pytest.raises(UsageError, match="temprature: unknown key; did you mean temperature"):
        stemma.generate(model, tokenizer, "a", temprature=1)
    with pytest.raises(UsageError, match="messages need a chat template"):
        stemma.generate(model, tokenizer, [{"role": "user", "content": "hi"}])


def test_every_end_token_of_the_files_ends_a_text(tmp_path, tokenizer):
    model = api.build("llama", **LLAMA, initial_std=0.3)
    api.save(model, tokenizer, tmp_path / "m")
    place, config = tmp_path / "m" / "generation_config.json", tmp_path / "m" / "config.json"
    own, first = tokenizer.eos_id, stemma.generate(model, tokenizer, "the", temperature=0)
    ids = tokenizer.encode(first)
    for text, wanted in (
        ("{}", {own}),
        ('{"eos_token_id": 3}', {own, 3}),
        (f'{{"eos_token_id": [{ids[0]}, 3]}}', {own, ids[0], 3}),
    ):
        place.write_text(text)
        loaded = api.load(tmp_path / "m")[0]
        assert api.end_ids(loaded, tokenizer) == wanted
    assert first and stemma.generate(loaded, tokenizer, "the", temperature=0) == ""
    for text in ('{"eos_token_id": "end"}', '{"eos_token_id": [1, true]}'):
        place.write_text(text)
        with pytest.raises(ModelError, match="generation_config.json: eos_token_id: expected"):
            api.end_ids(api.load(tmp_path / "m")[0], tokenizer)
    place.unlink()
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": [own, 3]}))
    assert api.end_ids(api.load(tmp_path / "m")[0], tokenizer) == {own, 3}


def test_generation_settings_are_saved_again(tmp_path, tokenizer):
    api.save(api.build("gpt2", **GPT2), tokenizer, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"temperature": 0.6}')
    api.save(api.load(tmp_path / "m")[0], tokenizer, tmp_path / "n")
    assert api.sampling(api.load(tmp_path / "n")[0]).temperature == 0.6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_more_rows_leave_the_scores_of_the_old_ones(family, tied):
    numbers = (LLAMA if family == "llama" else GPT2) | {"tied": tied}
    model = api.build(family, **numbers)
    initialise(model, seed=4, std=0.3, depth=2)
    size = model.config.vocab_size
    wider = api.with_vocabulary(model, size + 3)
    tokens = torch.arange(5)[None]
    with torch.inference_mode():
        old, new = model(tokens), wider(tokens)
    assert new.shape[-1] == wider.config.vocab_size == size + 3
    torch.testing.assert_close(new[..., :size], old, rtol=1e-5, atol=1e-5)
    mean = old.mean(-1, keepdim=True).expand(-1, -1, 3)  # a mean row scores the mean
    torch.testing.assert_close(new[..., size:], mean, rtol=1e-4, atol=1e-5)
    assert api.with_vocabulary(model, size) is model
    wider.embedding.weight.data.zero_()
    assert model.embedding.weight.abs().sum() > 0  # nothing is shared with the old model


def test_tokens_that_end_a_text_are_added_and_saved(tmp_path, tokenizer):
    model = api.build("llama", **LLAMA)
    api.end_with(model, [7, 3])
    api.end_with(model, [5])
    assert api.end_ids(model, tokenizer) == {tokenizer.eos_id, 3, 5, 7}
    api.end_with(model, [tokenizer.eos_id])
    api.save(model, tokenizer, tmp_path / "m")
    loaded, _ = api.load(tmp_path / "m")
    assert api.end_ids(loaded, tokenizer) == {tokenizer.eos_id, 3, 5, 7}
