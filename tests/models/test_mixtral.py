"""Mixtral in double precision: against the paper's equations, and against itself.

What equals transformers is tested with all families, in `test_parity.py`.

Axes: B batch, T time, V vocabulary
"""

import copy
import json
import math
from dataclasses import dataclass

import pytest
import torch
import transformers
from pydantic import ValidationError

import stemma
from stemma.core.errors import ModelError
from stemma.interop.tables import tables
from stemma.models.mixtral import PRESETS, MixtralConfig, build
from stemma.nn.context import Context
from stemma.nn.stack import LanguageModel
from tests.models.oracles.mixtral import BASE, CASES
from tests.models.parity import pair_of, scatter

transformers.utils.logging.disable_progress_bar()
V, T = BASE["vocab_size"], 13
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass(frozen=True)
class Pair:
    ours: LanguageModel
    theirs: transformers.PreTrainedModel
    folder: object


# scaled angles have their equation in tests/nn/test_rope_scaling.py
PLAIN = [name for name in CASES if "yarn" not in name]


@pytest.fixture(params=PLAIN, ids=lambda name: name.replace(" ", "-"))
def pair(request):
    """Ours in double precision, as read from the folder that theirs wrote."""
    single = pair_of(request.param)
    return Pair(copy.deepcopy(single.ours).double(), single.theirs, single.folder)


def draw_tokens(rows=3, length=T):
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours, theirs, tolerance=1e-9):
    assert theirs.std() >= 1
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batch_equals_each_row_alone(pair, side):
    tokens_BT = draw_tokens()
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    real_BT[1, : T - 6] = False
    real_BT[2, : T - 9] = False
    real_BT = real_BT.flip(1) if side == "right" else real_BT
    found = pair.ours(tokens_BT, Context(padding_BT=real_BT))
    for row in range(3):
        alone = pair.ours(tokens_BT[row, real_BT[row]][None])[0]
        assert_close(found[row, real_BT[row]], alone)


@pytest.mark.parametrize("chunks", [(T,), (5, 3, 1, 1, 1, 1, 1), (1,) * T, (12, 1)], ids=str)
@torch.no_grad()
def test_cached_pass_equals_full_pass(pair, chunks):
    tokens_BT, cache = draw_tokens(), pair.ours.new_cache(T)
    parts = [pair.ours(part, Context(caches=cache)) for part in tokens_BT.split(chunks, dim=1)]
    assert_close(torch.cat(parts, dim=1), pair.ours(tokens_BT))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_ragged_cached_rows_equal_each_row_alone(pair, side):
    lengths, new = (9, 4, 1), 3
    tokens_BT = draw_tokens(length=9 + new)
    prompt_BT, real_BT = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(9 - length, 9) if side == "left" else slice(0, length)
        prompt_BT[row, place], real_BT[row, place] = tokens_BT[row, :length], True
    cache, start_B1 = pair.ours.new_cache(9 + new), torch.tensor(lengths)[:, None]
    pair.ours(prompt_BT, Context(caches=cache, padding_BT=real_BT))
    parts = [
        pair.ours(tokens_BT[:, 9 + n :][:, :1], Context(caches=cache, positions_BT=start_B1 + n))
        for n in range(new)
    ]
    for row, length in enumerate(lengths):
        alone_T = torch.cat((tokens_BT[row, :length], tokens_BT[row, 9:]))
        assert_close(torch.cat(parts, dim=1)[row], pair.ours(alone_T[None])[0, -new:])


@torch.no_grad()
def test_packed_documents_equal_documents_alone(pair):
    lengths = (4, 1, 8)
    tokens_BT = draw_tokens()
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    ids_T = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    context = Context(positions_BT=positions_T[None], document_ids_BT=ids_T[None].expand(3, -1))
    packed = pair.ours(tokens_BT, context).split(lengths, dim=1)
    for document_BT, found in zip(tokens_BT.split(lengths, dim=1), packed, strict=True):
        assert_close(found, pair.ours(document_BT))


@torch.no_grad()
def test_our_folder_opens_in_transformers_with_equal_tensors(pair, tmp_path):
    ours, _ = stemma.load(pair.folder)
    stemma.save(ours, None, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **EAGER).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(pair.folder, **EAGER).eval()
    assert type(again) is type(pair.theirs)
    read, written = again.config.to_dict(), pair.theirs.config.to_dict()
    said = {key for key in written if written[key] is not None} - {"_name_or_path"}
    assert {key: read[key] for key in said} == {key: written[key] for key in said}
    assert ours.config.balance_loss == written["router_aux_loss_coef"] == 0.03
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert torch.equal(again(draw_tokens()).logits, theirs(draw_tokens()).logits)
    back = stemma.load(tmp_path / "ours")[0]
    assert back.config == ours.config
    for name, value in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_a_missing_expert_is_named(pair, tmp_path):
    config = pair.ours.config
    more = MixtralConfig(**{**config.model_dump(), "num_experts": config.num_experts + 1})
    stemma.save(pair.ours.float(), None, tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    text = path.read_text()
    said = f'"num_local_experts": {config.num_experts}'
    assert said in text
    path.write_text(text.replace(said, f'"num_local_experts": {more.num_experts}'))
    with pytest.raises(ModelError, match=f"experts.{config.num_experts}"):
        stemma.load(tmp_path / "ours")
    path.write_text(text.replace(said, '"num_local_experts": 1000000000'))
    with pytest.raises(ModelError, match="1000000000 experts"):
        stemma.load(tmp_path / "ours")


# The equations once more, in plain double precision, without a line of the package.


def normalise(x_TC, weight_C, eps):
    return x_TC / (x_TC.square().mean(-1, keepdim=True) + eps).sqrt() * weight_C


def rotate(x_TD, base):
    """arXiv:2104.09864, equation 34: pair (i, i + D/2) turns by position * base^(-2i/D)."""
    half = x_TD.shape[-1] // 2
    angle = torch.outer(
        torch.arange(len(x_TD)).double(), base ** (-torch.arange(half).double() / half)
    )
    a, b = x_TD[:, :half], x_TD[:, half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


def attend(w, x_TC, c):
    dim, mixed, place = c.head_dim, [], torch.arange(len(x_TC))
    away = place[:, None] - place[None]
    hidden = (away < 0) | (away >= (c.window or len(x_TC)))
    for head in range(c.num_heads):
        rows, group = (
            slice(n * dim, (n + 1) * dim) for n in (head, head * c.num_kv_heads // c.num_heads)
        )
        query = rotate(x_TC @ w["attention.query.weight"][rows].T, c.rope_base)
        key = rotate(x_TC @ w["attention.key.weight"][group].T, c.rope_base)
        scores = (query @ key.T / math.sqrt(dim)).masked_fill(hidden, -math.inf)
        mixed.append(scores.softmax(-1) @ (x_TC @ w["attention.value.weight"][group].T))
    return torch.cat(mixed, -1) @ w["attention.output.weight"].T


def mixture(w, x_TC, c):
    """arXiv:2401.04088, section 2.1: sum over i of Softmax(TopK(x W))_i SwiGLU_i(x)."""
    answers = []
    for x in x_TC:
        scores = w["moe.router.weight"] @ x
        chosen = sorted(range(c.num_experts), key=lambda e: -scores[e].item())[: c.top_k]
        total = sum(math.exp(scores[e]) for e in chosen)
        answer = torch.zeros_like(x)
        for e in chosen:
            gate, up = w["moe.experts.gate"][e] @ x, w["moe.experts.up"][e] @ x
            inner = gate / (1 + (-gate).exp()) * up
            answer += math.exp(scores[e]) / total * (w["moe.experts.down"][e] @ inner)
        answers.append(answer)
    return torch.stack(answers)


def reference(state, c, tokens_T):
    x_TC = state["embedding.weight"][tokens_T]
    for index in range(c.depth):
        prefix = f"blocks.{index}."
        w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        x_TC = x_TC + attend(w, normalise(x_TC, w["attention_norm.weight"], c.norm_eps), c)
        x_TC = x_TC + mixture(w, normalise(x_TC, w["moe_norm.weight"], c.norm_eps), c)
    x_TC = normalise(x_TC, state["norm.weight"], c.norm_eps)
    return x_TC @ state.get("head.weight", state["embedding.weight"]).T


@torch.no_grad()
def test_logits_equal_the_equations(pair):
    tokens_T, config = draw_tokens(rows=1)[0], pair.ours.config
    expected = reference(pair.ours.state_dict(), config, tokens_T)
    found = pair.ours(tokens_T[None])[0]
    # rotary angles are computed in fp32
    assert_close(found, expected, 2e-5)
    for change in ({"rope_base": 4_000.0}, {"norm_eps": 0.1}, {"top_k": config.top_k % 3 + 1}):
        with pytest.raises(AssertionError):
            assert_close(
                found,
                reference(pair.ours.state_dict(), config.model_copy(update=change), tokens_T),
                2e-5,
            )


def test_losses_come_back_by_layer_in_training_alone():
    config = MixtralConfig(
        width=24, depth=2, num_heads=2, hidden=10, num_experts=4, vocab_size=V, z_loss=0.001
    )
    model, tokens_BT = scatter(build(config)), draw_tokens()
    assert model.hidden(tokens_BT)[1] == {}
    losses = model.train().hidden(tokens_BT)[1]
    assert sorted(losses) == ["0.moe.balance", "0.moe.z", "1.moe.balance", "1.moe.z"]
    assert all(0.9 * 0.02 < losses[f"{n}.moe.balance"] < 4 * 0.02 for n in (0, 1))


def test_dropout_is_in_both_sublayers_and_rests_in_evaluation():
    config = MixtralConfig(width=24, depth=1, num_heads=2, hidden=10, vocab_size=V, dropout=0.5)
    model = scatter(build(config))
    plain = scatter(build(config.model_copy(update={"dropout": 0.0})))
    tokens_BT = draw_tokens()
    assert torch.equal(model(tokens_BT), plain(tokens_BT))
    for name in ("attention", "moe"):
        sublayer, kept = getattr(model.train().blocks[0], name), []
        hook = sublayer.register_forward_hook(lambda m, i, out, kept=kept: kept.append(out[0]))
        model(tokens_BT)
        hook.remove()
        assert 0.4 < (kept[0] == 0).double().mean() < 0.6, name


def test_a_config_that_says_little_has_the_defaults_of_transformers():
    said = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 8}
    said |= {"intermediate_size": 6, "vocab_size": V, "model_type": "mixtral"}
    theirs = transformers.MixtralConfig(**said)
    found = MixtralConfig(**tables()["mixtral"].config_from_foreign(said))
    full = json.loads(theirs.to_json_string(use_diff=False))
    assert found == MixtralConfig(**tables()["mixtral"].config_from_foreign(full))
    assert (found.num_experts, found.top_k, found.num_kv_heads, found.head_dim) == (8, 2, 8, 2)
    assert (found.rope_base, found.balance_loss, found.context) == (1e6, 0.001, 131_072)


def test_training_noise_of_the_file_is_said_to_be_left_out(pair, caplog):
    foreign = json.loads((pair.folder / "config.json").read_text())
    tables()["mixtral"].config_from_foreign(foreign)
    assert not caplog.text
    tables()["mixtral"].config_from_foreign({**foreign, "router_jitter_noise": 0.01})
    assert "router_jitter_noise is not used" in caplog.text


def test_the_weights_of_both_losses_survive_the_folder(tmp_path):
    numbers = {"balance_loss": 0.125, "z_loss": 0.5, "dropout": 0.25, "initial_std": 0.5}
    config = MixtralConfig(width=8, depth=1, num_heads=2, hidden=4, vocab_size=V, **numbers)
    stemma.save(scatter(build(config)), None, tmp_path / "ours")
    assert stemma.load(tmp_path / "ours")[0].config == config


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    """arXiv:2401.04088, section 1: 47 billion parameters, of which a token uses 13."""
    with torch.device("meta"):
        model = build(MixtralConfig(**PRESETS["mixtral-8x7b"]))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert round(sum(sizes.values()) / 1e9, 1) == 46.7
    assert round((sum(sizes.values()) - experts * 6 / 8) / 1e9, 1) == 12.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 9}, r"top_k \(9\) must be at most num_experts \(8\)"),
        ({"num_kv_heads": 4}, r"num_heads \(6\) must be a multiple of num_kv_heads \(4\)"),
        ({"num_heads": 5}, r"width \(36\) must be a multiple of num_heads \(5\)"),
        ({"num_heads": 12}, r"width / num_heads \(3\) must be a multiple of 2"),
        ({"head_dim": 5}, r"\(5\) must be a multiple of 2"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_both(change, words):
    with pytest.raises(ValidationError, match=words):
        MixtralConfig(
            **{"width": 36, "depth": 1, "num_heads": 6, "hidden": 8, "vocab_size": V, **change}
        )
