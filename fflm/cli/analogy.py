"""`fflm analogy`: answers to "A is to B as C is to ...?"."""

from pathlib import Path

import click

from fflm.cli.loading import load_vectors
from fflm.cli.options import check_text, json_option, model_option, quiet_option, top_option
from fflm.cli.report import echo_json, show_nearest


@click.command()
@model_option
@click.argument("a", callback=check_text)
@click.argument("b", callback=check_text)
@click.argument("c", callback=check_text)
@top_option
@quiet_option
@json_option
def command(model_path: Path | None, a: str, b: str, c: str, top: int, quiet: bool, as_json: bool) -> None:
    """Answer "A is to B as C is to ...?": show the words nearest to B - A + C, except for these three, with their cosines.

    \b
    Example:
      fflm analogy man woman king
    """
    path, vectors = load_vectors(model_path, quiet)
    found = vectors.analogy(a, b, c, top)
    if as_json:
        table = [{"word": word, "cosine": cosine} for word, cosine in found]
        echo_json({"model": str(path), "a": a, "b": b, "c": c, "answers": table})
    else:
        show_nearest(found, vectors.tokenizer)
