"""The names and the order of tensors that Hugging Face gave Llama, and most families since.

A family's table says its own layers with these, and which of them have a bias; norms that it has
more, or layers that it stores fused, are its own entries of `layer`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stemma.interop.tables import Entry, Keys, pick

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
IGNORED = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # written before transformers 4.32

Layer = Mapping[str, tuple[str, str]]  # theirs: (ours, the config key of each axis)
ATTENTION: Layer = {
    "self_attn.q_proj": ("attention.query", "num_attention_heads*head_dim hidden_size"),
    "self_attn.k_proj": ("attention.key", "num_key_value_heads*head_dim hidden_size"),
    "self_attn.v_proj": ("attention.value", "num_key_value_heads*head_dim hidden_size"),
    "self_attn.o_proj": ("attention.output", "hidden_size num_attention_heads*head_dim"),
}
MLP: Layer = {
    "mlp.gate_proj": ("mlp.gate", "intermediate_size hidden_size"),
    "mlp.up_proj": ("mlp.up", "intermediate_size hidden_size"),
    "mlp.down_proj": ("mlp.down", "hidden_size intermediate_size"),
}
LLAMA: Layer = {
    "input_layernorm": ("attention_norm", "hidden_size"),
    **ATTENTION,
    "post_attention_layernorm": ("mlp_norm", "hidden_size"),
    **MLP,
}


def none(name: str) -> bool:
    """No layer has a bias."""
    return False


def entries_of(
    config: Any, layer: Layer, *, biased: Callable[[str], bool] = none
) -> Iterator[Entry]:
    """Every tensor of a file, in the order of the network; `biased` is asked each foreign name.

    Several of ours that the file holds as one stand side by side: "mlp.gate mlp.up".
    """
    yield Entry(EMBEDDING, ("embedding.weight",), ("vocab_size", "hidden_size"))
    for index in range(config.depth):
        for name, (parts, words) in layer.items():
            theirs, keys = f"model.layers.{index}.{name}", tuple(words.split())
            ours = tuple(f"blocks.{index}.{part}" for part in parts.split())
            yield Entry(f"{theirs}.weight", tuple(f"{part}.weight" for part in ours), keys)
            if biased(name):
                yield Entry(f"{theirs}.bias", tuple(f"{part}.bias" for part in ours), keys[:1])
    yield Entry("model.norm.weight", ("norm.weight",), ("hidden_size",))
    if not config.tied:
        yield Entry(HEAD, ("head.weight",), ("vocab_size", "hidden_size"))


def pick_heads(foreign: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Numbers by their keys, where null means the usual: heads of their own, of the usual width."""
    numbers = pick(foreign, keys)
    if numbers["num_kv_heads"] is None:
        numbers["num_kv_heads"] = numbers["num_heads"]
    if numbers["head_dim"] is None:
        del numbers["head_dim"]
    return numbers
