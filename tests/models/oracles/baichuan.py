"""Baichuan, which transformers does not have, built from parts that it has.

The module below has the tensors of Baichuan under their published names. Its forward pass is that
of `LlamaForCausalLM` with these tensors; where the scores have linear biases, its rotation is the
identity and BLOOM's own biases come in through the mask.
"""

import torch
import transformers
from torch import nn
from torch.func import functional_call
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

BASE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "rms_norm_eps": 3e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LENGTH = {"max_position_embeddings": 40, "model_max_length": 40}
CODE = {
    "AutoConfig": "configuration_baichuan.BaichuanConfig",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
}


class Still(nn.Module):
    """Rotary angles of zero."""

    def forward(self, x_BTC, position_ids):
        one = x_BTC.new_ones(*position_ids.shape, 1)
        return one, torch.zeros_like(one)


class BaichuanConfig(transformers.PreTrainedConfig):
    model_type = "baichuan"


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def layer(c):
    width, inner = c.hidden_size, c.intermediate_size
    attention = {"W_pack": linear(width, 3 * width), "o_proj": linear(width, width)}
    names = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    return nn.ModuleDict(
        {
            "input_layernorm": LlamaRMSNorm(width),
            "self_attn": nn.ModuleDict(attention),
            "post_attention_layernorm": LlamaRMSNorm(width),
            "mlp": nn.ModuleDict({name: linear(*shape) for name, shape in names.items()}),
        }
    )


class BaichuanForCausalLM(transformers.PreTrainedModel):
    config_class = BaichuanConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList([layer(config) for _ in range(config.num_hidden_layers)]),
                "norm": LlamaRMSNorm(config.hidden_size),
            }
        )
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.model["embed_tokens"]

    def get_output_embeddings(self):
        return self.lm_head

    def llama(self):
        numbers = {key: getattr(self.config, key) for key in BASE}
        config = transformers.LlamaConfig(**numbers, attn_implementation="eager")
        model = transformers.LlamaForCausalLM(config).eval()
        if not hasattr(self.config, "max_position_embeddings"):
            model.model.rotary_emb = Still()
        return model

    def weights(self):
        found = {}
        for name, value in self.named_parameters():
            if "W_pack" in name:
                for own, part in zip("qkv", value.chunk(3), strict=True):
                    found[name.replace("W_pack", f"{own}_proj")] = part
            else:
                found[name] = value
        if hasattr(self.config, "z_loss_weight"):
            head_VC = found["lm_head.weight"]
            found["lm_head.weight"] = head_VC / head_VC.norm(dim=1, keepdim=True)
        return found

    def mask(self, real_BT):
        """What may not be seen, and BLOOM's biases."""
        heads, (rows, length) = self.config.num_attention_heads, real_BT.shape
        bias = build_alibi_tensor(real_BT, heads, torch.float32).view(rows, heads, 1, length)
        seen = torch.ones(length, length).tril().bool() & real_BT[:, None, None, :].bool()
        return bias.masked_fill(~seen, torch.finfo(torch.float32).min)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        if not hasattr(self.config, "max_position_embeddings"):
            real_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            attention_mask = self.mask(real_BT)
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        return functional_call(self.llama(), self.weights(), (input_ids,), given)


def baichuan(**changed):
    return BaichuanForCausalLM(BaichuanConfig(**{**BASE, **changed}))


CASES = {
    "baichuan 7b": lambda: baichuan(**LENGTH),
    "baichuan 13b": lambda: baichuan(model_max_length=40, auto_map=CODE),
    "baichuan 2 7b": lambda: baichuan(
        **LENGTH,
        z_loss_weight=0,
        num_hidden_layers=3,
        hidden_size=30,
        num_attention_heads=5,
        intermediate_size=51,
        vocab_size=61,
    ),
    "baichuan 2 13b": lambda: baichuan(
        z_loss_weight=0, num_hidden_layers=4, hidden_size=70, num_attention_heads=5
    ),
    "baichuan 13b twelve heads, tied": lambda: baichuan(
        num_hidden_layers=1, hidden_size=36, num_attention_heads=12, tie_word_embeddings=True
    ),
}
