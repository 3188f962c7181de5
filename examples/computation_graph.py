"""Computation graphs: values go forward along the edges, and gradients come back by the chain rule.

A node has a value, inputs, and local gradients, which are the derivatives of its value with respect to each input. In the forward
pass, each node is computed after its inputs, in topological order. In the backward pass, nodes are visited in the reverse order,
and

    downstream gradient = upstream gradient x local gradient
    dL/d(input)         = dL/d(node)        x d(node)/d(input),    added up over all nodes that read the input

There are two graphs, as in Jurafsky & Martin, Speech and Language Processing, 3rd ed., chapter "Neural Networks": L = c (a + 2b)
at a = 3, b = 1, c = -2; and a network with two inputs, two hidden ReLU units, a sigmoid output and the binary cross-entropy,

    z_j  = w_j1 x1 + w_j2 x2 + b_j,  h_j = ReLU(z_j)
    yhat = sigmoid(u1 h1 + u2 h2 + c)
    L    = CE(yhat, y) = -(y log yhat + (1 - y) log(1 - yhat))

whose loss and gradients are compared with the library's.

    python examples/computation_graph.py [--plot FILE.png]
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fflm.backend.cpu.backend import CpuBackend
from fflm.network.config import NetworkConfig
from fflm.network.feedforward import Network
from fflm.network.parameters import Parameters

NETWORK = {
    "x": np.array([1.0, 2.0]),
    "y": 1.0,
    "w": np.array([[0.5, 0.25], [-0.5, 0.75]]),
    "b": np.array([0.5, -0.5]),
    "u": np.array([0.5, -1.5]),
    "c": 0.5,
}
# The column and the row of each node in the picture.
SMALL_PLACES = {"a": (0, 0), "b": (0, 1), "c": (0, 2), "d": (1, 1), "e": (2, 0.5), "L": (3, 1)}
NETWORK_PLACES = {
    "w11": (0, 0.5),
    "x1": (0, 1.5),
    "w21": (0, 2.5),
    "w12": (0, 3.5),
    "x2": (0, 4.5),
    "w22": (0, 5.5),
    "b1": (1.2, 0),
    "p11": (1.2, 1),
    "p21": (1.2, 2),
    "p12": (1.2, 4),
    "p22": (1.2, 5),
    "b2": (1.2, 6),
    "z1": (2.4, 1),
    "z2": (2.4, 5),
    "u1": (3.4, 0),
    "h1": (3.4, 1),
    "h2": (3.4, 5),
    "u2": (3.4, 6),
    "q1": (4.5, 1),
    "c": (4.5, 3),
    "q2": (4.5, 5),
    "z": (5.5, 3),
    "yhat": (6.5, 3),
    "L": (7.5, 3),
}


@dataclass(eq=False)
class Node:
    """A number, how it was computed, and its gradient dL/d(node), which `backward` computes."""

    name: str
    formula: str
    value: float
    inputs: tuple["Node", ...] = ()
    local_gradients: tuple[float, ...] = ()
    gradient: float = 0.0


def leaf(name: str, value: float) -> Node:
    """Return a node without inputs."""
    return Node(name, "", float(value))


def times(name: str, a: Node, b: Node) -> Node:
    """Return the product of two nodes."""
    return Node(name, f"{a.name} {b.name}", a.value * b.value, (a, b), (b.value, a.value))


def plus(name: str, *terms: Node) -> Node:
    """Return the sum of nodes."""
    return Node(name, " + ".join(each.name for each in terms), sum(each.value for each in terms), terms, (1.0,) * len(terms))


def relu(name: str, z: Node) -> Node:
    """Return the ReLU of a node."""
    return Node(name, f"ReLU({z.name})", max(0.0, z.value), (z,), (1.0 if z.value > 0 else 0.0,))


def sigmoid(name: str, z: Node) -> Node:
    """Return the sigmoid of a node."""
    value = 1 / (1 + math.exp(-z.value))
    return Node(name, f"sigmoid({z.name})", value, (z,), (value * (1 - value),))


def cross_entropy(name: str, p: Node, y: float) -> Node:
    """Return the binary cross-entropy of a probability for the target y, 0 or 1."""
    value = -(y * math.log(p.value) + (1 - y) * math.log(1 - p.value))
    return Node(name, f"CE({p.name}, {y:g})", value, (p,), (-y / p.value + (1 - y) / (1 - p.value),))


def topological_order(loss: Node) -> list[Node]:
    """Return all nodes that lead to the loss, each after its inputs."""
    order: list[Node] = []

    def visit(node: Node) -> None:
        if node not in order:
            for each in node.inputs:
                visit(each)
            order.append(node)

    visit(loss)
    return order


def backward(loss: Node) -> None:
    """Compute the gradients of all nodes that lead to the loss, by the backward pass."""
    order = topological_order(loss)
    for node in order:
        node.gradient = 0.0
    loss.gradient = 1.0  # dL/dL
    for node in reversed(order):
        for each, local in zip(node.inputs, node.local_gradients, strict=True):
            each.gradient += node.gradient * local


def small_graph() -> Node:
    """Return L = c (a + 2b)."""
    a, b, c = leaf("a", 3), leaf("b", 1), leaf("c", -2)
    d = Node("d", "2b", 2 * b.value, (b,), (2.0,))
    e = plus("e", a, d)
    return times("L", c, e)


def network_graph(x: np.ndarray, y: float, w: np.ndarray, b: np.ndarray, u: np.ndarray, c: float) -> Node:
    """Return the loss of the network for an input x (2,) and a target y (0 or 1).

    The hidden layer has w (2, 2) and b (2,), the output layer u (2,) and c.
    """
    x1, x2 = leaf("x1", x[0]), leaf("x2", x[1])
    h = []
    for j in (1, 2):
        p1 = times(f"p{j}1", leaf(f"w{j}1", w[j - 1, 0]), x1)
        p2 = times(f"p{j}2", leaf(f"w{j}2", w[j - 1, 1]), x2)
        z = plus(f"z{j}", p1, p2, leaf(f"b{j}", b[j - 1]))
        h.append(relu(f"h{j}", z))
    q1, q2 = times("q1", leaf("u1", u[0]), h[0]), times("q2", leaf("u2", u[1]), h[1])
    yhat = sigmoid("yhat", plus("z", q1, q2, leaf("c", c)))
    return cross_entropy("L", yhat, y)


def by_the_library(
    x: np.ndarray, y: float, w: np.ndarray, b: np.ndarray, u: np.ndarray, c: float
) -> tuple[float, dict[str, float]]:
    """Return the loss of the same network, and its gradients by the names of the nodes, computed by the library."""
    config = NetworkConfig.feedforward(2, (2,), 1, activation="relu", output="sigmoid")
    arrays = {"hidden.0.weight": w, "hidden.0.bias": b, "output.weight": u.reshape(1, 2), "output.bias": np.array([c])}
    parameters, gradients, losses = Parameters.from_arrays(config, arrays), Parameters.zeros(config, np.float64), np.empty(1)
    Network(config, CpuBackend()).gradients(parameters, x.reshape(1, 2), np.array([[y]]), gradients, losses)
    names = ("w11", "w12", "w21", "w22", "b1", "b2", "u1", "u2", "c")  # in the order of the arrays
    return float(losses[0]), dict(zip(names, np.concatenate([array.ravel() for array in gradients]).tolist(), strict=True))


def print_graph(loss: Node) -> None:
    """Print the nodes in the order of the forward pass, and then the edges in the order of the backward pass."""
    order = topological_order(loss)
    print("forward")
    for node in order:
        print(f"{node.name:>6s} {'= ' + node.formula if node.inputs else '':18s}={node.value:9.4f}")
    print("backward           forward   backward = upstream x   local")
    for node in reversed(order):
        for each, local in zip(node.inputs, node.local_gradients, strict=True):
            edge = f"{each.value:9.4f}  {node.gradient * local:9.4f} ={node.gradient:9.4f} x{local:8.4f}"
            print(f"{each.name:>6s} -> {node.name:6s}{edge}")


def typeset(text: str) -> str:
    """Return a formula in matplotlib's notation."""
    text = re.sub(r"\b([a-z])(\d+)", r"\1_{\2}", text).replace("yhat", r"\hat{y}").replace("sigmoid", r"\sigma")
    return "$" + re.sub(r"(ReLU|CE)", r"\\mathrm{\1}", text) + "$"


def draw(axes: Any, loss: Node, places: dict[str, tuple[float, float]]) -> None:
    """Draw a box for each node, and on each edge the value that goes forward above the gradient that comes back."""
    from matplotlib.patches import Rectangle

    width, height = 1.3, 0.62
    at = {name: (2.3 * column, -row) for name, (column, row) in places.items()}

    def arrow(start: tuple[float, float], end: tuple[float, float], value: float, gradient: float) -> None:
        (x0, y0), (x1, y1) = (start[0] + width / 2, start[1]), (end[0] - width / 2, end[1])
        axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "fc": "black", "shrinkA": 0, "shrinkB": 0})
        angle = math.atan2(y1 - y0, x1 - x0)
        share = 0.5 if abs(y1 - y0) < 2 else 0.6  # position of the label along the arrow; long arrows cross near the middle
        place = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        for number, side, color, style in ((value, 1, "#00558C", "normal"), (gradient, -1, "#B34700", "italic")):
            away = -8 * side * math.sin(angle), 8 * side * math.cos(angle)  # points
            axes.annotate(
                f"{number:.3g}".replace("-", "\N{MINUS SIGN}"),
                place,
                away,
                textcoords="offset points",
                ha="center",
                va="center",
                rotation_mode="anchor",
                rotation=math.degrees(angle),
                color=color,
                style=style,
                fontsize=10,
            )

    for node in topological_order(loss):
        x, y = at[node.name]
        face = "#eeeeee" if node.inputs else "white"
        axes.add_patch(Rectangle((x - width / 2, y - height / 2), width, height, fc=face, ec="black"))
        text = typeset(node.name) + (f" =\n{typeset(node.formula)}" if node.inputs else "")
        axes.text(x, y, text, ha="center", va="center", fontsize=10.5)
        for each, local in zip(node.inputs, node.local_gradients, strict=True):
            arrow(at[each.name], (x, y), each.value, node.gradient * local)
    x, y = at[loss.name]
    arrow((x, y), (x + 2.3, y), loss.value, loss.gradient)
    bottom = max(row for _, row in places.values())
    axes.set(aspect="equal", xlim=(-0.7, 18.9), ylim=(-bottom - 0.4, 0.4))
    axes.axis("off")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Computation graphs, forward and backward.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw both graphs")
    options = parser.parse_args(arguments)

    small = small_graph()
    backward(small)
    print("L = c (a + 2b)\n")
    print_graph(small)
    print("\n" + ", ".join(f"dL/d{node.name} = {node.gradient:g}" for node in topological_order(small)))

    network = network_graph(**NETWORK)
    backward(network)
    print("\n\nTwo inputs, two hidden ReLU units, a sigmoid output, cross-entropy\n")
    print_graph(network)
    loss, gradients = by_the_library(**NETWORK)
    print(f"\n          by the graph  by the library\nL      {network.value:15.10f} {loss:15.10f}")
    found = {node.name: node.gradient for node in topological_order(network)}
    for name, gradient in gradients.items():
        print(f"dL/d{name:3s}{found[name]:15.10f} {gradient:15.10f}")

    if options.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(18, 9.6), dpi=110, layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(2.8, 6.8))
        draw(upper, small, SMALL_PLACES)
        draw(lower, network, NETWORK_PLACES)
        upper.set_title("$L = c\\,(a + 2b)$", loc="left", fontsize=14)
        lower.set_title("two inputs, two hidden ReLU units, a sigmoid output, cross-entropy", loc="left", fontsize=14)
        legend = "above an edge: the value that goes forward\nbelow it, slanted: the gradient that comes back, upstream × local"
        upper.text(10.2, -1, legend, fontsize=12, va="center", linespacing=1.6)
        figure.savefig(options.plot)


if __name__ == "__main__":
    main()
