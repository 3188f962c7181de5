"""The kernel that scores lines of text, made for each kind of model from the kernel that scores lines of ids."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fflm.compiling import compiled
from fflm.text.kernels import encode_lines


def line_scorer(name: str, losses_of_lines: Callable[..., Any]) -> Any:
    """Return a kernel that scores lines of text.

    It takes a text and pieces, as `encode_lines` does, and packed tables of a model. It returns log p of lines (L,), nats, and
    whether all pieces are known; if not, the scores mean nothing.

    Parameters
    ----------
    name
        The name of the kernel in the cache.
    losses_of_lines
        The kernel of a kind of model: ids (N,), where each line begins (L + 1,), and tables -> losses of the words (N,), nats.
    """

    @compiled(name)
    def score_lines(text, pieces, model):  # type: ignore[no-untyped-def]
        ids, borders, known = encode_lines(text, pieces)
        scores = np.zeros(len(borders) - 1)
        losses = losses_of_lines(ids, borders if known else borders[:1], model)
        for line in range(len(scores) if known else 0):
            for i in range(borders[line], borders[line + 1]):
                scores[line] -= losses[i]
        return scores, known

    return score_lines
