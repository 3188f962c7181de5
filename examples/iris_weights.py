"""The iris network of a lecture: with the weights that are printed there, it computes the probabilities that are printed there.

    h = sigmoid(x W1 + b1)        W1 (4, 6), x in centimeters
    p = softmax(h W2 + b2)        W2 (6, 3)

In the lecture, vectors are rows, so its matrices are the transposes of those of the library. The six flowers are those of
iris.py. 17 of the 18 printed probabilities agree with the library's to 1e-6. The first one does not: it is printed as
9.9998450e-01, with which its row adds up to 0.999986 and not to 1. The library computes 0.99999841, so a digit 9 is missing in
print.

The number of hidden units follows a rule of thumb of the lecture: sqrt(n + m) + a for n inputs and m outputs, with a from 1 to
10; here, sqrt(4 + 3) + 3 is about 6. Such a rule is only a starting point for a search.

    python examples/iris_weights.py [--plot FILE.png]
"""

import argparse
from pathlib import Path

import numpy as np
from iris import CLASSES, FLOWERS

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

W1 = np.array(
    [
        [-0.92051142, -0.26299602, -1.31182587, -0.01975909, -0.59453297, -1.11046791],
        [-0.28832591, -1.20107734, -0.9193843, 2.20059323, -1.76573455, -0.85953856],
        [-2.33936191, 2.61448216, -0.70324481, -2.55568218, 2.42951894, -1.61432779],
        [-2.24077463, 2.89018154, 0.49342883, -2.72368193, 4.8323493, 1.31086338],
    ]
)
B1 = np.array([-2.00212002, -2.24461389, -0.26081288, 0.61751789, -11.42080021, -0.88119394])
W2 = np.array(
    [
        [-0.47563726, -0.80865479, -1.70860052],
        [-4.02558851, 4.80955172, 1.79265082],
        [0.18003793, 0.4045147, 0.40952846],
        [8.4482317, -6.87298441, -4.0685277],
        [-2.96541858, -5.34733152, 11.1489048],
        [0.08154635, 0.21151544, -0.45402744],
    ]
)
B2 = np.array([0.90756476, 2.25174689, -2.58430076])
PRINTED = np.array(
    [
        [9.9998450e-01, 1.42261445e-06, 1.62947060e-07],
        [9.99949336e-01, 4.81077950e-05, 2.52183918e-06],
        [4.37718809e-05, 9.98948872e-01, 1.00730266e-03],
        [4.63805227e-05, 9.98428643e-01, 1.52486726e-03],
        [8.70701982e-08, 2.18645262e-04, 9.99781311e-01],
        [2.09509579e-07, 6.10101502e-04, 9.99389648e-01],
    ]
)
AGREE = 1e-6


def network() -> tuple[Network, Parameters]:
    """Return the network and the lecture's weights."""
    config = NetworkConfig.feedforward(4, (6,), 3, activation="sigmoid")
    arrays = {"hidden.0.weight": W1.T, "hidden.0.bias": B1, "output.weight": W2.T, "output.bias": B2}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return Network(config, CpuBackend()), Parameters.from_arrays(config, arrays)


def probabilities() -> np.ndarray:
    """Return the probabilities of the three classes for the six flowers, (6, 3), computed by the library."""
    own, parameters = network()
    return own.predict(parameters, FLOWERS)


def draw(path: Path) -> None:
    """Draw the network with its weights."""
    from fflm.drawing import draw_network

    own, parameters = network()
    lengths = ("sepal length", "sepal width", "petal length", "petal width")
    draw_network(own.config, path, parameters, inputs=lengths, outputs=list(CLASSES.values()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A lecture's iris network with its printed weights.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the network with its weights")
    options = parser.parse_args(arguments)

    found = probabilities()
    right = np.abs(found - PRINTED) < AGREE
    print(f"{'flower':>10s}{'class':>12s}{'p, by the library':>18s}{'p, as printed':>18s}{'difference':>12s}")
    for flower, (row, printed) in enumerate(zip(found, PRINTED, strict=True)):
        for name, p, other, agrees in zip(CLASSES.values(), row, printed, right[flower], strict=True):
            note = "" if agrees else "  <- a misprint"
            print(f"{flower + 1:10d}{name:>12s}{p:18.8e}{other:18.8e}{abs(p - other):12.0e}{note}")
    print(f"\n{right.sum()} of {right.size} printed numbers agree to {AGREE:.0e}")
    sums = PRINTED.sum(1)
    print(f"The printed rows add up to {sums[0]:.6f}" + "".join(f", {each:.6f}" for each in sums[1:]))

    if options.plot:
        draw(options.plot)


if __name__ == "__main__":
    main()
