"""Masking: shares as the paper has them, never a mark, the same for a sample in any batch."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stemma import api
from stemma.core.seeds import generator_for
from stemma.data.batches import IGNORED, Order
from stemma.data.marked import Marks, around, plan_windows, window_batch
from stemma.data.packing import Plan
from stemma.data.store import Row, in_memory
from stemma.nn.initial import initialise
from stemma.train.loop import accumulate
from stemma.train.masked import (
    Masking,
    foretold,
    mask,
    masked,
    masked_loss,
    masker_for,
    step_batch,
    windows_with,
)

VOCABULARY, CONTEXT = 61, 20
MARKS = Marks(begin=55, end=56, mask=57, padding=58)
CONTROL = [0, 55, 56, 57, 58, 60]
ORDINARY = [n for n in range(VOCABULARY) if n not in CONTROL]


def masker(seed=3, **numbers):
    return masker_for(
        Masking(**numbers), seed=seed, marks=MARKS, control_ids=CONTROL, vocab_size=VOCABULARY
    )


def windows(count, seed=0, longest=CONTEXT):
    """Rows of random tokens between their marks."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, longest + 1, count)
    return [Row(around(MARKS, draw.choice(ORDINARY, n - 2).tolist()), 0) for n in lengths]


def plan_alone(store):
    """One window a row: nothing is packed."""
    lengths = np.diff(store.offsets)
    order = np.arange(len(lengths))
    return Plan(CONTEXT, order, np.zeros_like(order), lengths, np.arange(len(lengths) + 1))


@pytest.fixture(scope="module")
def model():
    made = api.build(
        "bert", width=24, depth=2, num_heads=3, vocab_size=VOCABULARY, context=32, dropout=0.0
    )
    initialise(made, seed=3, std=0.4, depth=2)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return made.double().eval()


def test_shares_are_those_of_the_paper():
    tokens = np.random.default_rng(1).choice(ORDINARY, 200_000)
    read, targets = mask(tokens, masker(), generator_for(0, "test"))
    chosen = targets != IGNORED
    hidden, kept = chosen & (read == MARKS.mask), chosen & (read == tokens)
    swapped = chosen & ~hidden & ~kept

    def near(count, total, share):
        return abs(count - share * total) < 5 * math.sqrt(total * share * (1 - share))

    number = chosen.sum()
    assert near(number, len(tokens), 0.15)
    assert near(hidden.sum(), number, 0.8)
    # a random token is now and then the one that stood there
    assert near(kept.sum(), number, 0.1 + 0.1 / len(ORDINARY))
    assert near(swapped.sum(), number, 0.1 * (1 - 1 / len(ORDINARY)))
    seen = np.bincount(read[swapped], minlength=VOCABULARY)
    assert (seen[ORDINARY] > 0).all() and seen[CONTROL].sum() == 0


def test_other_shares_are_kept_too():
    tokens = np.random.default_rng(1).choice(ORDINARY, 1000)
    read, targets = mask(tokens, masker(chosen=1.0, hidden=0.0, random=1.0), generator_for(0, "x"))
    assert (
        (targets == tokens).all() and (read != MARKS.mask).all() and (read != tokens).mean() > 0.9
    )
    read, targets = mask(tokens, masker(chosen=0.5, hidden=1.0, random=0.0), generator_for(0, "x"))
    assert ((read == MARKS.mask) == (targets != IGNORED)).all()


def test_nothing_else_is_changed_and_targets_are_what_stood_there():
    tokens = np.random.default_rng(2).choice(ORDINARY, 5000)
    read, targets = mask(tokens, masker(), generator_for(0, "test"))
    chosen = targets != IGNORED
    assert (targets[chosen] == tokens[chosen]).all()
    assert (read[~chosen] == tokens[~chosen]).all()


def test_marks_and_control_tokens_are_never_chosen():
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, 20_000)
    read, targets = mask(tokens, masker(chosen=1.0), generator_for(0, "test"))
    special = np.isin(tokens, CONTROL)
    assert (targets[special] == IGNORED).all() and (read[special] == tokens[special]).all()
    assert (targets[~special] != IGNORED).all()


def test_padding_is_never_chosen_whatever_its_id():
    store = in_memory(windows(5, longest=7))
    plan = plan_alone(store)
    ordinary = 7  # padding that looks like a word
    batch = window_batch(store, plan, np.arange(5), padding=ordinary)
    made = masked(batch, np.zeros(5, int), masker(chosen=1.0))
    padding = batch.documents_BT < 0
    assert padding.any()
    assert (made.targets_BT[padding] == IGNORED).all()
    assert (made.tokens_BT[padding] == ordinary).all()


def test_mask_of_a_sample_does_not_depend_on_its_batch():
    store = in_memory(windows(17))
    plan = plan_alone(store)
    draw = masker()

    def row(sample, samples):
        batch = window_batch(store, plan, np.array(samples), padding=MARKS.padding)
        made = masked(batch, np.full(len(samples), 4), draw)
        place = samples.index(sample)
        return made.tokens_BT[place], made.targets_BT[place]

    for sample in range(17):
        for others in ([sample], [3, sample, 16], list(range(17))[::-1]):
            if others.count(sample) == 1:
                for ours, theirs in zip(row(sample, [sample]), row(sample, others), strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_every_epoch_and_every_seed_masks_anew():
    store = in_memory(windows(40))
    plan = plan_alone(store)
    batch = window_batch(store, plan, np.arange(40), padding=MARKS.padding)

    def targets(epoch, seed=3):
        return masked(batch, np.full(40, epoch), masker(seed)).targets_BT

    np.testing.assert_array_equal(targets(0), targets(0))
    assert (targets(0) != targets(1)).any() and (targets(0) != targets(0, seed=4)).any()
    counted = np.stack([targets(epoch) != IGNORED for epoch in range(100)]).any(0)
    assert (counted == np.isin(batch.tokens_BT, ORDINARY)).all()  # every word has its turn


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_from_the_middle_are_those_of_the_unbroken_run(workers):
    store = in_memory(windows(23))
    order = Order(plan_windows(store.offsets, CONTEXT), 5, 4)
    made = windows_with(masker(5), padding=MARKS.padding)

    def from_step(first, workers=0):
        return [
            (batch.tokens_BT.tolist(), batch.targets_BT.tolist())
            for window in made(store, order, first_step=first, steps=12, rows=2, workers=workers)
            for batch in window
        ]

    whole = from_step(0)
    assert 12 * 4 > 2 * order.plan.num_samples  # beyond the second epoch
    for first in (1, 5, 11):
        assert from_step(first, workers) == whole[2 * first :]


def test_a_sample_is_masked_by_the_epoch_that_it_comes_in():
    store = in_memory(windows(6))
    plan = plan_alone(store)
    order, draw = Order(plan, 5, 4), masker(5)
    seen = {}
    for step in range(6):
        batch = step_batch(store, order, step, draw, padding=MARKS.padding)
        for place, sample in enumerate(batch.samples_B):
            epoch = (step * 4 + place) // 6
            one = window_batch(store, plan, np.array([sample]), padding=MARKS.padding)
            wanted = masked(one, np.array([epoch]), draw)
            np.testing.assert_array_equal(batch.targets_BT[place], wanted.targets_BT[0])
            seen.setdefault(int(sample), set()).add(epoch)
    assert all(epochs == {0, 1, 2, 3} for epochs in seen.values())


def test_loss_is_the_sum_over_chosen_tokens_alone(model):
    store = in_memory(windows(1, seed=4))
    batch = window_batch(store, plan_alone(store), np.array([0]), padding=MARKS.padding)
    made = masked(batch, np.array([0]), masker(chosen=0.4))
    assert made.counted > 2
    length = int(np.diff(store.offsets)[0])
    with torch.no_grad():
        logits = model(torch.from_numpy(made.tokens_BT[:, :length]))[0].numpy()
    wanted = 0.0
    for place, target in enumerate(made.targets_BT[0]):
        if target != IGNORED:
            scores = logits[place] - logits[place].max()
            wanted -= scores[target] - math.log(np.exp(scores).sum())
    assert abs(masked_loss(model, made).item() - wanted) < 1e-5 * wanted
    scores_NV, targets_N = foretold(model, made)
    assert targets_N.tolist() == made.targets_BT[made.targets_BT != IGNORED].tolist()
    np.testing.assert_allclose(
        scores_NV.detach(), logits[made.targets_BT[0, :length] != IGNORED], rtol=1e-5, atol=1e-5
    )


def test_equal_to_transformers_with_labels(model, tmp_path):
    from transformers import BertForMaskedLM

    ours = api.build("bert", **(model.config.model_dump() | {"pooler": False, "pair_head": False}))
    state = {name: model.state_dict()[name].float() for name in ours.state_dict()}
    ours.load_state_dict(state)
    api.save(ours, None, tmp_path / "model")
    theirs = BertForMaskedLM.from_pretrained(tmp_path / "model").eval()
    store = in_memory(windows(7))
    batch = window_batch(store, plan_alone(store), np.arange(7), padding=MARKS.padding)
    made = masked(batch, np.zeros(7, int), masker())
    wanted = theirs(
        input_ids=torch.from_numpy(made.tokens_BT),
        attention_mask=torch.from_numpy((made.documents_BT >= 0).astype(int)),
        labels=torch.from_numpy(made.targets_BT),
    ).loss
    mean = masked_loss(ours.eval(), made) / made.counted
    torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)


def losses_by_window(model, store, plan):
    """The summed loss of each window with all its tokens foretold, wherever the plan puts it."""
    batch = window_batch(store, plan, np.arange(plan.num_samples), padding=MARKS.padding)
    targets = np.where(np.isin(batch.tokens_BT, ORDINARY), batch.tokens_BT, IGNORED)
    batch.targets_BT[:] = targets
    scores_NV, targets_N = foretold(model, batch)
    nats = torch.nn.functional.cross_entropy(scores_NV, targets_N, reduction="none")
    found = np.zeros(store.num_documents)
    for value, row, place in zip(nats.tolist(), *(targets != IGNORED).nonzero(), strict=True):
        piece = 0 if batch.documents_BT is None else batch.documents_BT[row, place]
        found[plan.document[plan.first_piece[row] + piece]] += value
    return found


def test_packed_and_padded_windows_have_the_loss_that_each_has_alone(model):
    store = in_memory(windows(21, longest=12))
    packed, padded = plan_windows(store.offsets, CONTEXT), plan_alone(store)
    assert packed.num_samples < padded.num_samples
    alone = []
    for document in range(store.num_documents):
        tokens = torch.tensor([store.document(document).tolist()])
        words = torch.isin(tokens[0], torch.tensor(ORDINARY))
        with torch.no_grad():
            logp = model(tokens)[0].float().log_softmax(-1)
        alone.append(-logp[words].gather(1, tokens[0][words][:, None]).sum().item())
    for plan in (packed, padded):
        np.testing.assert_allclose(losses_by_window(model, store, plan), alone, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_do_not_change_the_gradient(model, rows):
    store = in_memory(windows(14))
    order = Order(plan_windows(store.offsets, CONTEXT), 5, 6)
    batch = step_batch(store, order, 2, masker(5), padding=MARKS.padding)
    gradients = []
    for cut in (6, rows):
        model.zero_grad()
        accumulate(model, list(batch.split(cut)), masked_loss)
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    model.zero_grad()
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_a_batch_in_which_nothing_was_chosen_has_no_loss(model):
    store = in_memory([Row(around(MARKS, [5]), 0)])
    batch = window_batch(store, plan_alone(store), np.array([0]), padding=MARKS.padding)
    assert batch.counted == 0 and masked_loss(model, batch).item() == 0.0


def test_shares_above_one_are_refused_with_both_numbers():
    with pytest.raises(ValidationError, match=r"hidden \(0.8\) and random \(0.3\)"):
        Masking(random=0.3)
