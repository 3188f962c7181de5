"""Training curves, drawn from logs, and the trials of a search. Needs matplotlib, which only those install who draw."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fflm.errors import FflmError
from fflm.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito 2008)."""

STAR: dict[str, Any] = {"marker": "*", "markersize": 16, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
"""What marks the best."""

CAPTION = 150
"""Characters a line of the captions."""

PANELS = 3
"""Panels beside each other in the picture of a search."""


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
    alone = len(runs) == 1
    figure = _figure(path, 8, 5.5 if alone else 5 + 0.9 * len(runs))
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for index, (name, log) in enumerate(runs.items()):
        _draw_run(upper, lower, name, log, COLOURS[index % len(COLOURS)], alone=alone)

    upper.set_ylabel("perplexity (log scale)")
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    upper.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    upper.yaxis.set_minor_formatter(NullFormatter())
    if alone:
        upper.set_title(f"Training of {next(iter(runs))}")
        upper.legend(frameon=False)
    else:  # too many entries for a place between the curves
        title = f"Training of {len(runs)} models"
        figure.legend(loc="outside upper center", frameon=False, fontsize="small", title=title, title_fontsize="large")
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("tokens trained on")
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set_xlim(left=0)
    figure.supxlabel("\n".join(line for caption in captions for line in textwrap.wrap(caption, CAPTION)), fontsize="x-small")
    if alone:
        tokens = next(iter(runs.values()))[0]["text"]["parts"]["train"]["tokens"]
        epochs = upper.secondary_xaxis("top", functions=(lambda x: x / tokens, lambda x: x * tokens))
        epochs.set_xlabel("epochs")
    _save(figure, path)


def draw_classifiers(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw loss, accuracy and macro F1 of the training of classifiers over epochs.

    Parameters
    ----------
    runs, path
        As for `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the picture cannot be written.
    """
    figure = _figure(path, 8, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for index, (name, log) in enumerate(runs.items()):
        evaluations = _evaluations(name, log)
        colour, prefix = COLOURS[index % len(COLOURS)], "" if len(runs) == 1 else f"{name}, "
        epochs = [event["words"] / log[0]["texts"]["train"]["texts"] for event in evaluations]
        losses = [event["train_loss"] for event in evaluations]
        upper.plot(epochs, losses, color=colour, linestyle="--", marker=".", linewidth=1, label=f"{prefix}training")
        if evaluations[0]["valid"]:
            valid = [event["valid"] for event in evaluations]
            best = min(range(len(valid)), key=lambda place: valid[place]["loss"])
            for axes, key, style, label in (
                (upper, "loss", "-", "validation"), (lower, "accuracy", "-", "accuracy"), (lower, "macro_f1", ":", "macro F1"),
            ):  # fmt: skip
                values = [figures[key] for figures in valid]
                axes.plot(epochs, values, color=colour, linestyle=style, marker=".", label=f"{prefix}{label}")
                if key != "macro_f1":
                    axes.plot(epochs[best], values[best], label=f"{prefix}best: {values[best]:.4g}", color=colour, **STAR)
    upper.set_title(f"Training of {next(iter(runs))}" if len(runs) == 1 else f"Training of {len(runs)} classifiers")
    upper.set_ylabel("loss, nats a text")
    upper.set_ylim(bottom=0)
    lower.set_ylabel("on the validation texts")
    lower.set_xlabel("epochs")
    lower.set_xlim(left=0)
    for axes in (upper, lower):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    _save(figure, path)


def draw_trials(
    name: str, trials: Sequence[Mapping[str, Any]], scales: Mapping[str, str | Sequence[str]], caption: str, path: Path
) -> None:
    """Draw the validation perplexity of the trials of a search, in their order and over each setting that was searched.

    Parameters
    ----------
    name
        Of the search.
    trials
        Their ``number``, ``state`` ("complete" or otherwise), ``perplexity`` or None, and ``values``, by the setting's name, as
        numbers or as one of the choices.
    scales
        Of each setting that was searched: ``"log"``, ``"linear"``, or its choices.
    caption
        What perplexities mean nothing without.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Raises
    ------
    FflmError
        If matplotlib is missing, there is no trial to draw, or the picture cannot be written.
    """
    drawn = [trial for trial in trials if trial["perplexity"] is not None]
    complete = [trial for trial in drawn if trial["state"] == "complete"]
    if not complete:
        raise FflmError(f"{name} has no complete trial yet, so there is nothing to draw: let it run for longer")
    rows = -(-len(scales) // PANELS)
    columns = -(-len(scales) // rows)
    figure = _figure(path, 8, 3 + 2.2 * rows)
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    grid = figure.add_gridspec(1 + rows, columns, height_ratios=(1.4, *[1] * rows))
    upper = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1 + i // columns, i % columns], sharey=upper) for i in range(len(scales))]
    best = min(complete, key=lambda trial: trial["perplexity"])
    others = [trial for trial in drawn if trial["state"] != "complete"]
    for axes, setting in zip((upper, *panels), (None, *scales), strict=True):
        for group, style, label in (
            (complete, {"marker": "o", "color": COLOURS[0], "alpha": 0.8}, "complete"),
            (others, {"marker": "x", "color": COLOURS[1], "alpha": 0.8}, "given up"),
            (
                [best],
                {"marker": "*", "color": COLOURS[2], "s": 200, "edgecolor": "white"},
                f"best: trial {best['number']}, {best['perplexity']:,.1f}",
            ),
        ):
            x = [trial["number"] if setting is None else _place(trial["values"][setting], scales[setting]) for trial in group]
            y = [trial["perplexity"] for trial in group]
            axes.scatter(x, y, **{"s": 25, "zorder": 3, "label": label, **style})
    steps = [min(trial["perplexity"] for trial in complete[: i + 1]) for i in range(len(complete))]
    numbers = [trial["number"] for trial in complete]
    upper.step([*numbers, trials[-1]["number"]], [*steps, steps[-1]], where="post", color=COLOURS[2], label="best so far")
    figure.suptitle(f"Search in {name}")
    upper.legend(frameon=False, ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    upper.set_ylabel("validation perplexity\n(log scale)")
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(MaxNLocator(5))
    upper.yaxis.set_major_formatter(StrMethodFormatter("{x:,.5g}"))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.set_xlabel("trial")
    for axes, (setting, scale) in zip(panels, scales.items(), strict=True):
        axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
        axes.set_xlabel(setting.replace("_", " ") + (" (log scale)" if scale == "log" else ""))
        if isinstance(scale, str):
            axes.set_xscale(scale)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if scale == "log" else MaxNLocator(5))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xticks(range(len(scale)), scale)
            axes.set_xlim(-0.5, len(scale) - 0.5)
    figure.supxlabel(caption, fontsize="x-small")
    _save(figure, path)


def draw_speeds(rows: Sequence[Mapping[str, Any]], devices: Mapping[str, str], path: Path) -> None:
    """Draw tokens a second over the size of the vocabulary, a line for each device, hidden size and batch size.

    Parameters
    ----------
    rows
        ``vocabulary``, ``hidden``, ``batch``, ``device`` and ``tokens_per_second`` of each measurement.
    devices
        What each device is called.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Raises
    ------
    FflmError
        If matplotlib is missing, or the picture cannot be written.
    """
    figure = _figure(path, 8, 5)
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes = figure.subplots()
    shapes = sorted({(row["hidden"], row["batch"]) for row in rows})
    for style, (device, name) in zip(("-o", "--s"), devices.items(), strict=False):
        for index, (hidden, batch) in enumerate(shapes):
            own = [row for row in rows if (row["device"], row["hidden"], row["batch"]) == (device, hidden, batch)]
            places = [row["vocabulary"] for row in own], [row["tokens_per_second"] for row in own]
            axes.plot(*places, style, color=COLOURS[index % len(COLOURS)], label=f"{name}, hidden {hidden:,}, batch {batch:,}")
    axes.set_title("Training steps")
    for axis, label in ((axes.xaxis, "words in the vocabulary"), (axes.yaxis, "tokens a second")):
        axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}label": f"{label} (log scale)"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize="small")
    _save(figure, path)


def _place(value: Any, scale: str | Sequence[str]) -> Any:
    """Return where a value is drawn."""
    return value if isinstance(scale, str) else scale.index(value)


def check_picture(path: Path) -> None:
    """Raise an FflmError if no picture can be drawn under that name, or nothing can be drawn."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise FflmError(f"cannot draw {path}: let its name end in .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        raise FflmError('plots need matplotlib: install it with `pip install "fflm[plot]"`')


def _figure(path: Path, width: float, height: float) -> Any:
    """Return an empty picture, in inches."""
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    """Give all axes the same look, and write the picture."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of files that are not UTF-8 cannot be drawn as they are
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _evaluations(name: str, log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the evaluations in a run's log, of which there must be one."""
    evaluations = [event for event in log if event["event"] == "evaluation"]
    if not evaluations:
        raise FflmError(f"{name} was not evaluated yet, so there is nothing to draw: let it train for longer")
    return evaluations


def _draw_run(upper: Any, lower: Any, name: str, log: Sequence[Mapping[str, Any]], colour: str, *, alone: bool) -> None:
    """Draw the curves of a run into the axes of perplexity and of the rate."""
    evaluations = _evaluations(name, log)
    words = [event["words"] for event in evaluations]
    prefix = "" if alone else f"{name}, "
    marker = "." if len(words) <= 50 else ""
    exact = [event for event in evaluations if event.get("exact", True)]
    if exact:
        x, y = [event["words"] for event in exact], [math.exp(event["train_loss"]) for event in exact]
        upper.plot(x, y, color=colour, linestyle="--", marker=marker, linewidth=1, label=f"{prefix}training")
    measured = [event for event in evaluations if event["valid"]]
    if measured:
        x, y = [event["words"] for event in measured], [event["valid"]["perplexity"] for event in measured]
        upper.plot(x, y, color=colour, marker=marker, linewidth=2, label=f"{prefix}validation")
        best = min(range(len(y)), key=y.__getitem__)
        epochs = x[best] / log[0]["text"]["parts"]["train"]["tokens"]
        bits = measured[best]["valid"]["bits_per_character"]
        label = f"{prefix}best: {y[best]:.1f}, {bits:.3f} bits per character, after {epochs:.3g} epochs"
        upper.plot(x[best], y[best], color=colour, label=label, **STAR)
    lower.plot(words, [event["rate"] for event in evaluations], color=colour, marker=marker, linewidth=1)
