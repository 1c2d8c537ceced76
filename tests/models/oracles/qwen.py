"""Qwen, which transformers does not have, built from the Qwen 2 that it has.

The module below has the tensors of Qwen under their published names. Its forward pass is that of
`Qwen2ForCausalLM` with as many key-value heads as query heads; what differs beyond the trained
context is not reached by texts this short.
"""

import transformers
from torch import nn
from torch.func import functional_call
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

BASE = {
    "vocab_size": 83,
    "hidden_size": 42,
    "intermediate_size": 106,  # both inner matrices, 53 rows each
    "num_hidden_layers": 2,
    "num_attention_heads": 7,
    "seq_length": 40,
    "max_position_embeddings": 40,
    "layer_norm_epsilon": 3e-5,
    "rotary_emb_base": 700.0,
    "tie_word_embeddings": False,
    "no_bias": True,
    "use_logn_attn": False,
    "use_dynamic_ntk": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CODE = {
    "AutoConfig": "configuration_qwen.QWenConfig",
    "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
}
NAMES = {  # ours of the published form: those of Qwen 2
    "transformer.wte": "model.embed_tokens",
    "transformer.h.": "model.layers.",
    "transformer.ln_f": "model.norm",
    ".ln_1.": ".input_layernorm.",
    ".ln_2.": ".post_attention_layernorm.",
    ".attn.c_proj": ".self_attn.o_proj",
    ".mlp.w1": ".mlp.up_proj",
    ".mlp.w2": ".mlp.gate_proj",
    ".mlp.c_proj": ".mlp.down_proj",
}


class QWenConfig(transformers.PreTrainedConfig):
    model_type = "qwen"


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def layer(c):
    width, inner = c.hidden_size, c.intermediate_size // 2
    attention = {"c_attn": nn.Linear(width, 3 * width), "c_proj": linear(width, width)}
    mlp = {"w1": linear(width, inner), "w2": linear(width, inner), "c_proj": linear(inner, width)}
    return nn.ModuleDict(
        {
            "ln_1": Qwen2RMSNorm(width),
            "attn": nn.ModuleDict(attention),
            "ln_2": Qwen2RMSNorm(width),
            "mlp": nn.ModuleDict(mlp),
        }
    )


class QWenLMHeadModel(transformers.PreTrainedModel):
    config_class = QWenConfig
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "h": nn.ModuleList([layer(config) for _ in range(config.num_hidden_layers)]),
                "ln_f": Qwen2RMSNorm(config.hidden_size),
            }
        )
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer["wte"]

    def get_output_embeddings(self):
        return self.lm_head

    def qwen2(self):
        c = self.config
        config = transformers.Qwen2Config(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size // 2,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_attention_heads,
            rms_norm_eps=c.layer_norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": c.rotary_emb_base},
            tie_word_embeddings=c.tie_word_embeddings,
            attn_implementation="eager",
        )
        return transformers.Qwen2ForCausalLM(config).eval()

    def weights(self):
        found = {}
        for name, value in self.named_parameters():
            if "attn.c_attn" in name:
                for own, part in zip("qkv", value.chunk(3), strict=True):
                    found[name.replace("attn.c_attn", f"self_attn.{own}_proj")] = part
            else:
                found[name] = value
        for published, theirs in NAMES.items():
            found = {name.replace(published, theirs): value for name, value in found.items()}
        return found

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        return functional_call(self.qwen2(), self.weights(), (input_ids,), given)


def qwen(**changed):
    numbers = {**BASE, **changed}
    numbers["kv_channels"] = numbers["hidden_size"] // numbers["num_attention_heads"]
    return QWenLMHeadModel(QWenConfig(**numbers))


CASES = {
    "qwen": lambda: qwen(auto_map=CODE),
    "qwen deep": lambda: qwen(
        hidden_size=40, num_attention_heads=4, num_hidden_layers=4, intermediate_size=34
    ),
    "qwen tied": lambda: qwen(tie_word_embeddings=True, num_attention_heads=3),
    "qwen without steps": lambda: qwen(
        use_dynamic_ntk=False, num_hidden_layers=1, num_attention_heads=1, layer_norm_epsilon=1e-3
    ),
}
