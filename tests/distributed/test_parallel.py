"""A plan changes rounding and nothing else: losses, norms and weights, whatever the number."""

import pytest

from tests.distributed.cases import trained

SMALL = {"width": 16, "depth": 2, "num_heads": 4}
GATED = SMALL | {"hidden": 20}
PAIRS = {"source_vocab_size": 37}
FAMILIES = {
    "rnn": {"width": 12, "depth": 2},
    "lstm": {"width": 12, "depth": 1},
    "gru": {"width": 12, "depth": 1},
    "decoder": SMALL | {"norms": "dual"},
    "gpt1": SMALL,
    "gpt2": SMALL,
    "gpt3": SMALL | {"windows": [None, 4]},
    "neox": SMALL | {"rotary_fraction": 0.5},
    "bloom": SMALL,
    "llama": SMALL | {"num_kv_heads": 2, "tied": True},
    "mistral": GATED | {"num_kv_heads": 2, "window": 4},
    "mixtral": SMALL | {"num_kv_heads": 2, "hidden": 12, "num_experts": 4, "top_k": 2},
    "qwen2": GATED | {"num_kv_heads": 2},
    "qwen3": GATED | {"num_kv_heads": 2},
    "gemma3": GATED | {"num_kv_heads": 2, "head_dim": 4},
    "linear": SMALL,
    "performer": SMALL | {"features": 8},
    "delta": SMALL,
    "baichuan": GATED,
    "chatglm2": GATED | {"num_kv_heads": 2},
    "qwen": GATED,
    "switch": GATED | {"num_experts": 4},
    "bert": SMALL,
    "t5": GATED,
    "transformer": SMALL,
    "seq2seq": PAIRS | {"width": 12, "depth": 1},
    "bahdanau": PAIRS | {"width": 12, "embedding_width": 8, "hidden": 12, "maxout": 8},
}
# one of each kind of block; the others, which compose the same blocks, are slow tests
TYPICAL = {"gru", "decoder", "qwen3", "mixtral", "delta", "t5", "bahdanau"}
PLANS = [
    pytest.param(2, {}, marks=pytest.mark.slow),
    pytest.param(2, {"shards": 2}, marks=pytest.mark.slow),
    (2, {"tensor": 2}),
    pytest.param(4, {"shards": 2}, marks=pytest.mark.slow),
    (4, {"shards": 2, "tensor": 2}),
]


@pytest.fixture(scope="session")
def alone():
    found = {}

    def result(family):
        if family not in found:
            from stemma.core.distributed import ALONE

            found[family] = trained(ALONE, family, FAMILIES[family], plan={})
        return found[family]

    return result


@pytest.mark.parametrize(
    "family", [f if f in TYPICAL else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
@pytest.mark.parametrize(("size", "plan"), PLANS)
def test_plan_changes_nothing_but_rounding(pools, alone, family, size, plan):
    wanted = alone(family)
    case = "tests.distributed.cases:trained"
    for found in pools(size).run(case, family=family, numbers=FAMILIES[family], plan=plan):
        for (loss, norm), (wanted_loss, wanted_norm) in zip(
            found["steps"], wanted["steps"], strict=True
        ):
            assert loss == pytest.approx(wanted_loss, rel=1e-9)
            assert norm == pytest.approx(wanted_norm, rel=1e-9)
        assert found["weights"] == pytest.approx(wanted["weights"], rel=1e-9)
