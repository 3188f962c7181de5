"""The order of examples in an epoch: every example once, depending on seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fflm import shuffling
from fflm.shuffling import shuffled


@given(
    count=st.integers(0, 200),
    batch_size=st.integers(1, 40),
    start=st.integers(0, 8),
    block=st.sampled_from([7, 64, 1000]),
    seed=st.integers(0, 2**70),
)
def test_epoch_visits_every_example_once_and_resumes_at_any_batch(count, batch_size, start, block, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffling, "BLOCK", block)
        batches = [batch.tolist() for batch in shuffled(count, batch_size, seed, epoch=3)]
        assert [batch.tolist() for batch in shuffled(count, batch_size, seed, 3, start_batch=start)] == batches[start:]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert sorted(position for batch in batches for position in batch) == list(range(count))


def test_epoch_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(list(shuffled(1000, 64, seed, epoch))).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 0) != sorted(order(0, 0))
    assert next(shuffled(10, 4, 0, 0)).dtype == np.int64
