"""`fflm bench`: benchmarks of this machine's CPU and GPU."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.options import PATH, Sizes, check_number, device_option_with, json_option, overwrite_option, quiet_option
from fflm.cli.report import echo_json
from fflm.cli.tables import Column, LiveTable, stdout_width

if TYPE_CHECKING:
    from fflm.bench import Size, Timing


@click.command()
@click.option("--vocabulary", type=Sizes(), default="1000,10000", show_default=True, help="One or several vocabulary sizes.")
@click.option("--hidden", type=Sizes(), default="128", show_default=True, help="One or several sizes of the hidden layer.")
@click.option("--batch-size", type=Sizes(), default="256", show_default=True, help="One or several batch sizes.")
@click.option("--embedding", type=click.IntRange(1), default=64, show_default=True, help="Embedding dimension.")
@click.option("--window", type=click.IntRange(1), default=5, show_default=True, help="Number of context words.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: all cores]")
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=0.1,
    show_default=True,
    callback=check_number,
    help="Minimum duration of each round.",
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Plot of the training steps: .png, .svg or .pdf.")
@overwrite_option
@device_option_with("auto")
@quiet_option
@json_option
def command(
    threads: int | None,
    seconds: float,
    output: Path | None,
    overwrite: bool,
    device: str,
    quiet: bool,
    as_json: bool,
    **sizes: Any,
) -> None:
    """Time the operations of the network and whole training steps, for all combinations of the sizes.

    By default, the CPU is compared with a GPU if one works, after a check that both compute the same. The devices take turns in
    five rounds, and the result is the median; --json also prints all rounds, the machine and the versions of the libraries.
    GFLOP/s are billions of additions and multiplications per second in matrix products, in float32.

    \b
    Example:
      fflm bench --vocabulary 1000,10000,50000 --hidden 128,512
      fflm bench --batch-size 1024 -o bench.png
    """
    from fflm.backend.cpu.launching import default_threads
    from fflm.backend.devices import device_backend
    from fflm.bench import machine, measure, versions
    from fflm.errors import FflmError
    from fflm.files import check_file
    from fflm.plots import check_picture, draw_speeds

    combinations = _sizes(**sizes)
    if output:
        check_picture(output)
        check_file(output, overwrite)
    most = default_threads()
    if threads and threads > most:
        raise click.UsageError(f"there are {most} cores for {threads} threads: give --threads {most} or fewer")
    count = threads or most
    names = _device_names(device, count, quiet)
    timings: list[Timing] = []
    table = LiveTable(_columns(list(names)), stdout_width())
    try:
        for timing in measure(combinations, {name: device_backend(name, threads=count) for name in names}, seconds):
            timings.append(timing)
            if timing.device == list(names)[-1] and not as_json:
                _show(timings, list(names), table)
    except MemoryError as error:
        raise FflmError("not enough memory: give a smaller --vocabulary, --hidden or --batch-size") from error
    rows = [_row(timing) for timing in timings]
    if output:
        draw_speeds([row for row in rows if row["operation"] == "training step"], names, output, overwrite=overwrite)
    if as_json:
        about = {"machine": {**machine(), "threads": count}, "versions": versions()}
        echo_json({"devices": names, **about, "timings": rows})


def _sizes(
    vocabulary: Sequence[int], hidden: Sequence[int], batch_size: Sequence[int], embedding: int, window: int
) -> "list[Size]":
    """Return all combinations of the sizes; raise a UsageError if one is not positive."""
    from fflm.bench import Size

    if min(*vocabulary, *hidden, *batch_size, 2) < 1 or not (vocabulary and hidden and batch_size):
        raise click.UsageError("sizes are positive numbers, such as 1000,10000")
    return [
        Size(words, embedding, window, units, rows) for words, units, rows in itertools.product(vocabulary, hidden, batch_size)
    ]


def _device_names(device: str, threads: int, quiet: bool) -> dict[str, str]:
    """Return the names of the devices to time with their descriptions, and print these."""
    from fflm.backend.devices import choose_device, describe_device, why_no_gpu

    names: dict[str, str] = {"cpu": f"cpu ({threads} {'threads' if threads > 1 else 'thread'})"}
    if choose_device(device) == "cuda":
        names["cuda"] = describe_device("cuda")
    if not quiet:
        reason = f"; no GPU: {why_no_gpu()}" if device == "auto" and len(names) == 1 else ""
        click.echo(f"devices: {', '.join(names.values())}{reason}", err=True)
    return names


def _row(timing: "Timing") -> dict[str, Any]:
    """Return a timing as JSON."""
    return {
        **dataclasses.asdict(timing.size),
        "operation": timing.operation,
        "device": timing.device,
        "seconds": timing.seconds,
        "fastest": min(timing.rounds),
        "slowest": max(timing.rounds),
        "rounds": timing.rounds,
        "calls_per_round": timing.calls,
        "tokens_per_second": timing.tokens_per_second,
        "gflops": timing.gflops,
    }


def _columns(devices: Sequence[str]) -> list[Column]:
    """Return the columns of the table of timings."""
    columns = [Column("", 20, left=True)]
    for device in devices:
        columns += [Column(f"{device} ms", 10), Column("tokens/s", 12, optional=True), Column("GFLOP/s", 9, optional=True)]
    return columns + [Column("times", 7)] * (len(devices) > 1)


def _show(timings: "Sequence[Timing]", devices: Sequence[str], table: LiveTable) -> None:
    """Print the row of the last operation, and before the first operation of each size the head of the table."""
    own = timings[-len(devices) :]
    size = own[0].size
    if len(timings) == len(own) or timings[-len(own) - 1].size != size:
        click.echo(f"vocabulary {size.vocabulary:,}, hidden {size.hidden:,}, batch {size.batch:,}")
        click.echo(table.head)
    cells = [f"  {own[0].operation}"]
    for timing in own:
        rate = "-" if timing.gflops is None else f"{timing.gflops:,.1f}"
        cells += [f"{1000 * timing.seconds:,.3f}", f"{timing.tokens_per_second:,.0f}", rate]
    if len(own) > 1:
        cells.append(f"{own[0].seconds / own[1].seconds:.2f}")
    click.echo(table.row(cells))
