"""`fflm tokenize`: tokenized corpora on disk."""

from pathlib import Path
from typing import Any

import click

from fflm.cli.options import PATH, json_option, overwrite_option, quiet_option, text_options
from fflm.cli.report import echo_json, message_console, tokenizing


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="FOLDER", help="The tokenized corpus.")
@overwrite_option
@text_options
@quiet_option
@json_option
def command(inputs: tuple[Path, ...], output: Path, overwrite: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Tokenize INPUTS (files, also compressed, folders, - for standard input) once, into word ids on disk to train on.

    \b
    Example:
      fflm tokenize corpora/stories.txt -o stories.ids
      fflm train stories.ids
    """
    from fflm.models.creation import text_source
    from fflm.parallel.world import world
    from fflm.text.tokenize import tokenize

    console = message_console(quiet)
    source = text_source(inputs, options)
    with tokenizing(console) as progress:
        corpus = tokenize(source, output, overwrite=overwrite, progress=progress, communicator=world(), **options)
    if as_json:
        parts = {name: part.counts for name, part in corpus.parts.items()}
        vocabulary = corpus.vocabulary.to_dict()
        echo_json({"corpus": str(output), "vocabulary": vocabulary, "parts": parts})
        return
    click.echo(f"{output}: vocabulary {len(corpus.vocabulary):,} ({corpus.vocabulary.rule})")
    for name, part in corpus.parts.items():
        click.echo(
            f"{name:5} {part.tokens:>12,} tokens, OOV rate {part.unknown / part.tokens:.2%}, {part.characters:,} characters"
        )
