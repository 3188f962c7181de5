"""`fflm next`: the probability distribution of the next word."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.loading import load_model, read_prefix
from fflm.cli.options import device_option, json_option, model_option, prefix_options, quiet_option
from fflm.cli.report import echo_json, show_word

if TYPE_CHECKING:
    from fflm.models.language_model import LanguageModel
    from fflm.text.prefixes import Prefix


@click.command()
@model_option
@prefix_options
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="Number of words to show.")
@click.option("--follow", is_flag=True, help="Answer each line of standard input, a prefix, at once with a line.")
@device_option
@quiet_option
@json_option
def command(
    model_path: Path | None,
    prefix: str | None,
    prefix_file: Path | None,
    top: int,
    follow: bool,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show the most probable words after a prefix, with their probabilities, which sum to one over the vocabulary.

    <unk> stands for all words that are not in the vocabulary, </s> for the end of a line or sentence.

    --follow is for programs that keep the command running: the answer to a line has words and probabilities, with tabs between.

    \b
    Example:
      fflm next --prefix "The cat sat on the" --top 5
    """
    from fflm.models import generation
    from fflm.text.reading import arriving_lines

    if follow and (prefix is not None or prefix_file is not None):
        raise click.UsageError("--follow reads prefixes from standard input: leave out --prefix and --prefix-file")
    path, model = load_model(model_path, quiet, device)
    if follow:
        for line in arriving_lines():
            start = generation.read_prefix(model, line)
            words = generation.next_words(model, start, top)
            if as_json:
                echo_json(_result(path, model, start, words))
            else:
                click.echo("\t".join(f"{show_word(word)}\t{probability:.6f}" for word, probability in words))
        return
    start = read_prefix(model, prefix, prefix_file, quiet)
    words = generation.next_words(model, start, top)
    if as_json:
        echo_json(_result(path, model, start, words))
        return
    for word, probability in words:
        click.echo(f"{probability:10.6f}  {show_word(word)}")
    if len(words) < len(model.vocabulary):
        click.echo(f"{_others(model, words):10.6f}  ({len(model.vocabulary) - len(words):,} others)")


def _result(path: Path, model: "LanguageModel", start: "Prefix", words: list[tuple[str, float]]) -> dict[str, Any]:
    """Return the words after a prefix as JSON values."""
    return {
        "model": str(path),
        "prefix": start.text,
        "unknown": start.unknown,
        "vocabulary": len(model.vocabulary),
        "words": [{"word": word, "probability": probability} for word, probability in words],
        "others": _others(model, words),
    }


def _others(model: "LanguageModel", words: list[tuple[str, float]]) -> float:
    """Return the probability of all other words together."""
    shown = sum(probability for _, probability in words)
    return max(0.0, 1 - shown) if len(words) < len(model.vocabulary) else 0.0
