"""Our families against transformers' and against the papers' equations.

All weights are drawn wide (norms 1 +- 0.3, biases N(0, 0.3), matrices N(0, 0.15)), because the
usual small initialisation makes many mistakes invisible: logits near zero agree with anything.

Axes: B batch, T time, V vocabulary, H heads, G key-value heads, D width of one head, C width
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers

import stemma
from stemma.interop.tables import tables
from stemma.nn.context import Context
from stemma.nn.stack import LanguageModel

transformers.utils.logging.disable_progress_bar()
V, T, DEPTH = 97, 13, 2
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA = {
    "vocab_size": V,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
    "rms_norm_eps": 3e-5,
    "attn_implementation": "eager",
    **NO_IDS,
}
GPT2 = {
    "vocab_size": V,
    "n_embd": 48,
    "n_head": 6,
    "n_layer": DEPTH,
    "n_positions": 40,
    "n_inner": 72,
    "layer_norm_epsilon": 3e-5,
    "attn_implementation": "eager",
    **NO_IDS,
}


def llama(**changed):
    rope = {"rope_type": "default", "rope_theta": 5_000.0}
    config = transformers.LlamaConfig(**{**LLAMA, "rope_parameters": rope, **changed})
    return transformers.LlamaForCausalLM(config)


def gpt2(**changed):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **changed}))


CASES = {
    "llama multi-head": lambda: llama(num_key_value_heads=6),
    "llama grouped": lambda: llama(num_key_value_heads=2),
    "llama grouped tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama multi-query": lambda: llama(num_key_value_heads=1),
    "gpt2": gpt2,
    "gpt2 untied": lambda: gpt2(tie_word_embeddings=False),
}


@torch.no_grad()
def scatter(model):
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        else:
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 0.15 * noise)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    ours: LanguageModel
    theirs: transformers.PreTrainedModel
    folder: object


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs = scatter(CASES[request.param]())
    theirs.save_pretrained(folder)
    return Pair(stemma.load(folder)[0], theirs, folder)


def draw_tokens(rows=3, length=T):
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours, theirs):
    """Within 1e-4 of the largest logit, which must not be small."""
    assert theirs.std() >= 1
    assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, theirs.abs().max().item())


@torch.no_grad()
def test_logits_equal_transformers(pair):
    tokens_BT = draw_tokens()
    assert_close(pair.ours(tokens_BT), pair.theirs(tokens_BT).logits)


def test_gradients_equal_transformers(pair):
    tokens_BT = draw_tokens()
    weight_BTV = torch.randn(*tokens_BT.shape, V)
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    (pair.ours(tokens_BT) * weight_BTV).sum().backward()
    (pair.theirs(tokens_BT).logits * weight_BTV).sum().backward()
    ours = {name: parameter.grad for name, parameter in pair.ours.named_parameters()}
    theirs = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    shapes = {name: tuple(gradient.shape) for name, gradient in ours.items()}
    seen = set()
    for entry in tables()[pair.ours.config.family].entries(pair.ours.config):
        for name, expected in entry.read(theirs.pop(entry.theirs), shapes).items():
            # a key's bias moves all scores of a query alike, so its true gradient is zero
            zero = name.endswith("key.bias")
            scale = ours[name.replace("key", "query")].norm() if zero else expected.norm()
            assert (ours[name] - expected).norm() <= 1e-4 * scale, name
            assert zero or expected.norm() > 0, name
            seen.add(name)
    assert seen == ours.keys() and not theirs  # every gradient on both sides was compared


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batch_equals_transformers(pair, side):
    tokens_BT = draw_tokens()
    real_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    real_BT[1, : T - 6] = False
    real_BT[2, : T - 9] = False
    if side == "right":
        real_BT = real_BT.flip(1)
    positions_BT = (real_BT.long().cumsum(1) - 1).clamp(min=0)
    expected = pair.theirs(
        tokens_BT, attention_mask=real_BT.long(), position_ids=positions_BT
    ).logits
    found = pair.ours(tokens_BT, Context(padding_BT=real_BT))
    assert_close(found[real_BT], expected[real_BT])


@pytest.mark.parametrize(
    "chunks", [(T,), (5, 3, 1, 1, 1, 1, 1), (1,) * T, (12, 1), (1, 12)], ids=str
)
@torch.no_grad()
def test_cached_pass_equals_full_pass(pair, chunks):
    tokens_BT = draw_tokens()
    cache = pair.ours.new_cache(T)
    parts = [pair.ours(part, Context(caches=cache)) for part in tokens_BT.split(chunks, dim=1)]
    assert_close(torch.cat(parts, dim=1), pair.ours(tokens_BT))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_ragged_cached_pass_equals_each_row_alone(pair, side):
    lengths, new = (9, 4, 1), 4
    tokens_BT = draw_tokens(length=9 + new)
    alone = [
        pair.ours(torch.cat((row[:length], row[9:]))[None])[0, -new:]
        for row, length in zip(tokens_BT, lengths, strict=True)
    ]
    prompt_BT, real_BT = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(9 - length, 9) if side == "left" else slice(0, length)
        prompt_BT[row, place], real_BT[row, place] = tokens_BT[row, :length], True
    cache, start_B1 = pair.ours.new_cache(9 + new), torch.tensor(lengths)[:, None]
    pair.ours(prompt_BT, Context(caches=cache, padding_BT=real_BT))
    parts = []
    for first, count in ((0, 1), (1, 2), (3, 1)):
        positions_BT = start_B1 + torch.arange(first, first + count)
        part_BT = tokens_BT[:, 9 + first : 9 + first + count]
        parts.append(pair.ours(part_BT, Context(caches=cache, positions_BT=positions_BT)))
    assert_close(torch.cat(parts, dim=1), torch.stack(alone))


@torch.no_grad()
def test_our_folder_opens_in_transformers_with_equal_logits(pair, tmp_path):
    stemma.save(pair.ours, None, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    tokens_BT = draw_tokens()
    assert type(again) is type(pair.theirs)
    assert torch.equal(again(tokens_BT).logits, pair.theirs(tokens_BT).logits)
    for name, value in pair.theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@torch.no_grad()
def test_sharded_folder_loads_like_one_file(pair, tmp_path):
    pair.theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    sharded = stemma.load(tmp_path)[0].state_dict()
    for name, value in pair.ours.state_dict().items():
        assert torch.equal(sharded[name], value), name


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["gpt2", "llama grouped"])
@torch.no_grad()
def test_half_precision_folder_loads_its_exact_values(case, half, tmp_path):
    scatter(CASES[case]()).to(getattr(torch, half)).save_pretrained(tmp_path)
    exact = stemma.load(tmp_path)[0].state_dict()
    kept = stemma.load(tmp_path, dtype=half)[0].state_dict()
    for name, value in exact.items():
        assert value.dtype == torch.float32 and kept[name].dtype == getattr(torch, half)
        assert torch.equal(kept[name].float(), value), name


# The equations once more, in plain double precision, without a line of the package.


def normalise(x_TC, weight_C, eps, bias_C=None):
    if bias_C is not None:  # arXiv:1607.06450, equation 4
        x_TC = x_TC - x_TC.mean(-1, keepdim=True)
    scaled_TC = x_TC / (x_TC.square().mean(-1, keepdim=True) + eps).sqrt() * weight_C
    return scaled_TC if bias_C is None else scaled_TC + bias_C


def rotate(x_TD, base):
    """arXiv:2104.09864, equation 34: pair (i, i + D/2) turns by position * base^(-2i/D)."""
    half = x_TD.shape[-1] // 2
    turned_TD = torch.empty_like(x_TD)
    for position in range(len(x_TD)):
        for i in range(half):
            angle = position * base ** (-2 * i / (2 * half))
            a, b = x_TD[position, i], x_TD[position, i + half]
            turned_TD[position, i] = a * math.cos(angle) - b * math.sin(angle)
            turned_TD[position, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned_TD


def attend(w, x_TC, config, turn):
    """arXiv:1706.03762, equation 1, head by head, a query seeing itself and what is before it."""
    heads, dim = config.num_heads, config.width // config.num_heads
    share = heads // getattr(config, "num_kv_heads", heads)

    def project(name, head):
        rows = slice(head * dim, (head + 1) * dim)
        y_TD = x_TC @ w[f"attention.{name}.weight"][rows].T
        return y_TD + w[f"attention.{name}.bias"][rows] if f"attention.{name}.bias" in w else y_TD

    mixed = []
    for head in range(heads):
        query_TD, key_TD = turn(project("query", head)), turn(project("key", head // share))
        scores_TT = query_TD @ key_TD.T / math.sqrt(dim)
        hidden_TT = torch.ones_like(scores_TT).triu(1).bool()
        scores_TT[hidden_TT] = -math.inf
        weight_TT = scores_TT.exp() / scores_TT.exp().sum(-1, keepdim=True)
        mixed.append(weight_TT @ project("value", head // share))
    return torch.cat(mixed, -1) @ w["attention.output.weight"].T + w.get("attention.output.bias", 0)


def llama_mlp(w, x_TC):
    """arXiv:2002.05202, equation 6, with SiLU."""
    gate = x_TC @ w["mlp.gate.weight"].T
    return (gate / (1 + (-gate).exp()) * (x_TC @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T


def gpt2_mlp(w, x_TC):
    """arXiv:1606.08415, section 2: the tanh approximation of GELU."""
    h = x_TC @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    return h @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def reference(state, config, tokens_T):
    llama_like, eps = "position.weight" not in state, config.norm_eps
    x_TC = state["embedding.weight"][tokens_T]
    if not llama_like:
        x_TC = x_TC + state["position.weight"][: len(tokens_T)]
    for index in range(config.depth):
        prefix = f"blocks.{index}."
        w = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        turn = (lambda y_TD: rotate(y_TD, config.rope_base)) if llama_like else (lambda y_TD: y_TD)
        normed = normalise(x_TC, w["attention_norm.weight"], eps, w.get("attention_norm.bias"))
        x_TC = x_TC + attend(w, normed, config, turn)
        normed = normalise(x_TC, w["mlp_norm.weight"], eps, w.get("mlp_norm.bias"))
        x_TC = x_TC + (llama_mlp if llama_like else gpt2_mlp)(w, normed)
    x_TC = normalise(x_TC, state["norm.weight"], eps, state.get("norm.bias"))
    return x_TC @ state.get("head.weight", state["embedding.weight"]).T


@torch.no_grad()
def test_logits_equal_the_equations(pair):
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T = draw_tokens(rows=1)[0]
    assert_close(pair.ours(tokens_T[None])[0], reference(state, pair.ours.config, tokens_T))


def test_the_reference_knows_a_wrong_network(pair):
    """The comparison itself can fail: any one number of the config, changed, is seen."""
    state = {name: value.double() for name, value in pair.ours.state_dict().items()}
    tokens_T, right = draw_tokens(rows=1)[0], pair.ours.config.model_dump()
    wrong = [{"norm_eps": 0.1}, {"num_heads": 3}]
    if pair.ours.config.family == "llama":
        wrong = [{"norm_eps": 0.1}, {"rope_base": 4_000.0}]
    for change in wrong:
        other = reference(state, SimpleNamespace(**{**right, **change}), tokens_T)
        with pytest.raises(AssertionError):
            assert_close(pair.ours(tokens_T[None])[0].detach(), other)
