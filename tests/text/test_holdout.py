"""The size of held-out parts: a number of tokens, a share, or files."""

import math
from pathlib import Path

import numpy as np
import pytest

from fflm.errors import FflmError
from fflm.text.holdout import Count, Share, parse_held_out


@pytest.mark.parametrize(
    ("value", "held_out"),
    [
        ([], None),
        (["0"], None),
        ((), None),
        (None, None),
        (0, None),
        (0.0, None),
        ("0%", None),
        (["5%"], Share(0.05)),
        ("5%", Share(0.05)),
        (["0.1"], Share(0.1)),
        (0.1, Share(0.1)),
        (np.float64(0.1), Share(0.1)),
        (Share(0.1), Share(0.1)),
        (["200000"], Count(200000)),
        (200000, Count(200000)),
        (np.int32(7), Count(7)),
        (["v.txt"], (Path("v.txt"),)),
        ("./v.txt", (Path("./v.txt"),)),
        (Path("v.txt"), (Path("v.txt"),)),
        (["5", "6"], (Path("5"), Path("6"))),
        ((Path("5"), "v.txt"), (Path("5"), Path("v.txt"))),
    ],
)
def test_parse_held_out_accepts_sizes_and_paths(value, held_out):
    assert parse_held_out("valid", value) == held_out


@pytest.mark.parametrize("value", ["100%", "1.5", "nan", "-0.1", 1.0, -3, math.nan])
def test_parse_held_out_refuses_size_out_of_range(value):
    with pytest.raises(FflmError, match="cannot hold out"):
        parse_held_out("valid", value)


@pytest.mark.parametrize("value", [True, b"v.txt", {"a": 1}, "", ["v.txt", ""], [b"a", b"b"], object()])
def test_parse_held_out_refuses_other_types(value):
    with pytest.raises(FflmError, match="`valid` must be a path"):
        parse_held_out("valid", value)
