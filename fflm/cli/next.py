"""`fflm next`: the probability distribution of the next word."""

from pathlib import Path

import click

from fflm.cli.loading import load_model, read_prefix
from fflm.cli.options import device_option, json_option, model_option, prefix_options, quiet_option
from fflm.cli.report import echo_json, show_word


@click.command()
@model_option
@prefix_options
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Number of words to show.")
@device_option
@quiet_option
@json_option
def command(
    model_path: Path | None, prefix: str | None, prefix_file: Path | None, top: int, device: str, quiet: bool, as_json: bool
) -> None:
    """Show the most probable words after a prefix, with their probabilities, which sum to one over the vocabulary.

    <unk> stands for all words that are not in the vocabulary, </s> for the end of a line or sentence.

    \b
    Example:
      fflm next --prefix "The cat sat on the" --top 5
    """
    from fflm.models import generation

    path, model = load_model(model_path, quiet, device)
    start = read_prefix(model, prefix, prefix_file, quiet)
    words = generation.next_words(model, start, top)
    others = max(0.0, 1 - sum(probability for _, probability in words)) if len(words) < len(model.vocabulary) else 0.0
    if as_json:
        table = [{"word": word, "probability": probability} for word, probability in words]
        result = {
            "model": str(path),
            "prefix": start.text,
            "unknown": start.unknown,
            "vocabulary": len(model.vocabulary),
            "words": table,
            "others": others,
        }
        echo_json(result)
        return
    for word, probability in words:
        click.echo(f"{probability:10.6f}  {show_word(word)}")
    if len(words) < len(model.vocabulary):
        click.echo(f"{others:10.6f}  ({len(model.vocabulary) - len(words):,} others)")
