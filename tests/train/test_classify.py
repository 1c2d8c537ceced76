"""Classification: the loss is that of the right labels, and a text's neighbours change nothing."""

import math

import numpy as np
import pytest
import torch

from stemma import api
from stemma.data.batches import IGNORED, Order
from stemma.data.marked import Marks, around
from stemma.data.packing import Plan, plan_whole
from stemma.data.store import Row, in_memory
from stemma.nn.context import Context
from stemma.nn.initial import initialise
from stemma.train.classify import label_loss, label_scores, labelled, windows_with
from stemma.train.loop import accumulate

VOCABULARY, CONTEXT, LABELS = 53, 24, 3
MARKS = Marks(begin=49, end=50, mask=51, padding=52)


def texts(count, seed=0, longest=10):
    """Rows of a label and a marked text; every third is a pair."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        first, second = (draw.integers(0, 49, draw.integers(1, longest)).tolist() for _ in "ab")
        ids = around(MARKS, first, second if number % 3 == 0 else None)
        rows.append(Row([int(draw.integers(LABELS)), *ids], 0))
    return rows


def plan_alone(store):
    """One text a row: nothing is packed."""
    lengths = np.diff(store.offsets) - 1
    order = np.arange(len(lengths))
    return Plan(CONTEXT, order, np.zeros_like(order), lengths, np.arange(len(lengths) + 1))


@pytest.fixture(scope="module")
def model():
    numbers = {"width": 24, "depth": 2, "num_heads": 3, "context": 32, "dropout": 0.0}
    heads = {"masked_head": False, "pair_head": False, "num_labels": LABELS}
    made = api.build("bert", vocab_size=VOCABULARY, **numbers, **heads)
    initialise(made, seed=3, std=0.4, depth=2)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return made.eval()


def scores_alone(model, row):
    """Scores of one text without packing, its segments told by hand."""
    ids = row.ids[1:]
    end = ids.index(MARKS.end)
    segments = torch.tensor([[0] * (end + 1) + [1] * (len(ids) - end - 1)])
    with torch.no_grad():
        x_BTC, _ = model.hidden(torch.tensor([ids]), Context(segments_BT=segments))
        return model.classify(x_BTC)[0].double().numpy()


@pytest.mark.parametrize("plan_of", [lambda s: plan_whole(s.offsets, CONTEXT), plan_alone])
def test_every_text_has_the_scores_that_it_has_alone(model, plan_of):
    rows = texts(19)
    store = in_memory(rows)
    plan = plan_of(store)
    batch = labelled(store, plan, np.arange(plan.num_samples), MARKS)
    with torch.no_grad():
        scores_NL, targets_N = label_scores(model, batch)
    assert batch.counted == len(rows) == len(targets_N)
    worst = 0.0
    for scores, target, document in zip(scores_NL, targets_N, plan.document, strict=True):
        assert target == rows[document].ids[0]
        worst = max(worst, np.abs(scores.numpy() - scores_alone(model, rows[document])).max())
    assert worst < 1e-5


def test_packing_is_tried_with_several_texts_and_padding_in_a_row():
    store = in_memory(texts(19))
    plan = plan_whole(store.offsets, CONTEXT)
    batch = labelled(store, plan, np.arange(plan.num_samples), MARKS).rows
    assert plan.num_samples < 19 and (batch.documents_BT == 1).any()
    padding = batch.documents_BT == -1
    assert padding.any() and (batch.positions_BT[padding] < 0).all()


def test_loss_is_the_sum_over_texts_of_the_right_label(model):
    rows = texts(7)
    store = in_memory(rows)
    plan = plan_whole(store.offsets, CONTEXT)
    batch = labelled(store, plan, np.arange(plan.num_samples), MARKS)
    wanted = 0.0
    for row in rows:
        scores = scores_alone(model, row)
        wanted -= scores[row.ids[0]] - math.log(np.exp(scores - scores.max()).sum()) - scores.max()
    assert abs(label_loss(model, batch).item() - wanted) < 1e-4


def test_equal_to_transformers_with_labels(model, tmp_path):
    from transformers import BertForSequenceClassification

    api.save(model, None, tmp_path / "model")
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    rows = texts(9)
    store = in_memory(rows)
    batch = labelled(store, plan_alone(store), np.arange(9), MARKS)
    wanted = theirs(
        input_ids=torch.from_numpy(batch.rows.tokens_BT),
        attention_mask=torch.from_numpy((batch.rows.documents_BT >= 0).astype(int)),
        token_type_ids=torch.from_numpy(batch.segments_BT),
        labels=torch.tensor([row.ids[0] for row in rows]),
    ).loss
    mean = label_loss(model, batch) / batch.counted
    torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=1e-6)


def test_segments_are_those_of_pairs_alone():
    rows = [
        Row([1, *around(MARKS, [5, 6], [7])], 0),
        Row([2, *around(MARKS, [8, 9])], 0),
        Row([0, *around(MARKS, [4], [3, 2])], 0),
    ]
    store = in_memory(rows)
    order = np.arange(3)
    whole = Plan(CONTEXT, order, np.zeros(3, int), np.array([6, 4, 6]), np.array([0, 3]))
    batch = labelled(store, whole, np.array([0]), MARKS)
    segments = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.segments_BT[0].tolist() == segments + [0] * (CONTEXT - 16)
    targets = batch.rows.targets_BT[0]
    assert targets[[0, 6, 10]].tolist() == [1, 2, 0] and (targets != IGNORED).sum() == 3


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_micro_batches_do_not_change_the_gradient(model, rows):
    store = in_memory(texts(21))
    plan = plan_whole(store.offsets, CONTEXT)
    batch = labelled(store, plan, np.arange(5), MARKS)
    assert sum(part.counted for part in batch.split(rows)) == batch.counted
    gradients = []
    for cut in (5, rows):
        model.zero_grad()
        accumulate(model, list(batch.split(cut)), label_loss)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_from_the_middle_are_those_of_the_unbroken_run(workers):
    store = in_memory(texts(23))
    order = Order(plan_whole(store.offsets, CONTEXT), 5, 4)
    made = windows_with(MARKS)

    def from_step(first, workers=0):
        return [
            (part.rows.tokens_BT.tolist(), part.rows.targets_BT.tolist(), part.segments_BT.tolist())
            for window in made(store, order, first_step=first, steps=9, rows=3, workers=workers)
            for part in window
        ]

    assert from_step(5, workers) == from_step(0)[2 * 5 :]
