"""Seeds: a stream is a function of its seed and names, and of nothing else."""

import torch

from stemma.core.seeds import generator_for


def test_streams_of_random_numbers_are_apart():
    drawn = [
        torch.rand(4, generator=generator_for(*key)).tolist()
        for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"))
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(numbers) for numbers in drawn}) == 5
