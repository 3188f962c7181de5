"""Training curves, drawn from logs, and the trials of a search. Needs matplotlib, which only those install who draw."""

import math
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fflm.errors import FflmError, install
from fflm.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito 2008)."""

STAR: dict[str, Any] = {"marker": "*", "markersize": 16, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
"""What marks the best."""

CAPTION = 150
"""Characters a line of the captions."""

NAME = 50
"""Characters of a name in a title or a legend; longer ones are shortened."""

UNMEASURED = "no validation"
"""What is known of a run without validation."""

LARGEST = 1e100
"""Larger values, as of a run that diverges, and NaN are not drawn."""

LINE = 0.2
"""Height of a line of small text, in inches."""

MANY = 6
"""Runs, at most, of which each has a line of the legend for itself."""

PANELS = 3
"""Panels beside each other in the picture of a search."""


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], captions: Sequence[str], path: Path) -> str:
    """Draw perplexity and learning rate of one or several runs over the words that they were trained on.

    Parameters
    ----------
    runs
        The log of each run, as `fflm.training.log.read_log` gives it, by the run's name.
    captions
        What perplexities mean nothing without, for each run; written below the curves.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Returns
    -------
    str
        Characters that no installed font has; they are drawn as boxes.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the picture cannot be written.
    """
    lines: dict[str, list[str]] = {}  # of a caption: the runs that it belongs to
    for name, caption in zip(runs, captions, strict=True):
        lines.setdefault(caption, []).append(name)
    footer = _wrapped(f"{', '.join(names)}: {caption}" for caption, names in lines.items())
    figure = _figure(path, 8, 5.3 + _height(runs, footer))
    from matplotlib.ticker import EngFormatter, MaxNLocator

    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    best = {}
    for (name, log), colour in zip(runs.items(), _colours(len(runs)), strict=True):
        best[name] = colour, _draw_run(upper, lower, name, log, colour)
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
    return _save(figure, path)


def draw_classifiers(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> str:
    """Draw loss, accuracy and macro F1 of the training of classifiers over epochs.

    Parameters
    ----------
    runs, path
        As for `draw_curves`.

    Returns
    -------
    str
        As of `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, a run was never evaluated, or the picture cannot be written.
    """
    figure = _figure(path, 8, 5.5 + _height(runs))
    from matplotlib.ticker import MaxNLocator

    upper, lower = figure.subplots(2, 1, sharex=True)
    labels = {}
    for (name, log), colour in zip(runs.items(), _colours(len(runs)), strict=True):
        evaluations = _evaluations(name, log)
        texts = log[0]["texts"]["train"]["texts"]
        epochs = [event["words"] / texts for event in evaluations]
        _plot(upper, epochs, [event["train_loss"] for event in evaluations], color=colour, linestyle="--", linewidth=1)
        measured = [event for event in evaluations if event["valid"] and event["valid"]["loss"] < LARGEST]
        label = UNMEASURED
        if measured:
            x, valid = [event["words"] / texts for event in measured], [event["valid"] for event in measured]
            best = min(range(len(valid)), key=lambda place: valid[place]["loss"])
            for axes, key, style in ((upper, "loss", "-"), (lower, "accuracy", "-"), (lower, "macro_f1", ":")):
                values = [figures[key] for figures in valid]
                _plot(axes, x, values, color=colour, linestyle=style)
                if key != "macro_f1":
                    axes.plot(x[best], values[best], color=colour, **STAR)
            label = f"loss {valid[best]['loss']:.4f}, accuracy {valid[best]['accuracy']:.2%}, after {_epochs(x[best])}"
        labels[name] = colour, label
    styles = {"validation, accuracy": "-", "training": "--", "macro F1": ":"}
    _legend(figure, f"Training of {_title(runs, 'classifiers')}", labels, styles)
    upper.set_ylabel("loss, nats per text")
    upper.set_ylim(bottom=0)
    lower.set_ylabel("on the validation texts")
    lower.set_xlabel("epochs")
    lower.set_xlim(left=0)
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _save(figure, path)


def draw_trials(
    name: str, trials: Sequence[Mapping[str, Any]], scales: Mapping[str, str | Sequence[str]], caption: str, path: Path
) -> str:
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
        The evaluation conditions of the perplexities.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Returns
    -------
    str
        As of `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, there is no trial to draw, or the picture cannot be written.
    """
    drawn = [trial for trial in trials if trial["perplexity"] is not None and trial["perplexity"] < LARGEST]
    complete = [trial for trial in drawn if trial["state"] == "complete"]
    if not complete:
        raise FflmError(f"{name} has no complete trial yet, so there is nothing to draw: let it run for longer")
    rows = -(-len(scales) // PANELS)
    columns = -(-len(scales) // rows)
    footer = _wrapped([caption])
    figure = _figure(path, 8, 3 + 2.2 * rows + _height({}, footer))
    from matplotlib.ticker import MaxNLocator

    grid = figure.add_gridspec(1 + rows, columns, height_ratios=(1.4, *[1] * rows))
    upper = figure.add_subplot(grid[0, :])
    panels = [figure.add_subplot(grid[1 + i // columns, i % columns], sharey=upper) for i in range(len(scales))]
    _scatter_trials(upper, drawn, [trial["number"] for trial in drawn])
    for axes, (setting, scale) in zip(panels, scales.items(), strict=True):
        _scatter_trials(axes, drawn, [_place(trial["values"][setting], scale) for trial in drawn])
        _label_setting(axes, setting, scale, columns)
    steps = [min(trial["perplexity"] for trial in complete[: i + 1]) for i in range(len(complete))]
    numbers = [trial["number"] for trial in complete]
    upper.step([*numbers, trials[-1]["number"]], [*steps, steps[-1]], where="post", color=COLOURS[2], label="best so far")
    handles, labels = upper.get_legend_handles_labels()
    _outside(figure, f"Search in {_short(name)}", handles, labels, columns=4)
    upper.set_ylabel("validation perplexity\n(log scale)")
    _logarithmic(upper.yaxis)
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.set_xlim(0.5, trials[-1]["number"] + 0.5)
    upper.set_xlabel("trial")
    figure.supxlabel(footer, fontsize="x-small")
    return _save(figure, path)


def _scatter_trials(axes: Any, trials: Sequence[Mapping[str, Any]], places: Sequence[Any]) -> None:
    """Mark the perplexity of each trial over its place on the horizontal axis, with a mark of its own for the best."""
    complete = [trial["state"] == "complete" for trial in trials]
    perplexities = [trial["perplexity"] for trial in trials]
    best = min((i for i in range(len(trials)) if complete[i]), key=lambda i: perplexities[i])
    groups: tuple[tuple[list[int], dict[str, Any], str], ...] = (
        ([i for i in range(len(trials)) if complete[i]], {"marker": "o", "color": COLOURS[0], "alpha": 0.8}, "complete"),
        ([i for i in range(len(trials)) if not complete[i]], {"marker": "x", "color": COLOURS[1], "alpha": 0.8}, "incomplete"),
        (
            [best],
            {"marker": "*", "color": COLOURS[2], "s": 200, "edgecolor": "white"},
            f"best: trial {trials[best]['number']}, {perplexities[best]:,.1f}",
        ),
    )
    for group, style, label in groups:
        axes.scatter(
            [places[i] for i in group], [perplexities[i] for i in group], **{"s": 25, "zorder": 3, "label": label, **style}
        )


def _label_setting(axes: Any, setting: str, scale: str | Sequence[str], columns: int) -> None:
    """Label the horizontal axis of the panel of a setting, in a grid with this number of columns."""
    from matplotlib.ticker import MaxNLocator

    axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())
    axes.set_xlabel(setting.replace("_", " ") + (" (log scale)" if scale == "log" else ""))
    if scale == "log":
        _logarithmic(axes.xaxis, most=4)
    elif isinstance(scale, str):
        axes.xaxis.set_major_locator(MaxNLocator(5))
    else:
        crowded = len(scale) * max(map(len, scale)) > 66 // columns
        axes.set_xticks(range(len(scale)), scale, rotation=40 * crowded, ha="right" if crowded else "center")
        axes.set_xlim(-0.5, len(scale) - 0.5)


def draw_speeds(rows: Sequence[Mapping[str, Any]], devices: Mapping[str, str], path: Path) -> str:
    """Draw tokens a second over the size of the vocabulary, a line for each device, hidden size and batch size.

    Parameters
    ----------
    rows
        ``vocabulary``, ``hidden``, ``batch``, ``device`` and ``tokens_per_second`` of each measurement.
    devices
        What each device is called.
    path
        The picture, in the format that its ending names: .png, .svg or .pdf.

    Returns
    -------
    str
        As of `draw_curves`.

    Raises
    ------
    FflmError
        If matplotlib is missing, or the picture cannot be written.
    """
    shapes = sorted({(row["hidden"], row["batch"]) for row in rows})
    figure = _figure(path, 8, 5 + LINE * len(shapes) * len(devices))
    axes = figure.subplots()
    for style, (device, name) in zip(("-o", "--s"), devices.items(), strict=False):
        for (hidden, batch), colour in zip(shapes, _colours(len(shapes)), strict=True):
            own = [row for row in rows if (row["device"], row["hidden"], row["batch"]) == (device, hidden, batch)]
            places = [row["vocabulary"] for row in own], [row["tokens_per_second"] for row in own]
            axes.plot(*places, style, color=colour, label=f"{name}, hidden {hidden:,}, batch {batch:,}")
    _outside(figure, "Training steps", *axes.get_legend_handles_labels())
    axes.set_xlabel("words in the vocabulary (log scale)")
    axes.set_ylabel("tokens a second (log scale)")
    _logarithmic(axes.xaxis)
    _logarithmic(axes.yaxis)
    return _save(figure, path)


def _colours(count: int) -> Sequence[Any]:
    """Return different colours."""
    import matplotlib

    return (
        COLOURS[:count]
        if count <= len(COLOURS)
        else [matplotlib.colormaps["turbo"](place / (count - 1)) for place in range(count)]
    )


def _place(value: Any, scale: str | Sequence[str]) -> Any:
    """Return where a value is drawn."""
    return value if isinstance(scale, str) else scale.index(value)


def check_picture(path: Path) -> None:
    """Raise an FflmError if no picture can be drawn under that name, or nothing can be drawn."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise FflmError(f"cannot draw {path}: let its name end in .png, .svg or .pdf")
    if find_spec("matplotlib") is None:
        raise FflmError(f"plots need matplotlib: run {install('plot')}")


def _figure(path: Path, width: float, height: float) -> Any:
    """Return an empty picture, in inches."""
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> str:
    """Give all axes the same look, and write the picture; return the characters that no font has."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    for text in texts:
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())  # names of files may not be UTF-8
        text.set_parse_math(False)  # a $ in a name is a $
    families, missing = _fonts({character for text in texts for character in text.get_text() if character.isprintable()})
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(temporary, format=path.suffix[1:])
    return "".join(sorted(missing))


def _fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """Return the families of fonts that have the characters which matplotlib's own font lacks, and those that none has.

    The system's fonts are looked at themselves, for matplotlib's list of them does not contain those that were installed later.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    def known(path: str) -> tuple[bool, str, set[str]]:
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # not readable, or of a kind that cannot be drawn
            return False, "", set()
        return font.style_name == "Regular", path, {each for each in characters if font.get_char_index(ord(each))}

    missing = characters - known(font_manager.findfont(font_manager.FontProperties()))[2]
    fonts = [known(path) for path in sorted(font_manager.findSystemFonts())] if missing else []
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
    """Return the evaluations in a run's log, of which there must be one."""
    evaluations = [event for event in log if event["event"] == "evaluation"]
    if not evaluations:
        raise FflmError(f"{name} was not evaluated yet, so there is nothing to draw: let it train for longer")
    return evaluations


def _draw_run(upper: Any, lower: Any, name: str, log: Sequence[Mapping[str, Any]], colour: str) -> str:
    """Draw the curves of a run into the axes of perplexity and of the rate; return what is known of its best evaluation."""
    evaluations = _evaluations(name, log)
    exact = [event for event in evaluations if event.get("exact", True)]
    perplexities = [math.exp(min(event["train_loss"], 700.0)) for event in exact]
    _plot(upper, [event["words"] for event in exact], perplexities, color=colour, linestyle="--", linewidth=1)
    _plot(lower, [event["words"] for event in evaluations], [event["rate"] for event in evaluations], color=colour, linewidth=1)
    measured = [event for event in evaluations if event["valid"] and event["valid"]["perplexity"] < LARGEST]
    if not measured:
        return UNMEASURED
    x, y = [event["words"] for event in measured], [event["valid"]["perplexity"] for event in measured]
    _plot(upper, x, y, color=colour, linewidth=2)
    best = min(range(len(y)), key=y.__getitem__)
    upper.plot(x[best], y[best], color=colour, **STAR)
    epochs = x[best] / log[0]["text"]["parts"]["train"]["tokens"]
    bits = measured[best]["valid"]["bits_per_character"]
    return f"best: {y[best]:,.1f}, {bits:.3f} bits per character, after {_epochs(epochs)}"


def _plot(axes: Any, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    """Draw a curve, leaving out values that are not numbers or too large."""
    points = [(each, value) for each, value in zip(x, y, strict=True) if value < LARGEST]
    if points:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) <= 50 else "", **style)


def _logarithmic(axis: Any, most: int = 7) -> None:
    """Give an axis, whose data are drawn, a logarithmic scale and about so many labeled ticks at round numbers."""
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
    """Explain curves above them: a line for each run, with its colour and what is known of its best, and one for the styles."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color="gray", linestyle=style) for style in styles.values()]
    labels, many = list(styles), len(runs) > MANY
    for name, (colour, best) in runs.items():
        marker = {} if best == UNMEASURED else {**STAR, "markersize": 11}
        handles.append(Line2D([], [], color=colour, linewidth=2, **{**marker, "linestyle": "-"}))
        known = best.split(", ")[0] if many else best
        labels.append(best if len(runs) == 1 else f"{_short(name, NAME - 10 * many)}, {known}")
    _outside(figure, title, handles, labels, columns=len(labels) if len(runs) == 1 else 1 + many)


def _outside(figure: Any, title: str, handles: Sequence[Any], labels: Sequence[str], columns: int = 1) -> None:
    """Put a legend and the title above all axes."""
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
        text.set_text(label)  # of which `legend` would leave out those that begin with _


def _title(runs: Mapping[str, Any], kind: str) -> str:
    return _short(next(iter(runs))) if len(runs) == 1 else f"{len(runs)} {kind}"


def _short(name: str, limit: int = NAME) -> str:
    """Return a name, without its middle if it is longer than a limit."""
    half = len(name) // 2
    while _wide(name[:half] + name[-half:]) > limit:
        half -= 1
    return name if half == len(name) // 2 else f"{name[:half]}…{name[-half:]}"


def _wide(text: str) -> int:
    """Return the width of a text, in characters of which Chinese ones count as two."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _epochs(count: float) -> str:
    return "1 epoch" if count == 1 else f"{count:.3g} epochs"


def _wrapped(captions: Iterable[str]) -> str:
    """Return captions as lines that fit the picture."""
    widths = {caption: max(CAPTION // 2, CAPTION - (_wide(caption) - len(caption))) for caption in captions}
    return "\n".join(line for caption, width in widths.items() for line in textwrap.wrap(caption, width))


def _height(runs: Mapping[str, Any], footer: str = "") -> float:
    """Return the height of a legend of several runs and of a footer, in inches."""
    lines = 0 if len(runs) == 1 else len(runs) // (1 + (len(runs) > MANY))
    return LINE * (lines + footer.count("\n"))
