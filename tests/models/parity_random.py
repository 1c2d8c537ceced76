"""Networks drawn at random within what each oracle allows: how the families are tested unforeseen.

One function a family draws numbers in the oracle's own words: depths, heads, groups, widths of
heads, windows, biases, ties, activations, schemes of angles. What comes out is measured like the
cases of docs/parity.md: see `docs/measure_parity.py --random`.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import torch

from tests.models import parity_encdec
from tests.models.oracles import (
    baichuan,
    bloom,
    chatglm2,
    gemma3,
    gpt1,
    gpt2,
    gpt3,
    llama,
    mistral,
    mixtral,
    neox,
    qwen,
    qwen2,
    qwen3,
)
from tests.models.oracles_encdec import bert, switch, t5, transformer

Numbers = dict[str, Any]
LONGEST = 40  # tokens that the oracles are made for
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


def divisor(r: Random, number: int) -> int:
    return r.choice([part for part in range(1, number + 1) if number % part == 0])


def flip(r: Random) -> bool:
    return r.random() < 0.5


def sizes(r: Random) -> Numbers:
    """What nearly all have, in Llama's words; heads of an even width."""
    heads = r.randint(1, 8)
    head_dim = 2 * r.randint(1, 8)
    return {
        "vocab_size": r.randint(20, 120),
        "hidden_size": heads * head_dim,
        "intermediate_size": r.randint(5, 90),
        "num_hidden_layers": r.randint(1, 4),
        "num_attention_heads": heads,
        "tie_word_embeddings": flip(r),
    }


def grouped(r: Random, *, own_width: bool = True) -> Numbers:
    """Sizes of a Llama's descendant: groups of heads, and heads of a width of their own."""
    found = {**sizes(r), "rms_norm_eps": epsilon(r)}
    found["num_key_value_heads"] = divisor(r, found["num_attention_heads"])
    if own_width and flip(r):
        found["head_dim"] = 2 * r.randint(1, 9)
    return found


def epsilon(r: Random) -> float:
    return 10.0 ** r.uniform(-6.5, -2.5)


def head_dim(numbers: Numbers) -> int:
    usual = numbers["hidden_size"] // numbers["num_attention_heads"]
    return int(numbers.get("head_dim", usual))


def angles(r: Random, dim: int, **more: Any) -> Numbers:
    """Rotary positions of one of five kinds, for `dim` features that turn."""
    kind = r.choice(["default", "linear", "dynamic", "yarn", "llama3"] if dim >= 4 else ["default"])
    found = {"rope_type": kind, "rope_theta": r.choice([50.0, 700.0, 1e4, 1e6]), **more}
    if kind != "default":
        found["factor"] = r.choice([1.0, 1.5, 4.0, 9.0])
    if kind in ("yarn", "llama3"):
        found["original_max_position_embeddings"] = r.randint(4, LONGEST - 1)
    if kind == "llama3":
        slow = r.uniform(0.2, 2.0)
        found |= {"low_freq_factor": slow, "high_freq_factor": slow + r.uniform(0.5, 4.0)}
    if kind == "yarn":
        found |= r.choice([{}, {"attention_factor": 1.2}, {"mscale": 1.0, "mscale_all_dim": 0.6}])
        found |= r.choice([{}, {"beta_fast": 4.0, "beta_slow": 0.5}, {"truncate": False}])
    return found


def turning(r: Random, numbers: Numbers) -> Numbers:
    return {**numbers, "rope_parameters": angles(r, head_dim(numbers))}


def kinds(r: Random, depth: int) -> list[str]:
    return [r.choice(["full_attention", "sliding_attention"]) for _ in range(depth)]


# Decoders


def draw_llama(r: Random) -> Any:
    biases = {"attention_bias": flip(r), "mlp_bias": flip(r)}
    return llama.llama(**turning(r, grouped(r)), **biases)


def draw_mistral(r: Random) -> Any:
    window = r.choice([None, r.randint(1, 16)])
    return mistral.mistral(**turning(r, grouped(r)), sliding_window=window)


def late_windows(r: Random, depth: int) -> Numbers:
    """Windows as Qwen 2 and 3 say them: none, from a block on, or block by block."""
    window = {"use_sliding_window": True, "sliding_window": r.randint(1, 16)}
    return r.choice(
        [
            {},
            {**window, "max_window_layers": r.randint(0, depth)},
            {**window, "layer_types": kinds(r, depth)},
        ]
    )


def draw_qwen2(r: Random) -> Any:
    numbers = turning(r, grouped(r, own_width=False))
    return qwen2.qwen2(**numbers, **late_windows(r, numbers["num_hidden_layers"]))


def draw_qwen3(r: Random) -> Any:
    numbers = grouped(r)
    numbers.setdefault("head_dim", 2 * r.randint(1, 9))
    numbers = turning(r, numbers)
    windows = late_windows(r, numbers["num_hidden_layers"])
    return qwen3.qwen3(**numbers, **windows, attention_bias=flip(r))


def draw_qwen(r: Random) -> Any:
    numbers = sizes(r)
    numbers["intermediate_size"] *= 2
    own = {"layer_norm_epsilon": epsilon(r), "rotary_emb_base": r.choice([70.0, 1e4])}
    # steps of the base need a second pair of features
    return qwen.qwen(**numbers, **own, use_dynamic_ntk=head_dim(numbers) > 2 and flip(r))


def draw_gemma3(r: Random) -> Any:
    numbers = {**grouped(r), "head_dim": 2 * r.randint(2, 9)}
    dim = numbers["head_dim"]
    near = {"rope_type": "default", "rope_theta": r.choice([70.0, 1e4])}
    far = angles(r, dim)
    far.pop("truncate", None)  # a key that the class does not read in these objects
    rope = {"full_attention": far, "sliding_attention": near}
    types = r.choice([{}, {"layer_types": kinds(r, numbers["num_hidden_layers"])}])
    return gemma3.gemma3(
        **numbers,
        **types,
        rope_parameters=rope,
        sliding_window=r.randint(1, 16),
        query_pre_attn_scalar=r.randint(2, 30),
        attention_bias=flip(r),
    )


def draw_chatglm2(r: Random) -> Any:
    numbers = {**grouped(r), "head_dim": 2 * r.randint(2, 10)}
    turned = 2 * r.randint(1, numbers["head_dim"] // 2)
    rope = angles(r, turned, partial_rotary_factor=(turned + 0.25) / numbers["head_dim"])
    rope["partial_rotary_factor"] = min(1.0, rope["partial_rotary_factor"])
    return chatglm2.chatglm2(**numbers, rope_parameters=rope, attention_bias=flip(r))


def draw_baichuan(r: Random) -> Any:
    numbers = {**sizes(r), "rms_norm_eps": epsilon(r)}
    second = r.choice([{}, {"z_loss_weight": 0}])
    second = second if not numbers["tie_word_embeddings"] else {}
    length = r.choice([baichuan.LENGTH, {"model_max_length": LONGEST}])
    return baichuan.baichuan(**numbers, **second, **length)


def draw_mixtral(r: Random) -> Any:
    numbers, experts = grouped(r), r.randint(1, 8)
    # transformers makes the tables of scaled angles from a width that must be given
    numbers["head_dim"] = head_dim(numbers)
    return mixtral.mixtral(
        **turning(r, numbers),
        num_local_experts=experts,
        num_experts_per_tok=r.randint(1, experts),
        sliding_window=r.choice([None, r.randint(1, 16)]),
    )


def draw_neox(r: Random) -> Any:
    numbers = sizes(r)
    dim = head_dim(numbers)
    turned = 2 * r.randint(1, dim // 2)
    rope = angles(r, turned)
    return neox.neox(
        rope=(min(1.0, (turned + 0.25) / dim), rope["rope_theta"]),
        scaling=rope,
        **numbers,
        layer_norm_eps=epsilon(r),
        use_parallel_residual=flip(r),
        attention_bias=flip(r),
        hidden_act=r.choice(ACTIVATIONS),
    )


def gpt_sizes(r: Random) -> Numbers:
    """Sizes in GPT-2's words; heads of any width."""
    heads = r.randint(1, 8)
    return {
        "vocab_size": r.randint(20, 120),
        "n_embd": heads * r.randint(1, 15),
        "n_head": heads,
        "n_layer": r.randint(1, 4),
        "layer_norm_epsilon": epsilon(r),
        "tie_word_embeddings": flip(r),
    }


def draw_gpt1(r: Random) -> Any:
    return gpt1.gpt1(**gpt_sizes(r), afn=r.choice(["gelu", "relu", "silu"]))


def draw_gpt2(r: Random) -> Any:
    return gpt2.gpt2(**gpt_sizes(r), n_inner=r.choice([None, r.randint(5, 90)]))


def draw_gpt3(r: Random) -> Any:
    heads, depth = r.randint(1, 8), r.randint(1, 4)
    turns = [[[r.choice(["global", "local"])], 1] for _ in range(depth)]
    return gpt3.gpt3(
        vocab_size=r.randint(20, 120),
        hidden_size=heads * r.randint(1, 15),
        num_heads=heads,
        num_layers=depth,
        attention_types=turns,
        window_size=r.randint(1, 16),
        intermediate_size=r.choice([None, r.randint(5, 90)]),
        layer_norm_epsilon=epsilon(r),
        activation_function=r.choice(ACTIVATIONS),
        tie_word_embeddings=flip(r),
    )


def draw_bloom(r: Random) -> Any:
    numbers = gpt_sizes(r)
    width = numbers.pop("n_embd")
    return bloom.bloom(**numbers, hidden_size=width)


# Encoder-decoders and encoders


def halves(r: Random) -> Numbers:
    """Sizes in T5's words; heads of a width that no other number follows from."""
    buckets = 2 * r.randint(2, 8)
    return {
        "vocab_size": r.randint(20, 90),
        "d_model": r.randint(5, 40),
        "d_kv": r.randint(1, 12),
        "d_ff": r.randint(5, 60),
        "num_layers": r.randint(1, 4),
        "num_decoder_layers": r.randint(1, 4),
        "num_heads": r.randint(1, 6),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": buckets + r.randint(1, 20),
        "layer_norm_epsilon": epsilon(r),
    }


def draw_t5(r: Random) -> Any:
    word = r.choice(["relu", "gelu", "gated-gelu", "gated-silu", "silu"])
    make = r.choice([t5.t5, t5.t5_with_own_head])
    tied = {} if make is t5.t5_with_own_head else {"tie_word_embeddings": flip(r)}
    return make(**halves(r), feed_forward_proj=word, **tied)


def draw_switch(r: Random) -> Any:
    numbers = halves(r)
    return switch.switch(
        **numbers,
        num_sparse_encoder_layers=r.randint(0, numbers["num_layers"]),
        num_sparse_decoder_layers=r.randint(0, numbers["num_decoder_layers"]),
        num_experts=r.randint(2, 8),
        expert_capacity=r.randint(1, 12),
        tie_word_embeddings=flip(r),
    )


def draw_transformer(r: Random) -> Any:
    width = 2 * r.randint(3, 24)
    shared = flip(r)
    return transformer.marian(
        vocab_size=(vocab_size := r.randint(20, 90)),
        share_encoder_decoder_embeddings=shared,
        decoder_vocab_size=vocab_size if shared else r.randint(20, 90),
        d_model=width,
        encoder_layers=r.randint(1, 4),
        encoder_attention_heads=divisor(r, width),
        encoder_ffn_dim=r.randint(5, 60),
        decoder_layers=r.randint(1, 4),
        decoder_attention_heads=divisor(r, width),
        decoder_ffn_dim=r.randint(5, 60),
        activation_function=r.choice(ACTIVATIONS),
        scale_embedding=flip(r),
        tie_word_embeddings=flip(r),
    )


def draw_bert(r: Random) -> Any:
    heads = r.randint(1, 8)
    kind = r.choice(
        "BertForPreTraining BertForMaskedLM BertModel BertForNextSentencePrediction "
        "BertForSequenceClassification".split()
    )
    return bert.bert(
        kind,
        vocab_size=r.randint(20, 90),
        hidden_size=heads * r.randint(2, 12),
        num_hidden_layers=r.randint(1, 4),
        num_attention_heads=heads,
        intermediate_size=r.randint(5, 60),
        type_vocab_size=r.randint(1, 4),
        hidden_act=r.choice(ACTIVATIONS),
        layer_norm_eps=epsilon(r),
        tie_word_embeddings=flip(r),
        num_labels=r.randint(1, 5),
    )


DRAWS: dict[str, Callable[[Random], Any]] = {
    name.removeprefix("draw_"): draw
    for name, draw in list(globals().items())
    if name.startswith("draw_")
}
PAIRED = ("bert", "switch", "t5", "transformer")  # those that `parity_encdec` measures


@torch.no_grad()
def raise_voice(theirs: Any, deviation: float) -> None:
    """Widen the head until logits deviate by more than one: quiet ones agree with anything."""
    wide = theirs.get_output_embeddings()
    if hasattr(theirs.config, "z_loss_weight"):  # rows of this head have length one
        wide = theirs.model["norm"]
    if deviation < 1.2:
        wide.weight.mul_(1.6 / deviation)


def in_double(pair: Any) -> Any:
    """Both networks in double precision; to be run inside `unrounded`."""
    ours, theirs = copy.deepcopy(pair.ours).double(), copy.deepcopy(pair.theirs).double()
    return replace(pair, ours=ours, theirs=parity_encdec.raised(theirs))


@contextmanager
def unrounded() -> Iterator[None]:
    """Inside, the oracles compute in double precision also what they always round to single."""
    tensor, softmax = torch.Tensor, torch.nn.functional.softmax
    to, single = tensor.to, tensor.float

    def stay(x: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        return (
            x if given == (torch.float32,) and x.dtype == torch.float64 else to(x, *given, **more)
        )

    def soft(x: torch.Tensor, *given: Any, dtype: Any = None, **more: Any) -> torch.Tensor:
        return softmax(x, *given, dtype=None if x.dtype == torch.float64 else dtype, **more)

    tensor.to = stay
    tensor.float = lambda x: x if x.dtype == torch.float64 else single(x)
    torch.nn.functional.softmax = soft
    try:
        yield
    finally:
        tensor.to, tensor.float, torch.nn.functional.softmax = to, single, softmax
