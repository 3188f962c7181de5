"""The values to be searched."""

import pytest

from fflm.errors import FflmError
from fflm.search.space import Choices, Range


def test_invalid_search_space_is_refused():
    for wrong in (
        lambda: Range(2, 2),
        lambda: Range(3, 2),
        lambda: Choices(()),
        lambda: Choices((1,)),
        lambda: Choices((1, 1, 2)),
    ):
        with pytest.raises(FflmError):
            wrong()
