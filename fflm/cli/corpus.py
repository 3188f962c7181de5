"""`fflm corpus`: see what corpora there are, and fetch one."""

import dataclasses
import json
import shlex
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from fflm.cli.report import message_console
from fflm.cli.tables import stdout_width, table
from fflm.text import catalogue


@click.group()
def command() -> None:
    """List and fetch well-known corpora.

    \b
    Example:
      fflm corpus get wikitext-2 -o data
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything the catalogue says, as JSON.")
def list_corpora(as_json: bool) -> None:
    """Show the corpora, their sizes to download and their licenses.

    \b
    Example:
      fflm corpus list
    """
    entries = catalogue.entries().values()
    if as_json:
        known = [{**dataclasses.asdict(entry), "size": entry.size} for entry in entries]
        click.echo(json.dumps(known, ensure_ascii=False, indent=2))
        return
    rows = [[entry.name, f"{entry.size / 1e6:.1f} MB", entry.license, entry.title] for entry in entries]
    click.echo("\n".join(table("lrll", ["NAME", "SIZE", "LICENSE", "TITLE"], rows, stdout_width())))


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in catalogue.entries() if name.startswith(incomplete)]


@command.command("get", short_help="Fetch a corpus, verify its checksum and unpack it.")
@click.argument("name", shell_complete=_names)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="Where to put the corpus's folder. [default: here]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the folder, its files and the split as JSON.")
def get(name: str, folder: Path, as_json: bool) -> None:
    """Fetch the corpus NAME, verify its checksum and unpack it into FOLDER/NAME.

    The paths of its files go to standard output; `fflm corpus list` shows the names.

    \b
    Example:
      fflm corpus get wikitext-2 -o data
    """
    from rich.progress import DownloadColumn, Progress

    entry = catalogue.find(name)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    console = message_console(quiet=False)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=entry.size)
        files = catalogue.fetch(entry, folder, lambda done: bar.update(task, completed=done))
        bar.update(task, completed=entry.size)
    train = entry.train.format(folder=shlex.quote(str(folder / name)))
    if as_json:
        result = {
            "name": name,
            "folder": str(folder / name),
            "files": [str(file) for file in files],
            "license": entry.license,
            "split": entry.split,
            "train": train,
        }
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(map(str, files)))
        click.echo(f"license: {entry.license}\nsplit:   {entry.split}\ntrain:   {train}", err=True)
