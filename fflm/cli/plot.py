"""`fflm plot`: plots of training curves, or of the trials of a search."""

from pathlib import Path
from typing import Any

import click

from fflm.cli.loading import find_model
from fflm.cli.options import PATH, json_option, overwrite_option, quiet_option
from fflm.cli.report import describe_text, echo_json
from fflm.errors import FflmError


@click.command()
@click.argument("models", nargs=-1, type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("curves.png"),
    show_default=True,
    metavar="FILE",
    help="The plot: .png, .svg or .pdf.",
)
@overwrite_option
@click.option(
    "-m",
    "--model",
    "named",
    multiple=True,
    type=PATH,
    metavar="FOLDER",
    help="A model, like MODELS; may be repeated. [default: the latest evaluated model in this folder]",
)
@quiet_option
@json_option
def command(models: tuple[Path, ...], output: Path, overwrite: bool, named: tuple[Path, ...], quiet: bool, as_json: bool) -> None:
    """Plot training and validation perplexity and the learning rate of MODELS, from their logs.

    For text classifiers, plot losses, accuracy and macro F1; for a folder of `fflm tune`, its trials. Without MODELS, plot the
    latest network or classifier in this folder. Needs matplotlib: `pip install '.[plot]'` in a checkout of fflm.

    \b
    Example:
      fflm plot stories.model -o stories.svg
      fflm plot small.model large.model
      fflm plot stories.tune -o trials.png
    """
    from fflm.files import check_file
    from fflm.plots import draw_classifiers, draw_curves

    check_file(output, overwrite)
    models = (*models, *named)
    if any((model / "search.json").is_file() for model in models):
        show_missing(_draw_search(models, output, overwrite), quiet)
        if as_json:
            echo_json({"plot": str(output), "search": str(models[0])})
        else:
            click.echo(output)
        return
    runs = {model: _read(model) for model in models} or dict([find_model(None, quiet, _read, "network", "classifier")])
    kinds = {kind for kind, _ in runs.values()}
    logs = {str(model): log for model, (_, log) in runs.items()}
    if len(kinds) > 1:
        raise click.UsageError("language models and classifiers cannot be compared: plot them separately")
    if kinds == {"classifier"}:
        missing = draw_classifiers(logs, output, overwrite=overwrite)
    else:
        captions = ["; ".join(describe_text(**log[0]["text"])) for log in logs.values()]
        missing = draw_curves(logs, captions, output, overwrite=overwrite)
    show_missing(missing, quiet)
    if as_json:
        echo_json({"plot": str(output), "models": list(logs)})
    else:
        click.echo(output)


def _read(model: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the kind of a model, and its log; raise an FflmError if the log contains no evaluation."""
    from fflm.arrays import LOG
    from fflm.models import description
    from fflm.models.classifier import model as classifiers
    from fflm.models.folder import Kind, read_config
    from fflm.training.log import read_log

    kind: Kind = "classifier" if read_config(model).get("kind") == "classifier" else "network"
    read_config(model, kind)
    log = read_log(model / LOG, classifiers.EVENTS if kind == "classifier" else description.EVENTS)
    if not any(event["event"] == "evaluation" for event in log):
        raise FflmError(f"{model} has not been evaluated yet, so there is nothing to draw: let it train for longer")
    return kind, log


def show_missing(characters: str, quiet: bool) -> None:
    """Print the characters of a plot that no font contains, if there are any."""
    if characters and not quiet:
        hint = "install a font that contains them, such as Noto Sans CJK"
        click.echo(f"no font contains {characters}, which are drawn as boxes: {hint}", err=True)


def _draw_search(searches: tuple[Path, ...], output: Path, overwrite: bool) -> str:
    """Draw the trials of a search; return the characters that no font contains."""
    from fflm.cli.tune import describe_valid
    from fflm.plots import draw_trials
    from fflm.search.search import Search
    from fflm.search.space import Choices, logarithmic, show

    if len(searches) > 1:
        raise click.UsageError("a search is plotted alone: give one folder of `fflm tune`, or models")
    search = Search.open(searches[0])
    measure = search.data.measure
    scales: dict[str, str | tuple[str, ...]] = {}
    for name, part in search.space.items():
        if isinstance(part, Choices):
            scales[name] = tuple(map(show, part.values))
        else:
            scales[name] = "log" if logarithmic(name, part) else "linear"
    trials = [
        {
            "number": trial.number,
            "state": trial.state,
            measure: getattr(trial, measure),
            "values": {name: value if isinstance(scales[name], str) else show(value) for name, value in trial.values.items()},
        }
        for trial in search.trials
    ]
    caption = ""
    if best := search.best:
        caption = f"best: {describe_valid(search, search.figures(best))}"
    return draw_trials(str(search.path), trials, scales, caption, output, measure=measure, overwrite=overwrite)
