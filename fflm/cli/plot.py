"""`fflm plot`: training curves as a picture."""

import json
from pathlib import Path

import click

from fflm.cli.options import describe_text, json_option
from fflm.errors import FflmError


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("curves.png"),
    show_default=True,
    metavar="FILE",
    help="The picture: .png, .svg or .pdf. It replaces one that exists.",
)
@json_option
def command(models: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Draw training and validation perplexity and the learning rate of MODELS, from their logs.

    Without MODELS, of the model trained last in this folder. Needs matplotlib: `pip install "fflm[plot]"`.

    \b
    Example:
      fflm plot stories.model -o stories.svg
      fflm plot small.model large.model
    """
    from fflm.lm.model import LOG, latest_model, read_config
    from fflm.training.log import read_log
    from fflm.training.plot import draw_curves

    logs = {}
    for model in models or (latest_model(Path()),):
        read_config(model, "network")
        logs[str(model)] = read_log(model / LOG)
    try:
        captions = [f"{name}: {'; '.join(describe_text(**log[0]['text']))}" for name, log in logs.items()]
        draw_curves(logs, captions, output)
    except (KeyError, TypeError, ValueError) as error:
        raise FflmError(f"a log is damaged ({error!r}): restore it from a copy, or train again") from error
    click.echo(json.dumps({"plot": str(output), "models": list(logs)}) if as_json else output)
