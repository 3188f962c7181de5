"""`fflm quantize`: copies of models with 8 bits a number."""

from pathlib import Path
from typing import Any

import click

from fflm.cli.options import PATH, json_option, overwrite_option
from fflm.cli.report import describe_perplexity, echo_json


@click.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="The copy.")
@click.option("--tables", is_flag=True, help="Also store the tables of fast scoring of a network.")
@overwrite_option
@json_option
def command(model: Path, output: Path, tables: bool, overwrite: bool, as_json: bool) -> None:
    """Write a copy of MODEL, a network or an n-gram model, with 8 bits for each number of which it has many.

    The copy is a folder that `score`, `next`, `generate` and `mix` accept like any other model. It cannot be trained further, nor
    written as an ARPA file. The output shows its perplexity on the held-out text of MODEL, and the size of both on disk.

    If a network was trained with --self-normalise or --loss nce, --tables also stores its tables of fast scoring, so that they
    need not be made whenever it is loaded. They take more room than its weights, even those of MODEL.

    \b
    Example:
      fflm quantize stories.ngram -o small.ngram
      fflm quantize stories.model -o small.model
    """
    from fflm.models.load import load_language_model
    from fflm.models.quantize import model_size, quantize

    copy = quantize(model, output, tables=tables, overwrite=overwrite)
    figures, before = copy.about["figures"], load_language_model(model).about["figures"]
    rows = {
        name: {**figures[name], "original": before[name]["perplexity"]}
        for name in ("valid", "test")
        if name in figures and name in before
    }
    sizes = {"bytes": model_size(output), "original_bytes": model_size(model)}
    if as_json:
        echo_json({"model": str(output), **sizes, **rows})
        return
    lines = [f"model {output}: {sizes['bytes'] / 1e6:,.2f} MB instead of {sizes['original_bytes'] / 1e6:,.2f} MB"]
    lines += [_compared(name, row) for name, row in rows.items()]
    if not rows:
        lines.append("The perplexity was not measured, because the text is missing: compare both models with `fflm score`.")
    click.echo("\n".join(lines))


def _compared(name: str, figures: dict[str, Any]) -> str:
    """Return the perplexity of the copy on a part, and by how much it differs from that of the original."""
    line = f"{name:5} {describe_perplexity(figures)}"
    before, after = figures["original"], figures["perplexity"]
    return f"{line}; {_change(before, after)} of that of the original" if before and after else line


def _change(before: float, after: float) -> str:
    """Return by how much a number has changed, in percent."""
    return f"{round(after / before - 1, 4) + 0.0:+.2%}"  # -0 + 0 is 0
