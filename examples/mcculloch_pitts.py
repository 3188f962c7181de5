"""The neuron of McCulloch and Pitts (1943), which computes logical functions.

It has excitatory and inhibitory inputs, which are 0 or 1, and a threshold. Nothing is learned; the connections are chosen by
hand. The neuron fires, which means that its output is 1, if

    no inhibitory input is 1, and the number of excitatory inputs that are 1 is at least the threshold.

AND has the threshold 2, and OR the threshold 1; NOT has an inhibitory input and the threshold 0. Networks of such neurons compute
every function of propositional logic: there is a neuron for each true row of the truth table, which fires for this row only, and
a neuron with the threshold 1 that reads all of them. For XOR, these are "x2 and not x1", "x1 and not x2", and their OR.

The neuron is a perceptron (perceptrons.py) with fixed weights: 1 for each of n excitatory inputs, -(n + 1) for an inhibitory
input, so that the excitatory inputs cannot outweigh it, and the bias 1/2 - threshold.

    python examples/mcculloch_pitts.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from perceptrons import perceptron


@dataclass(frozen=True)
class Neuron:
    """A neuron. ``excitatory`` and ``inhibitory`` are the numbers of its inputs, from 0."""

    excitatory: tuple[int, ...]
    inhibitory: tuple[int, ...]
    threshold: int

    def fires(self, inputs: Sequence[int]) -> int:
        """Return 1 if the neuron fires for these inputs, else 0."""
        inhibited = any(inputs[number] for number in self.inhibitory)
        return int(not inhibited and sum(inputs[number] for number in self.excitatory) >= self.threshold)

    def as_perceptron(self, inputs: int) -> tuple[np.ndarray, float]:
        """Return the weights (inputs,) and the bias of the perceptron that computes the same function."""
        w = np.zeros(inputs)
        w[list(self.excitatory)] = 1
        w[list(self.inhibitory)] = -len(self.excitatory) - 1
        return w, 0.5 - self.threshold


NEURONS = {
    "x1 AND x2": Neuron((0, 1), (), 2),
    "x1 OR x2": Neuron((0, 1), (), 1),
    "NOT x1": Neuron((), (0,), 0),
    "x1 AND NOT x2": Neuron((0,), (1,), 1),
}


def rows(inputs: int) -> list[tuple[int, ...]]:
    """Return all rows of a truth table, from 00...0 to 11...1."""
    return list(product((0, 1), repeat=inputs))


def network(truth: Sequence[int], inputs: int) -> tuple[list[Neuron], Neuron]:
    """Return the hidden neurons and the output neuron of the network for a truth table.

    ``truth`` are the values of the function for all `rows`. There is a hidden neuron for each true row.
    """
    hidden = []
    for row, value in zip(rows(inputs), truth, strict=True):
        if value:
            ones = tuple(number for number, bit in enumerate(row) if bit)
            zeros = tuple(number for number, bit in enumerate(row) if not bit)
            hidden.append(Neuron(ones, zeros, len(ones)))
    return hidden, Neuron(tuple(range(len(hidden))), (), 1)


def compute(truth: Sequence[int], inputs: int) -> list[int]:
    """Return the outputs of the network for a truth table, for all rows of the table."""
    hidden, output = network(truth, inputs)
    return [output.fires([neuron.fires(row) for neuron in hidden]) for row in rows(inputs)]


def main() -> None:
    print("x1 x2" + "".join(f"{name:>15s}" for name in NEURONS))
    for row in rows(2):
        print(f"{row[0]:2d}{row[1]:3d}" + "".join(f"{neuron.fires(row):15d}" for neuron in NEURONS.values()))

    print("\nas perceptrons: weights and bias")
    for name, neuron in NEURONS.items():
        w, b = neuron.as_perceptron(2)
        same = perceptron(w, b, np.array(rows(2))).tolist() == [neuron.fires(row) for row in rows(2)]
        print(f"{name:>15s}  w = {w.tolist()}, b = {b}: the same in all 4 rows: {same}")

    xor = [0, 1, 1, 0]
    hidden, output = network(xor, 2)
    print("\nXOR: neurons that fire for one row only, and the OR of them\nx1 x2   h1   h2    y")
    for row in rows(2):
        h = [neuron.fires(row) for neuron in hidden]
        print(f"{row[0]:2d}{row[1]:3d}" + "".join(f"{each:5d}" for each in h) + f"{output.fires(h):5d}")

    print("\nfunctions that such networks compute")
    for inputs in (1, 2, 3):
        tables = list(product((0, 1), repeat=2**inputs))
        right = sum(compute(truth, inputs) == list(truth) for truth in tables)
        print(f"  {right:3d} of {len(tables):3d} with {inputs} input{'s' * (inputs > 1)}")


if __name__ == "__main__":
    main()
