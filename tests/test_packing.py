"""Tests of packed tuples: what compiled functions read of them, also after they were pickled."""

import pickle
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from fflm.packing import Packed


class _Part(NamedTuple):
    table: npt.NDArray[np.float32]
    records: npt.NDArray[np.void]


class _Whole(NamedTuple):
    count: int
    part: _Part
    yes: bool
    nothing: None
    empty: npt.NDArray[np.int8]
    factor: float
    no: bool


@njit
def _read(packed, row):
    whole = packed.content
    if whole.nothing is not None:
        return 0.0, 0, False, False, whole.part.table
    whole.part.table[row, 0] += 1
    total = whole.part.table[row].sum() * whole.factor + whole.part.records[1].weight + len(whole.empty)
    return total, whole.count, whole.yes, whole.no, whole.part.table.copy()


def test_packed_tuple_is_read_by_compiled_function_and_survives_pickling():
    """A slice of columns, records, None, an empty array and all kinds of numbers are read; arrays are written in place."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)[:, 1::2]
    records = np.array([(1, 2.5), (-3, 0.25)], np.dtype([("id", np.int8), ("weight", np.float64)]))
    packed = Packed(_Whole(-(2**40), _Part(table, records), True, None, np.empty(0, np.int8), -0.5, False))
    for each in (packed, pickle.loads(pickle.dumps(packed))):
        total, *numbers, copied = _read(each, 2)
        assert (total, numbers) == ((10 + 11) * -0.5 + 0.25, [-(2**40), True, False])
        np.testing.assert_array_equal(copied[2], [10, 11])
        table[2, 0] = 9 if each is packed else table[2, 0]
    assert table[2, 0] == 9
