"""Plots of training curves, searches and benchmarks. They need matplotlib, an optional dependency."""

import itertools
import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fflm.errors import FflmError, install
from fflm.files import replacing

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colors that color-blind people can distinguish, too (Okabe and Ito 2008, https://jfly.uni-koeln.de/color)."""

STAR: dict[str, Any] = {"marker": "*", "markersize": 16, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
"""Style of the marker of the best evaluation."""

CAPTION = 150
"""Maximum number of characters in a line of the captions."""

NAME = 50
"""Maximum number of characters of a name in a title or a legend; longer names are shortened."""

UNMEASURED = "no validation"
"""The label of a run that was never validated."""

LARGEST = 1e100
"""Values above this one, as in a run that diverges, and NaN are not drawn."""

LINE = 0.2
"""Height of a line of small text, inches."""

MANY = 6
"""Maximum number of runs that have a line of the legend each."""

PANELS = 3
"""Maximum number of panels beside each other in the plot of a search."""

CHARACTERS = 66
"""Number of characters of tick labels that fit below the panels beside each other."""


def draw_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], captions: Sequence[str], path: Path, *, overwrite: bool = True
) -> str:
    """Draw the perplexity and the learning rate of one or several training runs over the number of words trained on.

    Parameters
    ----------
    runs
        The log of each run, from `fflm.training.log.read_log`, by the name of the run.
    captions
        The evaluation conditions of the perplexities of each run, which are printed below the curves.
    path
        The file of the plot, whose suffix determines the format: .png, .svg or .pdf.
    overwrite
        Whether to replace an existing file.

    Returns
    -------
    str
        The characters that no installed font contains; they are drawn as boxes.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the plot cannot be written.
    """
    names_by_caption: dict[str, list[str]] = {}
    for name, caption in zip(runs, captions, strict=True):
        names_by_caption.setdefault(caption, []).append(name)
    footer = _wrapped(f"{', '.join(names)}: {caption}" for caption, names in names_by_caption.items())
    figure = new_figure(path, 8, 5.3 + _height(runs, footer))
    from matplotlib.ticker import EngFormatter, MaxNLocator

    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    best = {}
    for (name, log), color in zip(runs.items(), _colors(len(runs)), strict=True):
        best[name] = color, _draw_run(upper, lower, name, log, color)
    upper.set_ylabel("perplexity (log scale)")
    _logarithmic(upper.yaxis)
    _legend(figure, f"Training of {_title(runs, 'models')}", best, {"validation": "-", "training": "--"})
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("tokens trained on")
    lower.xaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set_xlim(left=0)
    figure.supxlabel(footer, fontsize="x-small")
    if len(runs) == 1:
        tokens = next(iter(runs.values()))[0]["text"]["parts"]["train"]["tokens"]
        epochs = upper.secondary_xaxis("top", functions=(lambda x: x / tokens, lambda x: x * tokens))
        epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        epochs.set_xlabel("epochs")
    return save_figure(figure, path, overwrite)


def draw_classifiers(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, overwrite: bool = True) -> str:
    """Draw the loss, accuracy and macro F1 of one or several training runs of classifiers over epochs.

    Parameters
    ----------
    runs, path, overwrite
        As for `draw_curves`.

    Returns
    -------
    str
        As for `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the plot cannot be written.
    """
    figure = new_figure(path, 8, 5.5 + _height(runs))
    from matplotlib.ticker import MaxNLocator

    upper, lower = figure.subplots(2, 1, sharex=True)
    labels = {}
    for (name, log), color in zip(runs.items(), _colors(len(runs)), strict=True):
        evaluations = _evaluations(name, log)
        texts = log[0]["texts"]["train"]["texts"]
        epochs = [event["words"] / texts for event in evaluations]
        _plot(upper, epochs, [event["train_loss"] for event in evaluations], color=color, linestyle="--", linewidth=1)
        measured = [event for event in evaluations if event["valid"] and event["valid"]["loss"] < LARGEST]
        label = UNMEASURED
        if measured:
            x, valid = [event["words"] / texts for event in measured], [event["valid"] for event in measured]
            best = min(range(len(valid)), key=lambda place: valid[place]["loss"])
            for axes, key, style in ((upper, "loss", "-"), (lower, "accuracy", "-"), (lower, "macro_f1", ":")):
                values = [figures[key] for figures in valid]
                _plot(axes, x, values, color=color, linestyle=style)
                if key != "macro_f1":
                    axes.plot(x[best], values[best], color=color, **STAR)
            label = f"loss {valid[best]['loss']:.4f}, accuracy {valid[best]['accuracy']:.2%}, after {_epochs(x[best])}"
        labels[name] = color, label
    styles = {"validation, accuracy": "-", "training": "--", "macro F1": ":"}
    _legend(figure, f"Training of {_title(runs, 'classifiers')}", labels, styles)
    upper.set_ylabel("loss, nats per text")
    upper.set_ylim(bottom=0)
    lower.set_ylabel("on the validation texts")
    lower.set_xlabel("epochs")
    lower.set_xlim(left=0)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, path, overwrite)


def draw_trials(
    name: str,
    trials: Sequence[Mapping[str, Any]],
    scales: Mapping[str, str | Sequence[str]],
    caption: str,
    path: Path,
    *,
    measure: Literal["perplexity", "loss"] = "perplexity",
    overwrite: bool = True,
) -> str:
    """Draw the validation perplexities (or losses) of the trials of a search, in order and over each setting that is searched.

    Parameters
    ----------
    name
        Name of the search.
    trials
        For each trial ``number``, ``state`` ("complete" or another one), ``perplexity`` (or ``loss``) or None, and ``values``:
        the value of each setting by name, a number or one of the choices.
    scales
        For each setting that is searched, ``"log"``, ``"linear"``, or its choices.
    caption
        The evaluation conditions of the perplexities, or the figures of the best model.
    measure
        What is drawn of each trial.
    path, overwrite
        As for `draw_curves`.

    Returns
    -------
    str
        As for `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, no trial is complete, or the plot cannot be written.
    """
    drawn = [trial for trial in trials if trial[measure] is not None and trial[measure] < LARGEST]
    complete = [trial for trial in drawn if trial["state"] == "complete"]
    if not complete:
        raise FflmError(f"{name} has no complete trial yet, so there is nothing to draw: let it run for longer")
    rows = -(-len(scales) // PANELS)
    columns = -(-len(scales) // rows)
    footer = _wrapped([caption])
    figure = new_figure(path, 8, 3 + 2.2 * rows + _height({}, footer))
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=(1.4, *[1] * rows))
    upper = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1 + i // columns, i % columns], sharey=upper) for i in range(len(scales))]
    _scatter(upper, drawn, [trial["number"] for trial in drawn], measure)
    for axes, (setting, scale) in zip(panels, scales.items(), strict=True):
        values = [trial["values"][setting] for trial in drawn]
        _scatter(axes, drawn, values if isinstance(scale, str) else [scale.index(value) for value in values], measure)
    _draw_progress(upper, complete, trials[-1]["number"], measure)
    handles, labels = upper.get_legend_handles_labels()
    _outside(figure, f"Search in {_short(name)}", handles, labels, columns=4)
    for axes, (setting, scale) in zip(panels, scales.items(), strict=True):
        axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
        axes.set_xlabel(setting.replace("_", " ") + (" (log scale)" if scale == "log" else ""))
        _scale(axes, scale, columns)
    figure.supxlabel(footer, fontsize="x-small")
    return save_figure(figure, path, overwrite)


def _scatter(axes: Any, trials: Sequence[Mapping[str, Any]], x: Sequence[float], measure: str) -> None:
    """Draw ``measure`` of trials over numbers x (N,), with a marker each for complete, incomplete and the best trials."""
    complete = [i for i, trial in enumerate(trials) if trial["state"] == "complete"]
    incomplete = [i for i, trial in enumerate(trials) if trial["state"] != "complete"]
    best = min(complete, key=lambda i: trials[i][measure])
    value = trials[best][measure]
    label = f"best: trial {trials[best]['number']}, {f'{value:,.1f}' if measure == 'perplexity' else f'{value:.4f}'}"
    groups: list[tuple[list[int], dict[str, Any]]] = [
        (complete, {"marker": "o", "color": COLORS[0], "alpha": 0.8, "label": "complete"}),
        (incomplete, {"marker": "x", "color": COLORS[1], "alpha": 0.8, "label": "incomplete"}),
        ([best], {"marker": "*", "color": COLORS[2], "s": 200, "edgecolor": "white", "label": label}),
    ]
    for group, style in groups:
        axes.scatter([x[i] for i in group], [trials[i][measure] for i in group], **{"s": 25, "zorder": 3, **style})


def _draw_progress(axes: Any, complete: Sequence[Mapping[str, Any]], last: int, measure: str) -> None:
    """Draw the best value so far over the numbers of the complete trials up to the ``last`` trial, and label the axes."""
    from matplotlib.ticker import MaxNLocator

    best = list(itertools.accumulate((trial[measure] for trial in complete), min))
    numbers = [trial["number"] for trial in complete]
    axes.step([*numbers, last], [*best, best[-1]], where="post", color=COLORS[2], label="best so far")
    axes.set_ylabel(f"validation {measure}\n(log scale)")
    _logarithmic(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, last + 0.5)
    axes.set_xlabel("trial")


def _scale(axes: Any, scale: str | Sequence[str], columns: int) -> None:
    """Set the scale of the x-axis of a panel, one of ``columns`` beside each other: "log", "linear", or choices as labels."""
    from matplotlib.ticker import MaxNLocator

    if scale == "log":
        _logarithmic(axes.xaxis, most=4)
    elif isinstance(scale, str):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        crowded = len(scale) * max(map(len, scale)) > CHARACTERS // columns
        axes.set_xticks(range(len(scale)), scale, rotation=40 * crowded, ha="right" if crowded else "center")
        axes.set_xlim(-0.5, len(scale) - 0.5)


def draw_speeds(rows: Sequence[Mapping[str, Any]], devices: Mapping[str, str], path: Path, *, overwrite: bool = True) -> str:
    """Draw tokens per second over the size of the vocabulary, with a line for each device, hidden size and batch size.

    Parameters
    ----------
    rows
        ``vocabulary``, ``hidden``, ``batch``, ``device`` and ``tokens_per_second`` of each measurement.
    devices
        The description of each device.
    path, overwrite
        As for `draw_curves`.

    Returns
    -------
    str
        As for `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, or the plot cannot be written.
    """
    shapes = sorted({(row["hidden"], row["batch"]) for row in rows})
    figure = new_figure(path, 8, 5 + LINE * len(shapes) * len(devices))
    axes = figure.subplots()
    for style, (device, name) in zip(("-o", "--s"), devices.items(), strict=False):
        for (hidden, batch), color in zip(shapes, _colors(len(shapes)), strict=True):
            own = [row for row in rows if (row["device"], row["hidden"], row["batch"]) == (device, hidden, batch)]
            places = [row["vocabulary"] for row in own], [row["tokens_per_second"] for row in own]
            axes.plot(*places, style, color=color, label=f"{name}, hidden {hidden:,}, batch {batch:,}")
    _outside(figure, "Training steps", *axes.get_legend_handles_labels())
    axes.set_xlabel("vocabulary size (log scale)")
    axes.set_ylabel("tokens per second (log scale)")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    return save_figure(figure, path, overwrite)


def _colors(count: int) -> Sequence[Any]:
    """Return a number of different colors."""
    import matplotlib

    return (
        COLORS[:count] if count <= len(COLORS) else [matplotlib.colormaps["turbo"](place / (count - 1)) for place in range(count)]
    )


def check_picture(path: Path) -> None:
    """Raise an FflmError if the suffix of a plot is not supported, or matplotlib is not installed."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise FflmError(f"cannot draw {path}: choose a name that ends in .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        raise FflmError(f"plots need matplotlib: run {install('plot')}")


def new_figure(path: Path, width: float, height: float) -> Any:
    """Return an empty figure of a size in inches."""
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, overwrite: bool) -> str:
    """Apply the common style to all axes, and write the plot; return the characters that no font contains."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text in texts:
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())  # file names need not be UTF-8
        text.set_parse_math(False)  # a $ in a name does not start a formula
    families, missing = _fonts({character for text in texts for character in text.get_text() if character.isprintable()})
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    with replacing(path, overwrite=overwrite) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format=path.suffix[1:])
    return "".join(sorted(missing))


def _fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """Return fonts for the characters that matplotlib's default font lacks, and the characters that no font contains.

    The fonts are searched for in the system's folders, because matplotlib's cached list does not contain fonts that were
    installed later.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    def coverage(path: str) -> tuple[bool, str, set[str]]:
        """Return whether a font is regular, its path, and the characters that it contains."""
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # not readable, or of an unsupported kind
            return False, "", set()
        return font.style_name == "Regular", path, {each for each in characters if font.get_char_index(ord(each))}

    missing = characters - coverage(font_manager.findfont(font_manager.FontProperties()))[2]
    fonts = [coverage(path) for path in sorted(font_manager.findSystemFonts())] if missing else []
    families = []
    while missing and fonts:
        _, path, found = max(fonts, key=lambda font: (len(font[2] & missing), font[0]))
        if not found & missing:
            break
        font_manager.fontManager.ttflist.append(font_manager.FontEntry(fname=path, name=path, weight=400, size="scalable"))
        families.append(path)
        missing -= found
    return families, missing


def _evaluations(name: str, log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the evaluations in the log of a run; raise an FflmError if there are none."""
    evaluations = [event for event in log if event["event"] == "evaluation"]
    if not evaluations:
        raise FflmError(f"{name} has not been evaluated yet, so there is nothing to draw: let it train for longer")
    return evaluations


def _draw_run(upper: Any, lower: Any, name: str, log: Sequence[Mapping[str, Any]], color: str) -> str:
    """Draw the perplexities of a run into the upper axes and its learning rate into the lower; return a label of the best one."""
    evaluations = _evaluations(name, log)
    exact = [event for event in evaluations if event.get("exact", True)]
    perplexities = [math.exp(min(event["train_loss"], 700.0)) for event in exact]
    _plot(upper, [event["words"] for event in exact], perplexities, color=color, linestyle="--", linewidth=1)
    _plot(lower, [event["words"] for event in evaluations], [event["rate"] for event in evaluations], color=color, linewidth=1)
    measured = [event for event in evaluations if event["valid"] and event["valid"]["perplexity"] < LARGEST]
    if not measured:
        return UNMEASURED
    x, y = [event["words"] for event in measured], [event["valid"]["perplexity"] for event in measured]
    _plot(upper, x, y, color=color, linewidth=2)
    best = min(range(len(y)), key=y.__getitem__)
    upper.plot(x[best], y[best], color=color, **STAR)
    epochs = x[best] / log[0]["text"]["parts"]["train"]["tokens"]
    bits = measured[best]["valid"]["bits_per_character"]
    return f"best: {y[best]:,.1f}, {bits:.3f} bits per character, after {_epochs(epochs)}"


def _plot(axes: Any, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """Draw a curve, leaving out values that are not numbers or too large."""
    points = [(each, value) for each, value in zip(x, y, strict=True) if value < LARGEST]
    if points:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) <= 50 else "", **style)


def _logarithmic(axis: Any, most: int = 7) -> None:
    """Set a logarithmic scale on an axis, whose data have been drawn, with at most about ``most`` ticks, at round numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 1:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    else:
        subs = next((subs for subs in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3)) if len(subs) * decades <= most), (1,))
        axis.set_major_locator(LogLocator(subs=subs, numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _legend(figure: Any, title: str, runs: Mapping[str, tuple[str, str]], styles: Mapping[str, str]) -> None:
    """Add a legend above the axes: a line for the styles, and one for each run with its color and its best evaluation."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="gray", linestyle=style) for style in styles.values()]
    labels, many = list(styles), len(runs) > MANY
    for name, (color, best) in runs.items():
        marker = {} if best == UNMEASURED else {**STAR, "markersize": 11}
        handles.append(Line2D([], [], color=color, linewidth=2, **{**marker, "linestyle": "-"}))
        shown = best.split(", ")[0] if many else best
        labels.append(best if len(runs) == 1 else f"{_short(name, NAME - 10 * many)}, {shown}")
    _outside(figure, title, handles, labels, columns=len(labels) if len(runs) == 1 else 1 + many)


def _outside(figure: Any, title: str, handles: Sequence[Any], labels: Sequence[str], columns: int = 1) -> None:
    """Add a legend and the title above all axes."""
    places = [str(place) for place in range(len(labels))]
    legend = figure.legend(
        handles,
        places,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="large",
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)  # because `legend` leaves out labels that start with _


def _title(runs: Mapping[str, Any], kind: str) -> str:
    """Return the name of a single run, or the number and kind of several."""
    return _short(next(iter(runs))) if len(runs) == 1 else f"{len(runs)} {kind}"


def _short(name: str, limit: int = NAME) -> str:
    """Return a name; if it is longer than a limit, its middle is replaced by an ellipsis."""
    half = len(name) // 2
    while _wide(name[:half] + name[-half:]) > limit:
        half -= 1
    return name if half == len(name) // 2 else f"{name[:half]}…{name[-half:]}"


def _wide(text: str) -> int:
    """Return the width of a text in characters, where wide ones such as Chinese characters count as two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _epochs(count: float) -> str:
    """Return a number of epochs in words."""
    return "1 epoch" if count == 1 else f"{count:.3g} epochs"


def _wrapped(captions: Iterable[str]) -> str:
    """Return captions, broken into lines that fit the width of the plot."""
    widths = {caption: max(CAPTION // 2, CAPTION - (_wide(caption) - len(caption))) for caption in captions}
    return "\n".join(line for caption, width in widths.items() for line in textwrap.wrap(caption, width))


def _height(runs: Mapping[str, Any], footer: str = "") -> float:
    """Return the height that a legend of several runs and the further lines of a footer need, in inches."""
    lines = 0 if len(runs) == 1 else len(runs) // (1 + (len(runs) > MANY))
    return LINE * (lines + footer.count("\n"))
