"""Folders of encoder-decoders in the forms that old and new versions of transformers write.

What a form says is compared with what transformers makes of the same folder.
"""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import stemma
from stemma.core.errors import ModelError
from tests.models.parity_encdec import LIMIT, ask, close, draw_source, draw_target, pair_of

WORDS = {"t5": "shared.weight", "switch": "shared.weight", "transformer": "model.shared.weight"}
HALVES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
PARENT = {"transformer": "model."}


def saved(case, folder):
    pair_of(case).theirs.save_pretrained(folder)
    return folder


def change(folder, *, config=(), tensors=None):
    """Keys of config.json (None takes one out), and tensors, changed in a folder."""
    place = folder / "config.json"
    changed = dict(config)
    said = {**json.loads(place.read_text()), **changed}
    gone = {key for key, value in changed.items() if value is None}
    place.write_text(json.dumps({key: said[key] for key in said.keys() - gone}))
    if tensors is not None:
        held = load_file(folder / "model.safetensors")
        tensors(held)
        held = {name: value.clone() for name, value in held.items()}
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def agree(case, folder):
    """Our reading of a folder and transformers' own give equal logits; ours comes back."""
    theirs = type(pair_of(case).theirs).from_pretrained(folder, attn_implementation="eager").eval()
    ours = stemma.load(folder)[0]
    pair = type(pair_of(case))(ours, theirs, folder)
    source_BS, target_BT = draw_source(pair), draw_target(pair)
    assert close(ours(source_BS, target_BT), ask(pair, source_BS, target_BT)) <= LIMIT
    return ours


def same(ours, other):
    for name, value in ours.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("case", ["transformer 2017", "t5", "switch"])
@pytest.mark.parametrize("kept", [True, False], ids=["with the original", "without it"])
def test_an_embedding_under_four_names_is_one(case, kept, tmp_path):
    family = case.split()[0]
    words, parent = WORDS[family], PARENT.get(family, "")

    def copied(held):
        for name in (*(parent + half for half in HALVES), "lm_head.weight"):
            held[name] = held[words].clone()
        if not kept:
            del held[words]

    change(saved(case, tmp_path), tensors=copied)
    same(stemma.load(tmp_path)[0], pair_of(case).ours)


def test_a_copy_of_the_embedding_that_differs_is_refused(tmp_path):
    def other(held):
        held[HALVES[0]] = held["shared.weight"] + 1

    change(saved("t5", tmp_path), tensors=other)
    with pytest.raises(ModelError, match="encoder.embed_tokens.weight differs from shared.weight"):
        stemma.load(tmp_path)


def own_head(held):
    generator = torch.Generator().manual_seed(5)
    held["lm_head.weight"] = torch.randn(held["shared.weight"].shape, generator=generator)


@pytest.mark.parametrize(
    "said",
    [
        {"tie_word_embeddings": False, "scale_decoder_outputs": None},
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        {"tie_word_embeddings": False, "scale_decoder_outputs": False},
    ],
    ids=["transformers 4", "transformers 5", "both"],
)
def test_a_head_of_its_own_does_not_scale(said, tmp_path):
    change(saved("t5 gated", tmp_path), config=said, tensors=own_head)
    ours = agree("t5 gated", tmp_path)
    assert (ours.config.tied, ours.config.scaled_head) == (False, False)
    stemma.save(ours, None, tmp_path / "ours")
    same(agree("t5 gated", tmp_path / "ours"), ours)


@pytest.mark.parametrize("scales", [True, None], ids=["new", "old"])
def test_a_tied_head_scales(scales, tmp_path):
    change(saved("t5", tmp_path), config={"scale_decoder_outputs": scales})
    assert agree("t5", tmp_path).config.scaled_head


def test_an_old_table_for_cross_attention_and_old_keys_are_let_pass(tmp_path):
    def table(held):
        own = held["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        held[name] = own + 1

    said = {"n_positions": 77, "output_past": True, "num_decoder_layers": None}
    said |= {"dense_act_fn": None, "is_gated_act": None}
    change(saved("t5", tmp_path), config=said, tensors=table)
    assert agree("t5", tmp_path).config.context == 77


def no_bias(held):
    del held["final_logits_bias"]


def test_marian_without_its_bias_has_none(tmp_path):
    change(saved("transformer 2017", tmp_path), tensors=no_bias)
    ours = agree("transformer 2017", tmp_path)
    assert not ours.config.head_bias
    stemma.save(ours, None, tmp_path / "ours")
    assert agree("transformer 2017", tmp_path / "ours").config == ours.config


def test_tables_of_sines_in_old_files_are_let_pass(tmp_path):
    def sines(held):
        for half in ("encoder", "decoder"):
            held[f"model.{half}.embed_positions.weight"] = torch.zeros(40, 36)

    change(saved("transformer 2017", tmp_path), tensors=sines)
    same(stemma.load(tmp_path)[0], pair_of("transformer 2017").ours)


@torch.no_grad()
def test_transformers_4_shared_embeddings_also_where_the_head_was_its_own(tmp_path):
    """There the embeddings of both halves were one object, so the file holds it once."""

    def once(held):
        for half in HALVES:
            del held[f"model.{half}"]

    change(saved("transformer untied", tmp_path), tensors=once)
    ours = stemma.load(tmp_path)[0]
    assert ours.config.source_vocab_size is None and not ours.config.tied
    held = load_file(tmp_path / "model.safetensors")
    assert torch.equal(ours.embedding.weight, held["model.shared.weight"])
    assert torch.equal(ours.head.weight, held["lm_head.weight"])
    stemma.save(ours, None, tmp_path / "ours")  # no form of transformers 5: ours
    same(stemma.load(tmp_path / "ours")[0], ours)


OWN_FORM = {
    "pre": ("transformer", {"norms": "pre", "interleaved": False}),
    "dual": ("transformer", {"norms": "dual", "interleaved": False}),
    "interleaved": ("transformer", {}),
    "other epsilon": ("transformer", {"interleaved": False, "norm_eps": 1e-3}),
    "scaled head of its own": ("t5", {"tied": False}),
    "share of a load": ("switch", {"num_experts": 3}),
    "no capacity": ("switch", {"num_experts": 3, "capacity_factor": None, "sparse_step": 1}),
    "shared but not tied": ("switch", {"num_experts": 3, "expert_capacity": 2, "tied": False}),
}
SMALL = {"width": 12, "depth": 2, "num_heads": 3, "hidden": 17, "vocab_size": 31}


@pytest.mark.parametrize("case", OWN_FORM)
def test_what_no_class_computes_is_written_in_our_own_form(case, tmp_path):
    family, numbers = OWN_FORM[case]
    model = stemma.build(family, **{**SMALL, **numbers})
    stemma.save(model, None, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "stemma"
    again = stemma.load(tmp_path / "m")[0]
    assert again.config == model.config
    same(again, model)


@pytest.mark.parametrize(
    "case, config, what",
    [
        ("transformer 2017", {"decoder_vocab_size": 5}, "decoder_vocab_size is 5, but vocab_size"),
        ("transformer 2017", {"normalize_before": True}, "normalize_before: True is not supported"),
        ("transformer 2017", {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        (
            "transformer 2017",
            {"num_hidden_layers": 9},
            "num_hidden_layers is 9, but encoder_layers",
        ),
        ("transformer 2017", {"d_model": None}, "d_model: the key is missing"),
        (
            "transformer 2017",
            {"d_model": 35},
            r"d_model \(35\) must be a multiple of decoder_attention_heads \(3\)",
        ),
        ("transformer 2017", {"encoder_layers": 1}, "unused model.encoder.layers.1."),
        ("transformer 2017", {"encoder_layers": 10**9}, "config.json says 1000000000 blocks"),
        ("transformer 2017", {"encoder_ffn_dim": 51}, "check encoder_ffn_dim in config.json"),
        ("transformer 2017", {"architectures": ["MarianModel"]}, "wanted 'MarianMTModel'"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "does not go with dense_act_fn 'relu'"),
        ("t5", {"feed_forward_proj": "twice-relu"}, "not a function's name after 'gated-'"),
        ("t5", {"is_decoder": True}, "is_decoder: True is not supported"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder: False is not supported"),
        ("t5", {"relative_attention_num_buckets": 3}, "greater than or equal to 4"),
        ("t5", {"relative_attention_max_distance": 4}, r"farthest distance \(4\) must be above"),
        ("t5", {"d_kv": 8}, "shape .21, 30., wanted .24, 30."),
        ("t5", {"num_decoder_layers": 3}, "missing decoder.block.2.layer"),
        ("switch", {"router_bias": True}, "router_bias: True is not supported"),
        ("switch", {"router_dtype": "bfloat16"}, "router_dtype: 'bfloat16' is not supported"),
        ("switch", {"encoder_sparse_step": 3}, "does not fit SwitchTransformersForConditional"),
        ("switch", {"num_experts": 4}, "missing .*expert_3"),
        ("switch", {"num_experts": 10**9}, "of 1000000000 experts"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_with_its_name(case, config, what, tmp_path):
    change(saved(case, tmp_path), config=config)
    with pytest.raises(ModelError, match=what) as caught:
        stemma.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "depth, sparse, step",
    [((4, 2), (2, 1), (2, 2)), ((3, 3), (0, 5), (3, 0)), ((2, 3), (2, 3), (1, 1))],
    ids=str,
)
def test_steps_follow_from_the_number_of_sparse_blocks(depth, sparse, step, tmp_path):
    """Files need not have the step; transformers takes depth // number, the depth where it is 0."""
    numbers = {"num_layers": depth[0], "num_decoder_layers": depth[1], "d_model": 12, "d_kv": 4,
               "d_ff": 9, "num_heads": 2, "vocab_size": 61, "num_experts": 3, "pad_token_id": None,
               "num_sparse_encoder_layers": sparse[0], "eos_token_id": None,
               "num_sparse_decoder_layers": sparse[1], "decoder_start_token_id": 0}  # fmt: skip
    config = transformers.SwitchTransformersConfig(**numbers)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    change(tmp_path, config={"encoder_sparse_step": None, "decoder_sparse_step": None})
    ours = agree("switch", tmp_path).config
    assert (ours.encoder_sparse_step, ours.sparse_step) == step


@pytest.mark.parametrize("case", ["transformer two vocabularies", "t5 1.1", "switch", "bert pairs"])
def test_facts_are_told_from_headers(case):
    pair = pair_of(case)
    facts = stemma.api.info(pair.folder)
    assert facts["parameters"] == sum(p.numel() for p in pair.ours.parameters())
    assert facts["family"] == case.split()[0]


@pytest.mark.parametrize("case", ["transformer uneven halves", "t5 uneven depths", "switch untied"])
def test_shards_load_like_one_file(case, tmp_path):
    pair = pair_of(case)
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same(stemma.load(tmp_path)[0], pair.ours)
