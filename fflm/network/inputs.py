"""The input of the first layer: the concatenated or pooled embeddings of the words of an example, or its features unchanged.

Letters: B rows, n words of a window, L words of the longest text of a batch, m embedding size, I width of the input.
"""

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig


def check(config: NetworkConfig, rows: Array, words: int) -> None:
    """Check the inputs of a network, so that no kernel reads out of bounds.

    Ids that are already on a GPU are not checked, because the check would have to wait for the GPU.

    Parameters
    ----------
    config
        The configuration of the network.
    rows
        The inputs, as for `read`.
    words
        Number of embeddings.

    Raises
    ------
    ValueError
        If the rows have the wrong width, or contain an id without an embedding.
    """
    width = {"window": config.context, "numbers": config.numbers}.get(config.input)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        sees = f"{width} {'numbers' if config.input == 'numbers' else 'words'}" if width else "rows of words"
        raise ValueError(f"contexts of the shape {rows.shape}, but the network sees {sees}")
    if config.input != "numbers":
        check_range("contexts", rows, words, 0 if config.outputs is None else -1)


def check_range(name: str, ids: Array, limit: int, lowest: int = 0) -> None:
    """Raise a ValueError if a NumPy array of ids has an id below ``lowest``, or an id that is not below ``limit``.

    ``name`` is the name of the array in the message. Arrays on a GPU are not checked.
    """
    if isinstance(ids, np.ndarray) and ids.size and (ids.min() < lowest or ids.max() >= limit):
        raise ValueError(f"{name} from {ids.min()} to {ids.max()}, but the network has {lowest} to {limit - 1}")


def read(
    backend: Backend, config: NetworkConfig, embeddings: Array, rows: Array, weights: Array | None = None
) -> tuple[Array, Array | None]:
    """Return the input of the first layer.

    Parameters
    ----------
    backend, config
        The backend and the configuration of the network.
    embeddings
        The embeddings, (V + 1, m); None if the input is numbers.
    rows
        For ``window``, the context words, (B, n) int32, where a classifier may use -1 for places without a word. For ``mean`` and
        ``max``, the words of texts, (B, L) int32, padded with -1. For ``numbers``, the features, (B, I) floats.
    weights
        The weights of words in averages, (V + 1,); None if all are 1.

    Returns
    -------
    inputs
        The input, (B, I) in the dtype of the embeddings; if it is numbers, ``rows`` itself.
    sources
        For max pooling, the words whose embeddings have the maxima, (B, I) int32, which `read_backward` needs; otherwise None.
    """
    if config.input == "numbers":
        return rows, None
    inputs = backend.empty((len(rows), config.inputs), embeddings.dtype)
    sources = None
    if config.input == "window":
        backend.gather(embeddings, rows, config.blocks, inputs, weights)
    elif config.input == "mean":
        backend.mean_pool(embeddings, rows, inputs)
    else:
        sources = backend.empty(inputs.shape, rows.dtype)
        backend.max_pool(embeddings, rows, inputs, sources)
    return inputs, sources


def read_backward(
    backend: Backend,
    config: NetworkConfig,
    rows: Array,
    sources: Array | None,
    d_inputs: Array,
    d_embeddings: Array,
    weighted: tuple[Array, Array, Array] | None = None,
) -> None:
    """Backpropagate through `read`: add the gradients of the embeddings, given d_inputs (B, I), to d_embeddings (V + 1, m).

    ``weighted`` is as for `Backend.scatter_add`.
    """
    if config.input == "window":
        backend.scatter_add(rows, config.blocks, d_inputs, d_embeddings, weighted)
    elif config.input == "mean":
        backend.mean_pool_backward(rows, d_inputs, d_embeddings)
    elif config.input == "max":
        backend.max_pool_backward(sources, d_inputs, d_embeddings)
