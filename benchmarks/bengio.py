"""The network of Bengio et al. (2003) on random text; several benchmarks time its training steps."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fflm.backend.common import placed
from fflm.backend.protocol import Backend
from fflm.network.config import NetworkConfig
from fflm.text.windows import Windows

EMBEDDING, WINDOW = 128, 4


def bengio_network(vocabulary: int, hidden: int = 256) -> NetworkConfig:
    """Return the network: one hidden layer with tanh, no direct connections, and dropout on the hidden layer."""
    return NetworkConfig(
        vocabulary, WINDOW, EMBEDDING, (hidden,), "tanh", averages=(), tied=False, dropout=0.2, embedding_dropout=0.0
    )


def random_text(vocabulary: int, count: int, seed: int) -> Windows:
    """Return examples from ``count`` random words, which are as frequent as in a text (Zipf's law)."""
    shares = 1 / np.arange(1, vocabulary + 1)
    ids = np.random.default_rng(seed).choice(vocabulary, count, p=shares / shares.sum()).astype(np.uint32)
    return Windows(ids, WINDOW, padding=vocabulary)


def launch_directly(backend: Backend) -> Backend:
    """Let a backend of a GPU launch each kernel of a training step, instead of a graph of them; return the backend."""

    def direct(step: Callable[..., None], **arguments: Any) -> None:
        step(**placed(backend, arguments))

    backend.recording = lambda: direct  # type: ignore[method-assign]
    return backend
