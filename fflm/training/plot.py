"""Training curves, drawn from logs. Needs matplotlib, which only those install who draw."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fflm.errors import FflmError
from fflm.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito 2008)."""

CAPTION = 150
"""Characters a line of the captions."""


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], captions: Sequence[str], path: Path) -> None:
    """Draw perplexity and learning rate of one or several runs over the words that they were trained on.

    Parameters
    ----------
    runs
        The log of each run, as `fflm.training.log.read_log` gives it, by the run's name.
    captions
        What perplexities mean nothing without, for each run; written below the curves.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the picture cannot be written.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise FflmError(f"cannot draw {path}: let its name end in .png, .svg or .pdf")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter
    except ImportError as error:
        raise FflmError('plots need matplotlib: install it with `pip install "fflm[plot]"`') from error

    figure = Figure(figsize=(8, 5.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for index, (name, log) in enumerate(runs.items()):
        _draw_run(upper, lower, name, log, COLOURS[index % len(COLOURS)], alone=len(runs) == 1)

    upper.set_title(f"Training of {next(iter(runs))}" if len(runs) == 1 else f"Training of {len(runs)} models")
    upper.set_ylabel("perplexity (log scale)")
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    upper.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    upper.yaxis.set_minor_formatter(NullFormatter())
    upper.legend(frameon=False)
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("tokens trained on")
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set_xlim(left=0)
    figure.supxlabel("\n".join(line for caption in captions for line in textwrap.wrap(caption, CAPTION)), fontsize="x-small")
    if len(runs) == 1:
        tokens = next(iter(runs.values()))[0]["text"]["parts"]["train"]["tokens"]
        epochs = upper.secondary_xaxis("top", functions=(lambda x: x / tokens, lambda x: x * tokens))
        epochs.set_xlabel("epochs")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _draw_run(upper: Any, lower: Any, name: str, log: Sequence[Mapping[str, Any]], colour: str, *, alone: bool) -> None:
    """Draw the curves of a run into the axes of perplexity and of the rate."""
    evaluations = [event for event in log if event["event"] == "evaluation"]
    if not evaluations:
        raise FflmError(f"{name} was not evaluated yet, so there is nothing to draw: let it train for longer")
    words = [event["words"] for event in evaluations]
    prefix = "" if alone else f"{name}, "
    marker = "." if len(words) <= 50 else ""
    training = [math.exp(event["train_loss"]) for event in evaluations]
    upper.plot(words, training, color=colour, linestyle="--", marker=marker, linewidth=1, label=f"{prefix}training")
    measured = [event for event in evaluations if event["valid"]]
    if measured:
        x, y = [event["words"] for event in measured], [event["valid"]["perplexity"] for event in measured]
        upper.plot(x, y, color=colour, marker=marker, linewidth=2, label=f"{prefix}validation")
        best = min(range(len(y)), key=y.__getitem__)
        epochs = x[best] / log[0]["text"]["parts"]["train"]["tokens"]
        bits = measured[best]["valid"]["bits_per_character"]
        label = f"{prefix}best: {y[best]:.1f}, {bits:.3f} bits per character, after {epochs:.3g} epochs"
        upper.plot(
            x[best],
            y[best],
            color=colour,
            marker="*",
            markersize=16,
            markeredgecolor="white",
            linestyle="",
            zorder=3,
            label=label,
        )
    lower.plot(words, [event["rate"] for event in evaluations], color=colour, marker=marker, linewidth=1)
