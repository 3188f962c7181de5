"""`fflm bench`: how fast this machine is."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fflm.cli.options import Sizes, device_option_with, json_option, quiet_option
from fflm.cli.tables import Column, LiveTable, stdout_width

if TYPE_CHECKING:
    from fflm.bench import Timing


@click.command()
@click.option("--vocabulary", type=Sizes(), default="1000,10000", show_default=True, help="Words, one or several numbers.")
@click.option("--hidden", type=Sizes(), default="128", show_default=True, help="Hidden units.")
@click.option("--batch-size", type=Sizes(), default="256", show_default=True, help="Words per update.")
@click.option("--embedding", type=click.IntRange(1), default=64, show_default=True, help="Size of the embeddings.")
@click.option("--window", type=click.IntRange(1), default=5, show_default=True, help="Context words.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU's kernels. [default: all cores]")
@click.option("--seconds", type=click.FloatRange(0), default=0.1, show_default=True, help="A round, at least; there are five.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Draw the training steps: .png, .svg or .pdf."
)
@device_option_with("auto")
@quiet_option
@json_option
def command(
    vocabulary: tuple[int, ...],
    hidden: tuple[int, ...],
    batch_size: tuple[int, ...],
    embedding: int,
    window: int,
    threads: int | None,
    seconds: float,
    output: Path | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Time the operations of the network and whole training steps, for all combinations of the sizes.

    The CPU's kernels beside those of a GPU if one works, after seeing that both compute the same; with --device cpu, those of the
    CPU. The devices take turns in five rounds, and the median counts; --json has all rounds, the machine and the versions of the
    libraries. GFLOP/s are billions of additions and multiplications in matrix products, float32.

    \b
    Example:
      fflm bench --vocabulary 1000,10000,50000 --hidden 128,512
      fflm bench --batch-size 1024 -o bench.png
    """
    from fflm.backend.cpu.launching import default_threads
    from fflm.backend.devices import choose_device, describe_device, device_backend, why_no_gpu
    from fflm.bench import Size, machine, measure, versions
    from fflm.errors import FflmError
    from fflm.plots import check_picture, draw_speeds

    if min(*vocabulary, *hidden, *batch_size, 2) < 1 or not (vocabulary and hidden and batch_size):
        raise click.UsageError("sizes are positive numbers, such as 1000,10000")
    if output:
        check_picture(output)
    most = default_threads()
    if threads and threads > most:
        raise click.UsageError(f"there are {most} cores for {threads} threads: give --threads {most} or fewer")
    devices = ["cpu", "cuda"] if choose_device(device) == "cuda" else ["cpu"]
    count = threads or most
    names = {"cpu": f"cpu ({count} {'threads' if count > 1 else 'thread'})"} | {
        name: describe_device(name) for name in devices[1:]
    }
    if not quiet:
        reason = f"; no GPU: {why_no_gpu()}" if device == "auto" and len(devices) == 1 else ""
        click.echo(f"devices: {', '.join(names.values())}{reason}", err=True)
    sizes = [
        Size(words, embedding, window, units, rows) for words, units, rows in itertools.product(vocabulary, hidden, batch_size)
    ]
    timings: list[Timing] = []
    table = LiveTable(_columns(devices), stdout_width())
    try:
        for timing in measure(sizes, {name: device_backend(name, threads=count) for name in devices}, seconds):
            timings.append(timing)
            if timing.device == devices[-1] and not as_json:
                _show(timings, devices, table)
    except MemoryError as error:
        raise FflmError("not enough memory: give a smaller --vocabulary, --hidden or --batch-size") from error
    if output:
        draw_speeds([_row(timing) for timing in timings if timing.operation == "training step"], names, output)
    if as_json:
        result = {
            "devices": names,
            "machine": {**machine(), "threads": count},
            "versions": versions(),
            "timings": [_row(timing) for timing in timings],
        }
        click.echo(json.dumps(result))


def _row(timing: "Timing") -> dict[str, Any]:
    return {
        **dataclasses.asdict(timing.size), "operation": timing.operation, "device": timing.device, "seconds": timing.seconds,
        "fastest": min(timing.rounds), "slowest": max(timing.rounds), "rounds": timing.rounds, "calls_per_round": timing.calls,
        "tokens_per_second": timing.tokens_per_second, "gflops": timing.gflops,
    }  # fmt: skip


def _columns(devices: Sequence[str]) -> list[Column]:
    columns = [Column("", 20, left=True)]
    for device in devices:
        columns += [Column(f"{device} ms", 10), Column("tokens/s", 12, optional=True), Column("GFLOP/s", 9, optional=True)]
    return columns + [Column("times", 7)] * (len(devices) > 1)


def _show(timings: "Sequence[Timing]", devices: Sequence[str], table: LiveTable) -> None:
    """Print the last operation's row, under a head if it is the first of its size."""
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
