"""Drawings of networks: layers, units and weights. They need matplotlib, an optional dependency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fflm.backend.protocol import Array
from fflm.network.config import NetworkConfig
from fflm.network.parameters import Parameters
from fflm.plots import COLORS, new_figure, save_figure

UNITS = 8
"""Maximum number of units that are drawn of a layer; of a larger layer, the first units and the last one are drawn."""

LAYERS = 8
"""Maximum number of layers that are drawn; of a deeper network, the first and the last layers are drawn."""

LABELED = 12
"""Maximum number of connections between two layers that are labeled with their weights."""

COLUMN = 4.0
"""Distance between two layers in the drawing of a network; the distance between two units is 1."""

BOX = {"boxstyle": "round", "facecolor": "white", "edgecolor": "black"}
LABEL = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
"""The boxes around a vector of words, and behind a weight that is written on its line."""

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def draw_network(
    config: NetworkConfig,
    path: Path,
    parameters: Parameters | None = None,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    overwrite: bool = True,
) -> str:
    """Draw a network: its layers, their units, and a line for each weight.

    Biases are drawn as the weights of a unit whose output is always +1. If there are few connections between two layers, they are
    labeled with their weights. In large layers and deep networks, some units and layers are left out.

    Parameters
    ----------
    config
        The network, such as ``config_`` of an estimator.
    parameters
        The weights as NumPy arrays, such as ``parameters_`` of an estimator. Positive weights are blue, negative ones red, and
        larger weights have thicker lines. Without parameters, all lines are gray; weights of embeddings are always gray.
    inputs, outputs
        Names of the features and of the outputs, if they have names.
    path, overwrite
        As for `fflm.plots.draw_curves`.

    Returns
    -------
    str
        As for `fflm.plots.draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, or the plot cannot be written.
    """
    layers = _layers(config, parameters, inputs, outputs)
    if len(layers) > LAYERS:
        gap = _Layer(f"{len(layers) - LAYERS + 1} more\nlayers", 0)
        layers = [*layers[: LAYERS - 4], gap, *layers[-3:]]
    rows = max(len(layer.places) for layer in layers) + 1  # one for +1
    width, low = COLUMN * (len(layers) - 1), -rows / 2
    figure = new_figure(path, 0.55 * (width + 5), 0.55 * (rows + 2.5 + 2 * config.direct))
    axes = figure.subplots()
    axes.set_axis_off()
    for place, layer in enumerate(layers):
        x = COLUMN * place
        axes.text(x, rows / 2 - 0.1, layer.title, ha="center", va="bottom", fontsize="small")
        _draw_units(axes, x, layer)
        if place and layer.count and layers[place - 1].count:
            _draw_connections(axes, x, layer, layers[place - 1], low)
    if config.direct and config.hidden:
        bend = {"arrowstyle": "->", "connectionstyle": "arc3,rad=0.2", "color": "gray"}
        axes.annotate("", (width, low - 0.5), (0, low - 0.5), arrowprops=bend)
        axes.text(width / 2, low - 0.1 * width - 0.6, "direct connections", ha="center", va="top", color="gray", fontsize="small")
        low -= 0.1 * width + 0.8
    if parameters is not None:
        _add_weight_legend(figure)
    axes.set(aspect="equal", xlim=(-2.5, width + 2.5), ylim=(low - 0.6, rows / 2 + 1))
    return save_figure(figure, path, overwrite)


def _add_weight_legend(figure: Any) -> None:
    """Add a legend of the colors of positive and negative weights below the axes."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2) for color in COLORS[:2]]
    names = ("positive weight", "negative weight")
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize="small")


@dataclass(frozen=True)
class _Layer:
    """A layer in the drawing of a network.

    Attributes
    ----------
    title
        The text above it.
    count
        Number of units; none where layers are left out.
    symbol
        The text in a unit, before its number.
    texts
        Texts in place of that, in boxes, where the units are vectors.
    names
        Texts beside the units, or none.
    weight, bias
        The weights (units, units before) and biases (units,), None where they are not known.
    biased
        Whether there are biases.
    """

    title: str
    count: int
    symbol: str = ""
    texts: Sequence[str] = ()
    names: Sequence[str] = ()
    weight: Array | None = None
    bias: Array | None = None
    biased: bool = True

    @property
    def places(self) -> list[tuple[int | None, float]]:
        """The index and the height of each unit that is drawn, from the top; None stands for those that are left out."""
        units: list[int | None] = [*range(self.count)]
        if self.count > UNITS:
            units = [*range(UNITS - 3), None, self.count - 1]
        return [(unit, (len(units) - 1) / 2 - row) for row, unit in enumerate(units or [None])]


def _layers(config: NetworkConfig, parameters: Parameters | None, inputs: Sequence[str], outputs: Sequence[str]) -> list[_Layer]:
    """Return the layers of a network, for the arguments of `draw_network`."""
    numbers, size = config.input == "numbers", config.embedding
    if config.input == "window":
        averages = [f"mean of {words}" for words in reversed(config.averages)]
        texts = [*averages, *(f"w(t−{config.window - place})" for place in range(config.window))]
        layers = [_Layer(f"embeddings of words\n{size:,} numbers each", len(texts), texts=texts)]
    else:
        title = "input layer\n{:,} features" if numbers else f"{config.input} of the embeddings\n{{:,}} numbers"
        layers = [_Layer(title.format(config.inputs), config.inputs, "x", names=inputs)]
    for number, (units, activation) in enumerate(zip(config.hidden, config.activations, strict=True)):
        title = "hidden layer" if len(config.hidden) == 1 else f"hidden layer {number + 1}"
        note = ", residual" if config.residual and number else ""
        layer = _Layer(f"{title}\n{_units(units)}, {activation}{note}", units, "h")
        if parameters is not None:
            layer = replace(layer, weight=parameters.hidden_weights[number], bias=parameters.hidden_biases[number])
        layers.append(layer)
    if config.projected:
        weight = None if parameters is None else parameters.projection
        layers.append(_Layer(f"projection\n{_units(size)}, linear", size, "z", weight=weight, biased=False))
    notes = [config.output, *["tied"] * config.tied, *["adaptive"] * bool(config.bands)]
    layer = _Layer(f"output layer\n{_units(config.classes)}, {', '.join(notes)}", config.classes, "y", names=outputs)
    if parameters is not None and not config.bands:
        layer = replace(layer, weight=parameters.softmax_weight, bias=parameters.output_bias)
    return [*layers, layer]


def _units(count: int) -> str:
    """Return a number of units in words."""
    return "1 unit" if count == 1 else f"{count:,} units"


def _draw_units(axes: Any, x: float, layer: _Layer) -> None:
    """Draw the units of a layer at x, and their names to the left of the first and to the right of other layers."""
    for unit, y in layer.places:
        if unit is None:
            axes.text(x, y, "⋮" if layer.count else "⋯", ha="center", va="center", fontsize="x-large")
            continue
        if layer.texts:
            axes.text(x, y, layer.texts[unit], ha="center", va="center", fontsize="small", bbox=BOX, zorder=3)
        else:
            axes.plot(x, y, "o", color="black", markerfacecolor="white", markersize=20, zorder=2)
            text = layer.symbol + str(unit + 1).translate(SUBSCRIPTS)
            axes.text(x, y, text, ha="center", va="center", fontsize="x-small" if len(text) > 3 else "small", zorder=3)
        if layer.names:
            side, align = (1, "left") if x else (-1, "right")
            axes.text(x + 0.5 * side, y, layer.names[unit], ha=align, va="center", fontsize="small")


def _draw_connections(axes: Any, x: float, layer: _Layer, before: _Layer, low: float) -> None:
    """Draw the weights of a layer at x, by which it reads the layer before, and its biases, those of a unit at the height low."""
    units = [(unit, y) for unit, y in layer.places if unit is not None]
    sources = [(source, y) for source, y in before.places if source is not None]
    weight = None if before.texts else layer.weight
    columns = [(y, None if weight is None else weight[:, source]) for source, y in sources]
    if layer.biased:
        axes.plot(x - COLUMN, low, "o", color="silver", markerfacecolor="white", markersize=20, zorder=2)
        axes.text(x - COLUMN, low, "+1", ha="center", va="center", fontsize="small", color="gray", zorder=3)
        columns.append((low, None if weight is None else layer.bias))
    largest = max((np.abs(weights).max() for _, weights in columns if weights is not None), default=1.0) or 1.0
    for height, weights in columns:
        for unit, y in units:
            value = math.nan if weights is None else float(weights[unit])
            color = COLORS[value < 0] if abs(value) > 0 else "silver"
            width = 0.7 if weights is None else 0.3 + 2.7 * abs(value) / largest
            axes.plot((x - COLUMN, x), (height, y), color=color, linewidth=width, zorder=1)
            if weights is not None and len(columns) * len(units) <= LABELED:
                place = x - 0.7 * COLUMN, height + 0.3 * (y - height)
                axes.text(*place, f"{value:.3g}", ha="center", va="center", fontsize="x-small", zorder=2, bbox=LABEL)
