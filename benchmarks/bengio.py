"""The network of Bengio et al. (2003) on random text; several benchmarks time its training steps."""

import numpy as np

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
