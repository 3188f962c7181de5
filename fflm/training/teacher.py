"""A teacher: trained networks whose distributions replace a share of the targets (Hinton et al. 2015).

The cross-entropy is then that with the target (1 - w) onehot + w q, where q is the teacher's distribution, that of a network or
the mixture of several, without dropout. With a sampled loss, q is what the student's distribution is in that loss: the softmax
over the words of the sample, from each of whose scores the same offset is subtracted. Thus it is a function of the scores of the
same words, its cost does not grow with the vocabulary, and the student's loss is least where its scores are the teacher's. Of
a mixture it is the mean of such distributions, in place of that of the mixture over the sample, which would need all words.

Letters in the shapes: B rows of a batch, n context words of a network of the teacher, H inputs of its softmax, V vocabulary size,
R words of a sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fflm.backend.protocol import Array, Backend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.output import with_offsets
from fflm.network.parameters import Parameters
from fflm.training.examples import Examples


@dataclass(frozen=True)
class TeacherNetwork:
    """A network of a teacher.

    Attributes
    ----------
    share
        Its share of the target's probability; those of all networks add up to w.
    config, parameters
        Its configuration, whose output is a softmax without bands, and its weights, in main memory.
    """

    share: float
    config: NetworkConfig
    parameters: Parameters


@dataclass(frozen=True)
class TeacherModel:
    """A teacher in main memory.

    Attributes
    ----------
    about
        What config.json says of it.
    networks
        Its networks.
    """

    about: dict[str, Any]
    networks: tuple[TeacherNetwork, ...]


class Teacher:
    """The networks of a teacher on a device, with the examples that they predict.

    Parameters
    ----------
    networks
        The networks.
    examples
        The training examples of the student as each network reads them, with contexts of its own length.
    backend
        The backend of the student.
    """

    def __init__(self, networks: Sequence[TeacherNetwork], examples: Sequence[Examples], backend: Backend) -> None:
        self._backend = backend.full_precision
        self._networks = [
            (each.share, Network(each.config, self._backend), each.parameters.mapped(self._backend.upload), own)
            for each, own in zip(networks, examples, strict=True)
        ]

    def predictions(
        self, positions: Array, words: Array | None, offsets: Array | None
    ) -> Callable[[slice], Iterator[tuple[float, Array]]]:
        """Return the function that `fflm.network.output.Objective.teacher` is, for the rows of a batch.

        Parameters
        ----------
        positions
            The positions of the examples, (B,).
        words
            The words over which the softmax is computed, (R,) int32; None for all words.
        offsets
            What is added to their scores, (R,) in the dtype of the network; None for nothing.
        """
        upload = self._backend.upload
        contexts = [upload(np.ascontiguousarray(examples.batch(positions)[0])) for *_, examples in self._networks]
        rows_of_words = None if words is None else upload(np.ascontiguousarray(words[:, None]))

        def predict(rows: slice) -> Iterator[tuple[float, Array]]:
            for (share, network, parameters, _), own in zip(self._networks, contexts, strict=True):
                weight, bias = self._layer(parameters, rows_of_words, offsets)
                hidden = network.read(parameters, own[rows])
                logs = self._backend.empty((len(hidden), len(bias)), hidden.dtype)
                self._backend.log_probabilities(hidden, weight, bias, logs)
                yield share, logs

        return predict

    def _layer(self, parameters: Parameters, words: Array | None, offsets: Array | None) -> tuple[Array, Array]:
        """Return the weights (R, H) and the biases (R,) of words (R, 1), or of all words, the biases plus the offsets."""
        weight, bias = parameters.softmax_weight, parameters.output_bias
        if words is not None:
            whole_weight, whole_bias = weight, bias.reshape(-1, 1)
            weight = self._backend.empty((len(words), whole_weight.shape[1]), whole_weight.dtype)
            chosen = self._backend.empty((len(words), 1), whole_bias.dtype)
            self._backend.gather(whole_weight, words, (1,), weight)
            self._backend.gather(whole_bias, words, (1,), chosen)
            bias = chosen.reshape(-1)
        return weight, bias if offsets is None else with_offsets(self._backend, bias, offsets)
