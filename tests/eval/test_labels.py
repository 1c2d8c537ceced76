"""Labels that were given: the confusion matrix, and what always saying the same would reach."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from stemma.core.errors import DataError
from stemma.eval.answers import share_interval
from stemma.eval.labels import confusion, labelling


def known(model, batch):
    """Scores that are handed in."""
    assert not model.training
    return batch


def test_the_matrix_has_the_right_labels_as_rows():
    right, given = [0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 2, 2]
    matrix = confusion(right, given, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert np.trace(matrix) == sum(r == g for r, g in zip(right, given, strict=True))


def test_score_is_of_all_texts_beside_the_commonest_label_of_training():
    scores = torch.tensor([[2.0, 1, 0], [0, 3, 1], [0, 1, 5], [1, 0, 0]], dtype=torch.float64)
    right = torch.tensor([0, 1, 1, 2])
    model = nn.Linear(1, 1).train()
    batches = [(scores[:3], right[:3]), (scores[3:], right[3:])]
    found = labelling(model, batches, known, train_counts_L=[3, 9, 4])
    wanted = 0.0
    for row, label in zip(scores.tolist(), right.tolist(), strict=True):
        wanted += math.log(sum(map(math.exp, row))) - row[label]
    assert abs(found.loss - wanted / 4) < 1e-12
    assert (found.right, found.texts, found.accuracy) == (2, 4, 0.5)
    assert found.majority == 2  # label 1 is the commonest in training, twice in what is held out
    assert found.given_N.tolist() == [0, 1, 2, 0] and model.training
    assert found.interval == share_interval(2, 4)


def test_nothing_held_out_is_refused():
    with pytest.raises(DataError, match="no held-out text to label"):
        labelling(nn.Linear(1, 1), [], known, [1, 2])
