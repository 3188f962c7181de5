"""`fflm vectors`: export of word embeddings."""

import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from fflm.cli.loading import load_vectors
from fflm.cli.options import PATH, json_option, model_option, overwrite_option, quiet_option
from fflm.cli.report import show_word

if TYPE_CHECKING:
    from fflm.models.vectors import Vectors


@click.command()
@model_option
@click.option("-o", "--output", type=PATH, metavar="FILE", help="The file. [default: standard output]")
@overwrite_option
@quiet_option
@json_option
def command(model_path: Path | None, output: Path | None, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Export the word embeddings, including those of <unk>, </s> and <s>, in the text format of word2vec.

    The format cannot represent words that contain white space, as in models of characters; they are left out, and listed on
    standard error. --json prints an object of words and vectors instead. Train from vectors with `fflm train --vectors FILE`.

    \b
    Example:
      fflm vectors -o vectors.txt
    """
    from fflm.files import check_file, writing_text

    if output:
        check_file(output, overwrite)
    _, vectors = load_vectors(model_path, quiet)
    if output:
        with writing_text(output, overwrite=overwrite) as file:
            skipped = _write(vectors, file, as_json)
    else:
        skipped = _write(vectors, sys.stdout, as_json)
    if skipped and not quiet:
        click.echo(f"left out {len(skipped)} words with white space: {' '.join(map(show_word, skipped))}", err=True)


def _write(vectors: "Vectors", file: IO[str], as_json: bool) -> list[str]:
    """Write the vectors in word2vec's text format or as JSON; return the words that were left out."""
    from fflm.text.vocabulary import START

    if not as_json:
        return vectors.write(file)
    names = [*vectors.vocabulary.words, START]
    json.dump(dict(zip(names, vectors.array.tolist(), strict=True)), file, ensure_ascii=False)
    file.write("\n")
    return []
