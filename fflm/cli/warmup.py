"""`fflm warmup`: ahead-of-time compilation of all kernels."""

import time

import click

from fflm.cli.loading import use_device
from fflm.cli.options import device_option, json_option, quiet_option
from fflm.cli.report import echo_json


@click.command()
@device_option
@quiet_option
@json_option
def command(device: str, quiet: bool, as_json: bool) -> None:
    """Compile all kernels now, so that later commands do not have to.

    The compiled kernels are stored in the installed package if it is writable, so that it can be read-only afterwards, as in a
    container image, and otherwise in the user's cache folder. The environment variable NUMBA_CACHE_DIR selects another folder.

    \b
    Example:
      fflm warmup
    """
    from fflm.compiling import cache_folders
    from fflm.warmup import warm_up

    started = time.monotonic()
    for step in warm_up(use_device(device, quiet)):
        if not quiet:
            click.echo(f"{step} ...", err=True)
    folders = [folder for folder in cache_folders() if folder.is_dir()]
    kernels = sum(1 for folder in folders for _ in folder.glob("*.nbc"))
    seconds = time.monotonic() - started
    if as_json:
        echo_json({"folders": [str(folder) for folder in folders], "kernels": kernels, "seconds": seconds})
        return
    click.echo(f"{kernels} compiled kernels in {', '.join(map(str, folders))}, after {seconds:.0f} s")
