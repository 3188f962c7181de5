"""Files of arrays: damage is detected by the checksum."""

import numpy as np
import pytest

from fflm.arrays import load_arrays, save_arrays
from fflm.errors import FflmError


def test_flipped_bits_and_truncation_of_arrays_are_detected(tmp_path):
    path = tmp_path / "arrays"
    save_arrays(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float64)}, {"answer": 42})
    arrays, about = load_arrays(path)
    assert about == {"answer": 42}
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found, said = load_arrays(path)
        except FflmError:
            continue
        # A bit of the header without a meaning, such as one in an unknown key of the format, may change.
        assert said == about
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FflmError, match="damaged"):
            load_arrays(path)


def test_arrays_of_integers_are_refused(tmp_path):
    save_arrays(tmp_path / "arrays", {"a": np.arange(3)}, None)
    with pytest.raises(FflmError, match="not float32 or float64"):
        load_arrays(tmp_path / "arrays")
