"""`fflm neighbours`: the words nearest to a word."""

from pathlib import Path

import click

from fflm.cli.loading import load_vectors
from fflm.cli.options import check_text, json_option, model_option, quiet_option, top_option
from fflm.cli.report import echo_json, show_nearest


@click.command()
@model_option
@click.argument("word", callback=check_text)
@top_option
@quiet_option
@json_option
def command(model_path: Path | None, word: str, top: int, quiet: bool, as_json: bool) -> None:
    """Show the words whose embeddings are nearest to that of WORD, with their cosine similarities.

    \b
    Example:
      fflm neighbours cat --top 5
    """
    path, vectors = load_vectors(model_path, quiet)
    found = vectors.neighbours(word, top)
    if as_json:
        table = [{"word": other, "cosine": cosine} for other, cosine in found]
        echo_json({"model": str(path), "word": word, "neighbours": table})
    else:
        show_nearest(found, vectors.tokenizer)
