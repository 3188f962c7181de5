"""`fflm mix`: linear interpolation of models, with tuned weights."""

from pathlib import Path
from typing import Any

import click

from fflm.cli.loading import announce_stdin, use_device
from fflm.cli.options import PATH, device_option, encoding_option, errors_option, json_option, overwrite_option, quiet_option
from fflm.cli.report import describe_perplexity, echo_json
from fflm.cli.tables import stdout_width, table


@click.command()
@click.argument("models", nargs=-1, required=True, type=PATH, metavar="MODEL...")
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="The mixture.")
@overwrite_option
@click.option(
    "--cache",
    type=click.IntRange(1),
    metavar="WORDS",
    help="Add a cache: a unigram model of the last WORDS words of the text being scored; 2000 is a good choice.",
)
@click.option(
    "--neural-cache",
    type=click.IntRange(1),
    metavar="WORDS",
    help="Add a neural cache: of the last WORDS words of the text being scored, those that occurred in contexts like the "
    "current one are expected most; 2000 is a good choice.",
)
@click.option(
    "--tune",
    multiple=True,
    type=PATH,
    metavar="TEXT",
    help="Held-out text to tune the weights on; may be repeated. [default: the validation text of the first model]",
)
@encoding_option
@errors_option
@device_option
@quiet_option
@json_option
def command(
    models: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    device: str,
    quiet: bool,
    as_json: bool,
    cache: int | None,
    neural_cache: int | None,
    **tuning: Any,
) -> None:
    """Interpolate MODELs linearly: the probability of a word is the weighted sum of the models' probabilities.

    The weights are tuned to minimize the perplexity of the mixture on held-out text. The output shows the weights, and the
    perplexities of each model alone and of the mixture on that text. The models must have the same vocabulary and settings of
    text, such as models that were trained on the same tokenized text.

    The mixture is a folder that `score`, `next` and `generate` accept like any other model; it refers to the folders of its
    models. A cache contains only words of the context: in a mixture of models in sentence mode, those of the same sentence. A
    neural cache compares contexts by the activations of the first network.

    \b
    Example:
      fflm mix stories.model stories.ngram --cache 2000 -o stories.mix
      fflm score -m stories.mix --part valid
    """
    from fflm.models.creation import check_free
    from fflm.models.mixture.train import combine, tune_weights

    if len(models) == 1 and cache is None and neural_cache is None:
        raise click.UsageError("there is nothing to mix: give two models or more, --cache or --neural-cache")
    check_free(output, overwrite)
    mixture = combine(models, cache, neural_cache, use_device(device, quiet))
    mixture.check_apart(output)
    announce_stdin(tuning["tune"], quiet)
    mixture = tune_weights(mixture, **tuning)
    mixture.save(output, overwrite=overwrite)
    if as_json:
        echo_json({"model": str(output), **mixture.tuning})
    else:
        click.echo("\n".join([f"model {output}", *describe_tuning(mixture.tuning)]))


def describe_components(figures: dict[str, Any]) -> list[str]:
    """Return a table of the figures of a mixture and of each of its components alone on a text, as lines."""
    rows = []
    for row in [*figures["components"], {"name": "mixture", **figures}]:
        weight = f"{row['weight']:.4f}" if "weight" in row else ""
        values = [row[name] for name in ("perplexity", "perplexity_known", "bits_per_character")]
        rows.append([row["name"], weight, *("-" if value is None else f"{value:,.4f}" for value in values)])
    return table("lrrrr", ["", "weight", "perplexity", "of known words", "bits per character"], rows, stdout_width())


def describe_members(figures: dict[str, Any]) -> list[str]:
    """Return the figures of an ensemble and of its members on the parts of its text, as lines."""
    tables = [["", *describe_components(each), f"{name:5} {describe_perplexity(each)}"] for name, each in figures.items()]
    return [line for lines in tables for line in lines]


def describe_tuning(figures: dict[str, Any]) -> list[str]:
    """Return the weights of a mixture and its figures on the text that they were tuned on, as lines."""
    return [*describe_components(figures), f"tuned on {figures['source']}: {describe_perplexity(figures)}"]
