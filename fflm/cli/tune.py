"""`fflm tune`: hyperparameter search."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.loading import use_device
from fflm.cli.options import (
    PATH,
    Command,
    HeadedCommand,
    add_options,
    check_number,
    given_options,
    json_option,
    network_options,
    preset_option,
    quiet_option,
    refuse_fixed,
    refuse_text_options,
    text_options,
    training_options,
)
from fflm.cli.progress import end_or_stop, in_all_processes
from fflm.cli.report import describe_classification, describe_perplexity, describe_text, echo_json, message_console, tokenizing
from fflm.cli.tables import Column, LiveTable, stdout_width, table
from fflm.errors import FflmError, did_you_mean
from fflm.signals import interruption
from fflm.training.settings import NetworkPreset

if TYPE_CHECKING:
    from rich.console import Console

    from fflm.search.search import Search
    from fflm.search.space import Choices, Kind, Range, Space
    from fflm.search.study import Trial


def search_options(command: Command) -> Command:
    """Add the arguments and options of a search, whose settings are options of the same command."""
    options = [
        click.argument("inputs", nargs=-1, type=PATH),
        click.option("-o", "--output", type=PATH, metavar="FOLDER", help="The search. [default: INPUT.tune]"),
        click.option("--resume", type=PATH, metavar="FOLDER", help="Resume this search."),
        click.option(
            "--search",
            multiple=True,
            metavar="NAME=VALUES",
            help="Search over an option below: a range, rate=0.001..0.01, or choices, 'hidden=256|512,512'. May be repeated. "
            "[default: rate, embedding-dropout, weight-decay, and dropout (networks) or hidden (classifiers)]",
        ),
        click.option(
            "--sampler",
            type=click.Choice(["bayesian", "random", "grid"]),
            default="bayesian",
            show_default=True,
            help="How settings are chosen: guided by earlier trials, at random, or all combinations of choices.",
        ),
        click.option("--trials", type=click.IntRange(1), help="Number of settings to try. [default: 20; all of a grid]"),
        click.option(
            "--minutes",
            type=click.FloatRange(0, min_open=True),
            callback=check_number,
            help="Stop after this many minutes; --resume continues.",
        ),
        click.option("--no-prune", is_flag=True, help="Train all trials to their end."),
        click.option(
            "--storage",
            type=click.Choice(["sqlite", "journal"]),
            default="sqlite",
            show_default=True,
            help="Where the search keeps its history: use a journal if several machines run the search on a shared file system.",
        ),
    ]
    return add_options(options, command)


@click.command(cls=HeadedCommand)
@search_options
@preset_option(NetworkPreset)
@network_options
@training_options
@text_options
@quiet_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[Path, ...],
    output: Path | None,
    resume: Path | None,
    minutes: float | None,
    save_every: float,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the settings with the lowest perplexity on the validation text of INPUTS. The test text is not used.

    A trial trains a network, as `fflm train` does with the same options. It is stopped early (pruned) if it is worse than the
    median of the other trials at an evaluation. The search is a folder that contains a table of the trials and the best model.
    Ctrl-C saves, and --resume continues with the same result as without an interruption. Several processes can run one search:
    start --resume in each, or all with `mpiexec`. Needs Optuna: `pip install '.[tune]'` in a checkout of fflm. For text
    classifiers, there is `fflm classify tune`.

    \b
    Example:
      fflm tune corpora/stories.txt --trials 30 --epochs 5
      fflm tune corpora/stories.txt --search rate=0.001..0.01 --search window=4..8
      fflm tune --resume stories.tune --trials 50
    """
    console = message_console(quiet)
    if not (resume or inputs):
        raise click.UsageError("give a text to train on, or --resume a search")

    def begin() -> "Search":
        if resume:
            return resume_search(context, resume, options["trials"], console)
        return _start(context, inputs, output, options, console)

    run_search(context, begin, minutes, save_every, console, as_json)


def resume_search(context: click.Context, path: Path, trials: int | None, console: "Console") -> "Search":
    """Resume a search after refusing options that a resumed search cannot change, and print how far it is."""
    from fflm.search.search import Search

    free = {"resume", "trials", "minutes", "save_every", "quiet", "as_json"}
    refuse_fixed(given_options(context), free, "a resumed search keeps its data and settings")
    search = Search.resume(path, trials=trials)
    console.print(f"resuming {path} after {sum(trial.state != 'running' for trial in search.trials)} trials")
    return search


def run_search(
    context: click.Context,
    begin: "Callable[[], Search]",
    minutes: float | None,
    save_every: float,
    console: "Console",
    as_json: bool,
) -> None:
    """Start or resume a search, and run all trials, or those of so many minutes.

    The trials are printed; after an interruption, how to resume. Of several processes, the first one starts or resumes it.
    """
    from fflm.search.search import Search

    search = in_all_processes(begin, Search.resume)
    search.save_seconds = save_every
    stopped = f"stopped and saved; resume with: {_command(search)} --resume {search.path}"
    end_or_stop(context, lambda: _watch(search, minutes, console), lambda: stopped)
    _report(search, as_json)


def _command(search: "Search") -> str:
    """Return the command that runs such searches."""
    return "fflm classify tune" if search.data.kind == "classifier" else "fflm tune"


def _start(
    context: click.Context, inputs: tuple[Path, ...], output: Path | None, options: dict[str, Any], console: "Console"
) -> "Search":
    """Start a search, and print the evaluation conditions of its text."""
    from fflm.search.search import start_search
    from fflm.search.space import DEFAULT_SPACE

    refuse_text_options(inputs, given_options(context))
    space = read_space(context, options.pop("search"), DEFAULT_SPACE, "network")
    options["device"] = use_device(options["device"], console.quiet)
    prune = not options.pop("no_prune")
    with tokenizing(console) as progress:
        search = start_search(inputs, output, space, prune=prune, progress=progress, **options)
    console.print("\n".join(describe_text(**search.corpus.conditions)))
    return search


def read_space(context: click.Context, specifications: Sequence[str], default: "Space", kind: "Kind") -> "Space":
    """Return the search space from the values of --search, by default the settings of ``default`` that are not given."""
    given = given_options(context)
    space = {name: part for specification in specifications for name, part in [_read_part(context, specification, kind)]}
    if len(space) < len(specifications):
        names = [specification.partition("=")[0] for specification in specifications]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"--search {twice} is given twice: give all its values in one")
    if both := [given[name] for name in space if name in given]:
        raise click.UsageError(f"{', '.join(both)}: give one value, or --search for it")
    return space or {name: part for name, part in default.items() if name not in given}


def _read_part(context: click.Context, specification: str, kind: "Kind") -> "tuple[str, Range | Choices]":
    """Return a setting and its values from a value of --search, which is parsed like the option that it names."""
    from fflm.search.space import Choices, Range, searchable

    parameters = {param.name: param for param in context.command.params}
    names = [name for name in searchable(kind) if name in parameters]
    name, _, text = specification.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if name not in names:
        raise click.UsageError(f"cannot search over {name!r}{did_you_mean(name, names)}: choose from {', '.join(names)}")
    ranged = ".." in text
    values = [parameters[name].type(each, parameters[name], context) for each in text.split(".." if ranged else "|")]
    if not ranged:
        return name, Choices(tuple(values))
    if len(values) == 2 and all(type(value) in (int, float) for value in values):
        return name, Range(*values)
    raise click.UsageError(f"{text!r} is not a range of {name}: write LOW..HIGH for numbers, A|B|C for choices")


def _watch(search: "Search", minutes: float | None, console: "Console") -> bool:
    """Run and display the trials; return True at the end or after ``minutes``, False after an interruption."""
    from rich.progress import BarColumn, Progress, TextColumn

    from fflm.search.study import Trial
    from fflm.training.events import Step
    from fflm.training.session import Session

    deadline = time.monotonic() + 60 * minutes if minutes else None
    columns = (
        TextColumn("trial {task.fields[trial]}/{task.fields[trials]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
    )
    table = LiveTable(_columns(search), console.width if console.is_terminal else None)

    def ended() -> int:
        """Return how many trials have ended, in all processes."""
        return sum(trial.state != "running" for trial in search.trials)

    with (
        interruption() as interrupted,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        done = ended()
        task = progress.add_task("", total=None, trial=done + 1, trials=search.limit)
        if done < search.limit:
            console.print(table.head)
        if interrupted.received:
            raise KeyboardInterrupt
        for event in search.events():
            stop = interrupted.received
            if stop:
                search.save()  # before printing anything, which fails if the terminal was closed
            if isinstance(event, Session):
                state, settings = event.trainer.state, event.trainer.settings
                total = len(event.trainer.train) * settings.epochs
                counts: dict[str, Any] = {"trial": ended() + 1, "trials": search.limit}  # `reset` removes all other fields
                progress.reset(task, total=total, completed=state.words, **counts)
            elif isinstance(event, Trial):
                progress.console.print(table.row(_row(search, event)))
            elif isinstance(event, Step):
                interrupted.deferred = True  # the kernels have been compiled
                progress.update(task, completed=state.words)
            if stop:
                return False
            if deadline and time.monotonic() > deadline and (done := ended()) < search.limit:
                search.save()
                console.print(f"the time is up, after {done} trials; resume with: {_command(search)} --resume {search.path}")
                break
    return True


def _columns(search: "Search") -> list[Column]:
    """Return the columns of the table of trials, which fits 80 columns for the default search space."""
    settings = [Column(name, 7, optional=True) for name in search.space]
    return [Column("trial"), Column(search.data.measure, 10), Column("", 1), Column("epochs"), *settings, Column("", left=True)]


def _row(search: "Search", trial: "Trial") -> list[str]:
    """Return a row of the table of trials."""
    from fflm.search.space import show

    value = getattr(trial, search.data.measure)
    shown = "-" if value is None else f"{value:,.2f}" if search.data.measure == "perplexity" else f"{value:.4f}"
    mark = "*" if trial == search.best else ""
    state = "" if trial.state == "complete" else trial.state
    return [str(trial.number), shown, mark, f"{trial.epochs:g}", *map(show, trial.values.values()), state]


def _report(search: "Search", as_json: bool) -> None:
    """Print all trials, the best first, the evaluation conditions, and the command that trains the best model again."""
    from fflm.search.study import ranking

    trials, best = ranking(search.trials), search.best
    if best is None and len(trials) == search.limit and all(trial.state != "running" for trial in trials):
        reasons = {trial.reason for trial in trials if trial.reason}
        raise FflmError(f"no trial was completed ({'; '.join(sorted(reasons))}): give another search space")
    model, again, figures = None, None, {}
    if best:
        model, again = search.folder(best), _train_command(search, best)
        figures = search.figures(best)
    if as_json:
        measure = search.data.measure
        rows = [{**dataclasses.asdict(trial), measure: getattr(trial, measure)} for trial in trials]
        result = {
            "search": str(search.path),
            "model": model and str(model),
            "valid": figures or None,
            "train": again,
            "trials": rows,
        }
        echo_json(result)
        return
    columns = _columns(search)
    alignment = "".join("l" if column.left else "r" for column in columns)
    cells = [_row(search, trial) for trial in trials]
    click.echo("\n".join(table(alignment, [column.heading for column in columns], cells, stdout_width())))
    if best:
        click.echo(f"model {model}")
        click.echo(f"valid {describe_valid(search, figures)}")
        if again:
            click.echo(f"to train the best model again: {again}")
        if search.data.has_test:
            train = "fflm classify train" if search.data.kind == "classifier" else "fflm train"
            click.echo(f"on the test text, once you have chosen: {train} --resume {shlex.quote(str(model))}")


def describe_valid(search: "Search", figures: dict[str, Any]) -> str:
    """Return a line with the figures of a model of a search on the validation part."""
    from fflm.search.data import LabeledData

    if isinstance(search.data, LabeledData):
        return describe_classification(figures, search.data.data.reader.input.unit)
    return describe_perplexity(figures)


def _train_command(search: "Search", trial: "Trial") -> str | None:
    """Return the command that trains the model of a trial again; None for a classifier, whose text the search has no path of."""
    if search.data.kind == "classifier":
        return None
    from fflm.backend.cpu.launching import default_threads
    from fflm.cli import train
    from fflm.search.space import show

    config, settings = search.configure(trial.values)
    fields = {**config.to_dict(), **settings.to_dict()}
    words = ["fflm", "train", str(search.corpus.path), "-o", str(search.path.with_suffix(".model"))]
    for param in train.command.params:
        value = fields.get(param.name or "")
        value = tuple(value) if isinstance(value, list) else value
        if value is None or value == param.default:
            continue
        if isinstance(value, bool):
            words.append(param.opts[-1] if value else param.secondary_opts[-1])
        else:
            words += [param.opts[-1], show(value)]
    compute = search.compute
    if compute.threads != default_threads():
        words += ["--threads", str(compute.threads)]
    if compute.device != "cpu":
        words += ["--device", compute.device]
    if compute.precision != "fp32":
        words += ["--precision", compute.precision]
    return shlex.join(words)
