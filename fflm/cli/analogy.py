"""`fflm analogy`: a is to b as c is to ..."""

import json
from pathlib import Path

import click

from fflm.cli.loading import load_vectors
from fflm.cli.options import check_text, json_option, model_option, quiet_option, top_option
from fflm.cli.report import show_nearest


@click.command()
@model_option
@click.argument("a", callback=check_text)
@click.argument("b", callback=check_text)
@click.argument("c", callback=check_text)
@top_option
@quiet_option
@json_option
def command(model_path: Path | None, a: str, b: str, c: str, top: int, quiet: bool, as_json: bool) -> None:
    """Answer "A is to B as C is to ...": the words nearest to B - A + C, without these three, and the cosines.

    \b
    Example:
      fflm analogy man woman king
    """
    path, vectors = load_vectors(model_path, quiet)
    found = vectors.analogy(a, b, c, top)
    if as_json:
        table = [{"word": word, "cosine": cosine} for word, cosine in found]
        click.echo(json.dumps({"model": str(path), "a": a, "b": b, "c": c, "answers": table}, ensure_ascii=False))
    else:
        show_nearest(found)
