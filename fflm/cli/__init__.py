"""The command line: a module a command, heavy imports inside the commands, results on stdout and everything else on stderr."""

import sys

try:
    import contextlib
    import importlib
    import os
    import re
    import signal
    from pathlib import Path
    from typing import Any, NoReturn

    import click

    from fflm.errors import FflmError
except KeyboardInterrupt:  # most of the time before `main` runs passes here
    sys.stderr.write("error: interrupted\n")
    sys.exit(130)

COMMANDS = {
    "train": "Train a model on text.",
    "tune": "Search for good settings.",
    "ngram": "Train n-gram models; read and write ARPA files.",
    "classify": "Train text classifiers, predict labels, evaluate.",
    "tokenize": "Turn text into word ids on disk, to train on later.",
    "generate": "Continue a prefix.",
    "next": "Show the distribution of the next word.",
    "score": "Measure perplexity, or score words, sentences and n-best lists.",
    "vectors": "Export the word embeddings.",
    "neighbours": "Show the words nearest to a word.",
    "analogy": "Answer a is to b as c is to ...",
    "info": "Show what a model is and how it was trained.",
    "plot": "Draw the training curves, or the trials of a search.",
    "bench": "Time the kernels of this machine's devices.",
    "corpus": "List and fetch well-known corpora.",
    "completion": "Print the shell's completion script.",
}


class _Group(click.Group):
    """A group that imports a command's module when the command is used, and shows errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"fflm.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *arguments: Any, **extra: Any) -> NoReturn:
        """Run a command; whatever a user or the machine may have done wrong is one line on stderr."""
        try:
            _open_standard_streams()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends us as Ctrl-C does: temporary files are removed
            status = super().main(*arguments, **{**extra, "prog_name": "fflm", "standalone_mode": False})
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "fflm"
            status = _fail(f"{error.format_message()} (`{path} --help` shows the usage)", error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            status = _fail("interrupted", 130)
        except FflmError as error:
            status = _fail(_as_options(str(error)), 1)
        except MemoryError as error:
            status = _fail(f"not enough memory: {error or 'use a smaller model or less text'}", 1)
        except OSError as error:
            with contextlib.suppress(OSError):  # whatever is left of our output, nobody reads it (`fflm next | head`) or can
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            message = f"{error.filename or 'standard output'}: {error.strerror or error}"
            status = 1 if isinstance(error, BrokenPipeError) else _fail(message, 1)
        sys.exit(status)


def _open_standard_streams() -> None:
    """Put the null device where a standard stream was closed, as by ``fflm score <&-``, and Python has None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115


_SPELLINGS = {"lexicons": "lexicon", "path": "output", "source": "vocabulary-source", "words": "vocabulary"}
"""Options that are not called as the arguments of Python's functions."""


def _as_options(message: str) -> str:
    """Return an error's text with options in place of the arguments that stand in backquotes, as `overwrite=True`."""

    def option(found: re.Match[str]) -> str:
        name, value = _SPELLINGS.get(found["name"], found["name"].replace("_", "-")), found["value"]
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return re.sub(r"`(?P<name>\w+)(?:=(?P<quote>'?)(?P<value>\w+)(?P=quote))?`", option, message)


def _fail(message: str, status: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return status


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fflm")
def main() -> None:
    """Feedforward neural language models: train on text, generate, score.

    \b
    Example:
      fflm train corpora/stories.txt
      fflm generate --prefix "The cat"
    """
