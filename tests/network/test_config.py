"""The configuration of a network refuses invalid fields."""

import pytest

from fflm.errors import FflmError
from fflm.network.config import NetworkConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 0}, "`vocabulary` must be an integer of at least 1, not 0"),
        ({"window": 0}, "`window` must be an integer from 1 to 1,000,000, not 0"),
        ({"embedding": -1}, "`embedding` must be an integer from 1 to 1,000,000, not -1"),
        ({"hidden": (5, 0)}, "`hidden` must be a list of at most 1,000 integers from 1 to 1,000,000; item 1 is 0"),
        ({"averages": (3, -1)}, "`averages` must be a list of at most 100 integers from 1 to 1,000,000; item 1 is -1"),
        ({"residual": True, "hidden": (5, 6)}, r"must be of one size, not \(5, 6\)"),
        ({"activation": "tahn"}, "`activation` must be one of .*sigmoid.*, not 'tahn'"),
        ({"dropout": 1.0}, r"`dropout` must be a number of at least 0 and below 1, not 1\.0"),
        ({"dropout": -0.1}, r"below 1, not -0\.1"),
        ({"embedding_dropout": 1.5}, r"`embedding_dropout` must be .*, not 1\.5"),
        ({"embedding_dropout": float("nan")}, "`embedding_dropout` must be .*, not nan"),
        ({"input": "numers"}, "`input` must be one of max, mean, numbers, window, not 'numers'"),
        ({"output": "softmin"}, "`output` must be one of .*softmax.*, not 'softmin'"),
        ({"input": "numbers", "tied": False, "outputs": 2}, "`numbers` must be an integer of at least 1, not 0"),
        ({"outputs": 0, "tied": False}, "`outputs` must be an integer from 1 to 10,000,000 or None, not 0"),
        ({"outputs": 2}, "tied is for language models only"),
        ({"outputs": 2, "tied": False, "averages": (3,)}, "averages is for language models only"),
        ({"word_weights": True}, "leave out `word_weights`, or give `averages`"),
        ({"input": "mean"}, "give the number of outputs"),
        ({"output": "sigmoid"}, "give the number of outputs"),
    ],
)
def test_invalid_network_config_is_refused(change: dict, message: str) -> None:
    fields = {"vocabulary": 10, "window": 2, "embedding": 3, **change}
    with pytest.raises(FflmError, match=message) as caught:
        NetworkConfig(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bands", [(0,), (5, 3), (4, 4)])
def test_bands_must_ascend(bands: tuple[int, ...]) -> None:
    with pytest.raises(FflmError, match=r"must ascend|must be a list"):
        NetworkConfig(10, 2, 3, tied=False, bands=bands)


def test_bands_have_weights_of_their_own() -> None:
    with pytest.raises(FflmError, match="`tied=False`"):
        NetworkConfig(10, 2, 3, tied=True, bands=(4,))
