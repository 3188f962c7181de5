"""What the first layer reads of an example: the concatenated or pooled embeddings of its words, or its numbers as they are.

Letters: B rows, n words of a window, L of the longest text of a batch, m embedding size, I numbers that the first layer reads.
"""

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig


def check(config: NetworkConfig, rows: Array, words: int) -> None:
    """Raise a ValueError if a kernel would read what is not a network's: rows that are too narrow, or words that it has not.

    Words that are on a device already are not looked at, for that would wait for it.
    """
    width = {"window": config.context, "numbers": config.numbers}.get(config.input)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        sees = f"{width} {'numbers' if config.input == 'numbers' else 'words'}" if width else "rows of words"
        raise ValueError(f"contexts of the shape {rows.shape}, but the network sees {sees}")
    if config.input != "numbers":
        check_range("contexts", rows, words, 0 if config.outputs is None else -1)


def check_range(name: str, ids: Array, limit: int, lowest: int = 0) -> None:
    """Raise a ValueError if a NumPy array, which a kernel is to use as indices, has some that are out of range."""
    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < lowest or ids.max() >= limit):
        raise ValueError(f"{name} from {ids.min()} to {ids.max()}, but the network has {lowest} to {limit - 1}")


def read(backend: Backend, config: NetworkConfig, embeddings: Array, rows: Array) -> tuple[Array, Array | None]:
    """Return what the first layer reads.

    Parameters
    ----------
    backend, config
        The network's.
    embeddings
        (V + 1, m), None where the input is numbers.
    rows
        (B, n) int32 words of a window, of a classifier also -1 where there is none; or (B, L) int32 words of texts, each filled
        up with -1; or (B, I) numbers.

    Returns
    -------
    inputs
        (B, I); for numbers ``rows`` itself.
    sources
        Of a pooled maximum the words it is of, (B, I), which `read_backward` needs, else None.
    """
    if config.input == "numbers":
        return rows, None
    inputs = backend.empty((len(rows), config.inputs), embeddings.dtype)
    sources = None
    if config.input == "window":
        backend.gather(embeddings, rows, config.blocks, inputs)
    elif config.input == "mean":
        backend.mean_pool(embeddings, rows, inputs)
    else:
        sources = backend.empty(inputs.shape, rows.dtype)
        backend.max_pool(embeddings, rows, inputs, sources)
    return inputs, sources


def read_backward(
    backend: Backend, config: NetworkConfig, rows: Array, sources: Array | None, d_inputs: Array, d_embeddings: Array
) -> None:
    """Go back through `read`: d_inputs (B, I) -> d_embeddings (V + 1, m), added to."""
    if config.input == "window":
        backend.scatter_add(rows, config.blocks, d_inputs, d_embeddings)
    elif config.input == "mean":
        backend.mean_pool_backward(rows, d_inputs, d_embeddings)
    elif config.input == "max":
        backend.max_pool_backward(sources, d_inputs, d_embeddings)
