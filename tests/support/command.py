"""Functions that run the command line, in this process or as the installed command."""

import contextlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import click
from click.testing import CliRunner

from fflm.cli import main

FFLM = str(Path(sysconfig.get_path("scripts")) / "fflm")

STORIES = (Path(__file__).parents[2] / "corpora" / "stories.txt").read_text(encoding="utf-8")[:3000]
"""A text on which a small network is trained in less than a second."""

SMALL = ("--embedding", "6", "--hidden", "8", "--batch-size", "64", "--window", "3")
"""Options of a small network."""

PERPLEXITY = (
    r"perplexity [\d.,]+ over [\d,]+ tokens, OOV rate [\d.]+%, \d+\.\d{3} bits per character; "
    r"vocabulary [\d,]+ \(words seen at least \d+ times in train\); line ends predicted as </s>, contexts may cross lines"
)
"""A pattern of a reported perplexity with its evaluation conditions."""


def fflm(*arguments, folder, environment=None, input=None):
    """Run a command line in this process, which saves the time for imports; return its output and exit status.

    The result has the same fields as that of `installed_fflm`. Tests of signals or file descriptors need `installed_fflm`, as
    those of this process belong to pytest.
    """
    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, [*map(str, arguments)], input=input, env=environment)
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def installed_fflm(*arguments, folder, environment=None, **options):
    """Run the installed command in a folder with additional environment variables; return its output and exit status."""
    path = f"{Path(FFLM).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **(environment or {})}
    return subprocess.run(
        [FFLM, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def parse(line):
    """Parse a command line as the command would, without running it."""
    _, *arguments = shlex.split(line)
    command, context, name = main, click.Context(main, info_name="fflm"), "fflm"
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(context, arguments)
    return command.make_context(name, arguments, parent=context)


def snapshot(folder):
    """Return the content of every file below a folder, and None for every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
