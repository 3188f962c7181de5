"""The division of the words of a softmax among processes (Bengio et al. 2003, section 3).

Each process has a contiguous part of the rows of the output layer, with their gradients and moments. All other parameters are
the same in all processes, and each process computes the hidden layers for all rows of a batch. For each row, the processes
exchange the logarithms of the normalizers over their words, and sum the gradients of the hidden outputs. Nothing that they send
in a step grows with the vocabulary.

Letters in the shapes: B rows of a batch, V vocabulary size, n processes.
"""

import dataclasses

import numpy as np

from fflm.backend.protocol import Array
from fflm.network.config import NetworkConfig
from fflm.network.inputs import check_range
from fflm.network.parameters import Parameters
from fflm.parallel.communicator import Communicator, DividedRows


class Partition:
    """The words of which this process has the rows of the output layer; a `fflm.backend.protocol.SoftmaxPart`.

    Parameters
    ----------
    config
        The configuration of the network.
    communicator
        The processes that divide the words.

    Attributes
    ----------
    communicator
        As above.
    words, parts
        The number of words of the softmax [V], and of processes [n].
    own
        The words of this process.
    largest
        The number of words of the process that has the most.
    """

    def __init__(self, config: NetworkConfig, communicator: Communicator) -> None:
        self.communicator = communicator
        self.words, self.parts = config.classes, communicator.size
        self.own = communicator.share(self.words)
        self.largest = -(-self.words // self.parts)

    def own_targets(self, targets: Array) -> Array:
        """Return the indices of targets (T,) among the words of this process, (T,) int32; -1 for those of other processes.

        Raises
        ------
        ValueError
            If a target is not one of the words of the softmax.
        """
        check_range("targets", targets, self.words)
        found = (targets >= self.own.start) & (targets < self.own.stop)
        return np.where(found, targets - self.own.start, -1).astype(np.int32)

    def own_part(self, parameters: Parameters) -> Parameters:
        """Return the parameters of which this process has a part, given those of all words."""
        weight, bias = (array[self.own].copy() for array in self.divided(parameters))
        return dataclasses.replace(parameters, output_weight=weight, output_bias=bias)

    def whole(self, parameters: Parameters) -> Parameters:
        """Return the parameters of all words, given those of which this process has a part, as NumPy arrays.

        The arrays of which each process has a part are `DividedRows`.
        """
        weight, bias = (DividedRows(self.communicator, array, self.words) for array in self.divided(parameters))
        return dataclasses.replace(parameters, output_weight=weight, output_bias=bias)

    @staticmethod
    def divided(parameters: Parameters) -> list[Array]:
        """Return the arrays of which each process has a part."""
        return [parameters.output_weight, parameters.output_bias]

    @staticmethod
    def divides(name: str) -> bool:
        """Return whether each process has a part of the array of this name."""
        return name.startswith("output.")

    def common(self, parameters: Parameters) -> list[Array]:
        """Return the arrays that are the same in all processes."""
        return [array for name, array in parameters.items() if not self.divides(name)]

    def others(self, normalizers: Array) -> Array:
        """Exchange the logarithms of the normalizers: those over own words (B,) -> those of the others (n - 1, B), float64."""
        return np.delete(self.communicator.gather(normalizers.tolist()), self.communicator.rank, axis=0)

    def sum(self, values: Array) -> None:
        """Replace an array by its sum over all processes."""
        self.communicator.sum_arrays([values])
