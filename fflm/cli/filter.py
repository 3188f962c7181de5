"""`fflm filter`: keep the documents of a collection that a model predicts well."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.arguments import Processes, description, parameters
from fflm.cli.loading import find_model
from fflm.cli.options import annotated_option, field_option, given_options, json_option, model_option, quiet_option, refuse_fixed
from fflm.cli.progress import end_or_stop
from fflm.cli.report import describe_policy, echo_json, message_console
from fflm.cli.tables import printable
from fflm.errors import FflmError
from fflm.filtering.settings import FilterSettings, Selection
from fflm.signals import interruption

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.filtering.job import FilterJob, Progress, Report

SHOWN = 10
"""Number of broken records that are named on standard error; all are in the journal."""


class Percentage(click.ParamType[float]):
    """The type of options for a share: ``30%`` or ``0.3``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the share."""
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share: write 30% or 0.3", param, ctx)
        return share


def _share_option(name: str) -> Callable[[Any], Any]:
    text = description(parameters(Selection)[name].annotation)
    return click.option(f"--{name.replace('_', '-')}", type=Percentage(), metavar="SHARE", help=text)


@click.command()
@click.argument("inputs", nargs=-1)
@click.option("-o", "--output", metavar="FOLDER", help="The folder, or URL, for the filtered files.")
@click.option("--resume", metavar="FOLDER", help="Resume the filter with this output.")
@model_option
@field_option(Selection, "max_perplexity")
@field_option(Selection, "min_perplexity")
@_share_option("keep")
@_share_option("max_oov")
@field_option(FilterSettings, "field", metavar="NAME")
@field_option(FilterSettings, "format")
@field_option(FilterSettings, "scores")
@click.option("--fast", is_flag=True, help=description(parameters(FilterSettings)["fast"].annotation))
@annotated_option("processes", Processes, help="Number of worker processes; by default one per core.")
@quiet_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    output: str | None,
    resume: str | None,
    model_path: Path | None,
    processes: int | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep the documents of INPUTS that a model predicts well, and score each document.

    INPUTS are files, folders, and URLs that fsspec opens (s3://..., https://...). They are JSON lines (.jsonl, .ndjson, .json),
    Parquet (.parquet), or plain text with a document per line (.txt); the first and the last may be compressed (.gz, .bz2, .xz,
    .zst). For each input file, a filtered file with the same name, format and order of documents is written to the output folder.

    Records get the fields fflm_perplexity, fflm_bits_per_character, fflm_bits_per_byte, fflm_oov_rate and fflm_tokens. Without a
    condition, all documents are kept, so that they are only scored.

    A record without a text is counted and named, and left out. Ctrl-C stops, and --resume continues, also after a kill: no
    document is lost or repeated.

    \b
    Example:
      fflm filter crawl/ -m clean.ngram -o kept --max-perplexity 300
      fflm filter crawl/*.jsonl.gz -o best --keep 30% --max-oov 20%
      fflm filter --resume best
    """
    from fflm.filtering.job import resume_job

    given = given_options(context)
    if resume:
        refuse_fixed(given, {"resume", "processes", "quiet", "as_json"}, "a resumed filter keeps its inputs and settings")
        job = resume_job(resume)
    elif inputs and output:
        job = _start(inputs, output, model_path, quiet, options)
    else:
        raise click.UsageError("give documents and -o FOLDER, or --resume a filter")
    reports: list[Report] = []

    def work() -> bool:
        with interruption(), _showing(message_console(quiet)) as show:
            reports.append(job.run(processes, show))
        return True

    end_or_stop(context, work, lambda: f"stopped; resume with: fflm filter --resume {resume or output}")
    report = reports[0]
    _report(report, job, quiet, as_json)
    if report.broken and not report.documents:
        raise FflmError(f"none of the {len(report.broken):,} records has a text: name its field with `field`")


def _start(inputs: tuple[str, ...], output: str, model_path: Path | None, quiet: bool, options: dict[str, Any]) -> "FilterJob":
    """Start a job."""
    from fflm.filtering.job import start_job
    from fflm.models.folder import LANGUAGE_MODELS, read_config

    selection = Selection(**{name: options.pop(name) for name in parameters(Selection)})
    settings = FilterSettings(selection, **options)
    path, _ = find_model(model_path, quiet, read_config, *(("network",) if settings.fast else LANGUAGE_MODELS))
    return start_job(inputs, output, path, settings)


@contextmanager
def _showing(console: "Console") -> Iterator[Callable[["Progress"], None]]:
    """Display the progress of a job; yield a function that is called with it."""
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {
            writes: bar.add_task(what, total=1.0, visible=False) for writes, what in ((False, "scoring"), (True, "filtering"))
        }
        yield lambda progress: bar.update(tasks[progress.writes], completed=progress.fraction, visible=True)


def _report(report: "Report", job: "FilterJob", quiet: bool, as_json: bool) -> None:
    """Print what was filtered."""
    if not quiet:
        for number, (place, reason) in enumerate(report.broken.items()):
            if number == SHOWN:
                click.echo(f"... and {len(report.broken) - SHOWN:,} more, all in {job.journal.file}", err=True)
                break
            click.echo(printable(f"{place}: {reason}"), err=True)
    if as_json:
        echo_json(dataclasses.asdict(report))
        return
    share = report.kept / report.documents if report.documents else 0.0
    limit = "" if report.threshold is None else f", perplexity up to {report.threshold:,.2f}"
    levels = ", ".join(f"{level}%: {value:,.1f}" for level, value in report.perplexities.items())
    rows = {
        "output": printable(report.output),
        "documents": f"{report.documents:,} (files: {report.files:,})",
        "kept": f"{report.kept:,} ({share:.1%}{limit})",
        "broken records": f"{len(report.broken):,}",
        "without words": f"{report.blank:,}",
        "perplexity": levels or "-",
        "OOV rate": "-" if report.oov_rate is None else f"{report.oov_rate:.2%}",
        "vocabulary": f"{report.model['vocabulary']:,} ({printable(str(report.model['rule']))})",
    }
    rows |= dict([describe_policy(str(report.model["policy"]))])
    click.echo("\n".join(f"{name:16}{value}" for name, value in rows.items()))
