"""`fflm corpus`: list and download corpora."""

import dataclasses
import shlex
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from fflm.cli.options import PATH
from fflm.cli.report import echo_json, message_console
from fflm.cli.tables import stdout_width, table
from fflm.text import catalogue


@click.group()
def command() -> None:
    """List and download well-known corpora.

    \b
    Example:
      fflm corpus get wikitext-2 -o data
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print all fields of the catalogue as JSON.")
def list_corpora(as_json: bool) -> None:
    """Show the corpora, the sizes of their downloads, and their licenses.

    \b
    Example:
      fflm corpus list
    """
    entries = catalogue.entries().values()
    if as_json:
        known = [{**dataclasses.asdict(entry), "size": entry.size} for entry in entries]
        echo_json(known, indent=2)
        return
    rows = [[entry.name, f"{entry.size / 1e6:.1f} MB", entry.license, entry.title] for entry in entries]
    click.echo("\n".join(table("lrll", ["NAME", "SIZE", "LICENSE", "TITLE"], rows, stdout_width())))


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of corpora for shell completion."""
    return [CompletionItem(name) for name in catalogue.entries() if name.startswith(incomplete)]


@command.command("get", short_help="Download a corpus, verify its checksum and unpack it.")
@click.argument("name", shell_complete=_names)
@click.option(
    "-o",
    "--output",
    "folder",
    type=PATH,
    default=Path(),
    metavar="FOLDER",
    help="The folder in which the folder of the corpus is created. [default: the current folder]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the folder, its files, the license and the split as JSON.")
def get(name: str, folder: Path, as_json: bool) -> None:
    """Download the corpus NAME, verify its checksum and unpack it into FOLDER/NAME.

    The paths of its files are printed on standard output; `fflm corpus list` shows the names of corpora.

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
        echo_json(result, indent=2)
    else:
        click.echo("\n".join(map(str, files)))
        click.echo(f"license: {entry.license}\nsplit:   {entry.split}\ntrain:   {train}", err=True)
