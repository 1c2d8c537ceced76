"""Fine-tuning: only the assistant's tokens count, and packing changes nothing for any sample."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stemma import api
from stemma.data.batches import IGNORED, build_batch
from stemma.data.packing import Plan, plan_whole
from stemma.data.store import Row, in_memory
from stemma.nn.initial import initialise
from stemma.train.loop import accumulate
from stemma.train.sft import assistant_loss, counted_losses

VOCABULARY, CONTEXT = 61, 40
PADDING = 3  # also a token that ends turns, as in SmolLM2


def conversations(count, seed=0, longest=CONTEXT + 1):
    """Rows of random tokens, with one or two random stretches that count."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = draw.integers(0, VOCABULARY, draw.integers(4, longest + 1))
        counted = np.zeros(len(ids), bool)
        for _ in range(2):
            start = draw.integers(1, len(ids))
            counted[start : start + draw.integers(1, 6)] = True
        rows.append(Row(ids.tolist(), 0, counted.tolist()))
    return rows


def plan_alone(store):
    """One document a sample: nothing is packed."""
    lengths = np.diff(store.offsets) - 1
    order = np.arange(len(lengths))
    return Plan(CONTEXT, order, np.zeros_like(order), lengths, np.arange(len(lengths) + 1))


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    numbers = {"width": 32, "depth": 2, "num_heads": 4, "vocab_size": VOCABULARY, "context": 64}
    made = api.build(request.param, **numbers)
    initialise(made, seed=3, std=0.3, depth=2)
    return made


def losses_by_document(model, store, plan):
    """The summed loss of each document, wherever the plan puts it."""
    batch = build_batch(store, plan, np.arange(plan.num_samples), padding=PADDING)
    losses, rows = counted_losses(model, batch)
    places = (batch.targets_BT != IGNORED).nonzero()
    found = np.zeros(store.num_documents)
    for loss, row, place in zip(losses.tolist(), rows.tolist(), places[1], strict=True):
        piece = 0 if batch.documents_BT is None else batch.documents_BT[row, place]
        found[plan.document[plan.first_piece[row] + piece]] += loss
    return found


def test_packed_and_unpacked_losses_of_each_sample_agree(model):
    store = in_memory(conversations(23))
    packed, alone = plan_whole(store.offsets, CONTEXT), plan_alone(store)
    assert packed.num_samples < alone.num_samples
    ours, theirs = (losses_by_document(model, store, plan) for plan in (packed, alone))
    assert ours.min() > 0 and np.abs(ours - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())


def test_another_neighbour_changes_nothing(model):
    rows = conversations(12, longest=15)
    store = in_memory(rows)
    plan = plan_whole(store.offsets, CONTEXT)
    first = plan.document[plan.first_piece[0] : plan.first_piece[1]]
    assert len(first) > 1
    others = [
        row if index == first[0] else Row([(t + 7) % VOCABULARY for t in row.ids], 0, row.counted)
        for index, row in enumerate(rows)
    ]
    before, after = (losses_by_document(model, in_memory(r), plan) for r in (rows, others))
    assert before[first[0]] == after[first[0]]
    assert before[first[1]] != after[first[1]]


def test_loss_is_the_equation_over_counted_tokens_only(model):
    row = conversations(1, seed=5)[0]
    store = in_memory([row])
    batch = build_batch(store, plan_alone(store), np.array([0]), padding=PADDING)
    with torch.no_grad():
        logits = model(torch.tensor([row.ids[:-1]]))[0].log_softmax(-1)
    wanted = -sum(
        logits[place - 1, row.ids[place]] for place in range(1, len(row.ids)) if row.counted[place]
    )
    torch.testing.assert_close(assistant_loss(model, batch), wanted, rtol=1e-5, atol=1e-5)


def test_padding_is_masked_by_length_and_never_by_id(model):
    rows = [Row([5, PADDING, PADDING, 7, PADDING], 0, [False, True, True, False, True])]
    store = in_memory(rows)
    batch = build_batch(store, plan_alone(store), np.array([0]), padding=PADDING)
    assert batch.counted == 3
    other = build_batch(store, plan_alone(store), np.array([0]), padding=PADDING + 1)
    assert assistant_loss(model, batch).item() == assistant_loss(model, other).item()


def test_equal_to_transformers_with_labels(model, tmp_path):
    from transformers import AutoModelForCausalLM

    api.save(model, None, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    row = conversations(1, seed=8)[0]
    store = in_memory([row])
    batch = build_batch(store, plan_alone(store), np.array([0]))
    labels = [t if c else IGNORED for t, c in zip(row.ids, row.counted, strict=True)]
    wanted = theirs(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss
    mean = assistant_loss(model, batch) / batch.counted
    torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_micro_batches_do_not_change_the_gradient(model, rows):
    model = model.double()
    store = in_memory(conversations(14))
    plan = plan_whole(store.offsets, CONTEXT)
    batch = build_batch(store, plan, np.arange(6))
    gradients = []
    for cut in (6, rows):
        model.zero_grad()
        accumulate(model, list(batch.split(cut)), assistant_loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999999
