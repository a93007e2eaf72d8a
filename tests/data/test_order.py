"""The order of examples: every one once in an epoch, anew in each, whatever the batch size and the process count."""

import numpy as np

from ucgm_jax.data import pipeline
from ucgm_jax.data.sources import ArraySource


def indices(count, steps, **options):
    source = ArraySource(np.zeros((count, 1, 1, 1)), np.arange(count) % 3, 3)
    batches = pipeline.batches(source, **{"batch_size": 4, "seed": 1} | options)
    return np.concatenate([next(batches)["index"] for _ in range(steps)])


def test_every_example_once_in_an_epoch():
    order = indices(10, 10)  # four epochs, and batches that lie in two
    epochs = order.reshape(4, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_the_order_depends_on_seed_and_position_alone():
    order = indices(10, 10)
    np.testing.assert_array_equal(indices(10, 5, batch_size=8), order)
    np.testing.assert_array_equal(indices(10, 7, position=12), order[12:])
    halves = [indices(10, 10, process_index=n, process_count=2).reshape(10, 2) for n in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1).reshape(-1), order)
    assert (indices(10, 10, seed=2) != order).any()
