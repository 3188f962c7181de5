"""Vectors of affixes, through which words with the same prefix, suffix or shape learn from each other.

In training, the embedding of a word is c + (a_1 + ... + a_k) / k: a vector c of its own plus the mean of the vectors of its
affixes, as in the additive models of Botha & Blunsom 2014 (https://arxiv.org/abs/1405.4273) and Bojanowski et al. 2017
(https://arxiv.org/abs/1607.04606). The sums are then the embeddings of the trained network, which thus costs no more than one
without affixes. Output weights that are tied to the embeddings are such sums, too.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from fflm.backend.protocol import Array, Backend
from fflm.network.parameters import Parameters


class AffixVectors:
    """The vectors of affixes as parts of the embeddings of words.

    Letters: V words, A affixes, K affixes of a word at most, m embedding dimension, R words of a subset.

    Parameters
    ----------
    of_words
        The numbers of the affixes of each word and of the padding, (V + 1, K) int32, with -1 after the last.
    width, dtype
        The dimension and the dtype of the embeddings.
    backend
        The backend of the network.

    Attributes
    ----------
    count
        Number of affixes [A].
    """

    def __init__(self, of_words: npt.NDArray[np.int32], width: int, dtype: type[np.floating], backend: Backend) -> None:
        self.count = int(of_words.max(initial=-1)) + 1
        self._of_words = np.pad(of_words, ((0, 1), (0, 0)), constant_values=-1)  # the last row is that of -1, which is no word
        self._all = backend.upload(of_words)
        self._sums = backend.empty((len(of_words), width), dtype)
        self._backend = backend

    def of(self, words: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the affixes (R, K) of words (R,); those of -1 are none."""
        return self._of_words[words]

    def summed(self, parameters: Parameters, affixes: Array | None = None) -> Parameters:
        """Return the parameters with which the network computes: with the sums of vectors as embeddings.

        Parameters
        ----------
        parameters
            The parameters that are trained.
        affixes
            If the embeddings are those of some words, the affixes (R, K) of these, on the device.
        """
        own = parameters.embeddings
        sums = self._sums[: len(own)]
        self._backend.mean_pool(parameters.affixes, self._all if affixes is None else affixes, sums)
        self._backend.add(own, sums)
        return dataclasses.replace(parameters, embeddings=sums, affixes=None)

    def backpropagate(self, gradients: Parameters, affixes: Array | None = None) -> None:
        """Backpropagate through `summed`: set the gradients of the affixes, given those of the embeddings."""
        self._backend.clear(gradients.affixes)
        rows = self._all if affixes is None else affixes
        self._backend.mean_pool_backward(rows, gradients.embeddings, gradients.affixes)
