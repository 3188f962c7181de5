"""The command line: one module per command. Results go to standard output, and everything else to standard error.

The modules import what takes long inside their functions, so that help texts are printed quickly.
"""

import sys

try:
    import codecs
    import contextlib
    import importlib
    import io
    import logging
    import os
    import re
    import warnings
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, NoReturn

    import click

    from fflm.environment import check_environment
    from fflm.errors import FflmError, FflmWarning, SettingsError, did_you_mean
    from fflm.parallel.launch import launched_as, refuse_several_processes
    from fflm.signals import interruption
except KeyboardInterrupt:  # these imports take most of the time before `main` can handle Ctrl-C
    sys.stderr.write("error: interrupted\n")
    sys.exit(130)

COMMANDS = {
    "train": "Train a neural language model on text.",
    "tune": "Search for good training settings.",
    "ngram": "Train n-gram models; read and write ARPA files.",
    "classify": "Train and evaluate text classifiers, predict labels.",
    "tokenize": "Tokenize text into word ids on disk, to train on later.",
    "generate": "Generate text from a prefix.",
    "next": "Show the distribution of the next word.",
    "score": "Measure perplexity, or score words, sentences and n-best lists.",
    "filter": "Keep the documents of a collection that a model predicts well.",
    "mix": "Interpolate models, with tuned weights.",
    "quantize": "Write a copy of a model with 8 bits for each number.",
    "vectors": "Export the word embeddings.",
    "neighbours": "Show the words nearest to a word.",
    "analogy": "Answer: A is to B as C is to ...?",
    "info": "Show a model's configuration, training and figures.",
    "plot": "Plot training curves, or the trials of a search.",
    "bench": "Benchmark this machine's CPU and GPU.",
    "warmup": "Compile all kernels now, for example for a container image.",
    "corpus": "List and download well-known corpora.",
    "completion": "Print a completion script for a shell.",
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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            name, command, rest = super().resolve_command(ctx, args)
            if not {"-h", "--help"}.intersection(rest):
                check_environment()
                if launched_as()[1] > 1:
                    _connect_processes([name or "", *rest])
            return name, command, rest
        except click.NoSuchCommand as error:  # click looks for similar commands among those that are imported
            raise click.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if error.ctx is None and ctx.invoked_subcommand:  # click's parser does not say which command lacks a value
                error.ctx = click.Context(click.Command(ctx.invoked_subcommand), ctx, ctx.invoked_subcommand)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *arguments: Any, **extra: Any) -> NoReturn:
        """Run a command, and exit; every error that the user can solve is shown as one line on standard error."""
        message = ""
        try:
            _open_standard_streams()
            _mute_all_but_first()
            _show_log()
            with interruption(), _warnings_as_lines():
                status = super().main(*arguments, **{**extra, "prog_name": "fflm", "standalone_mode": False})
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "fflm"
            message = re.sub("a valid (integer|float) range", r"a valid \1", error.format_message())  # as click calls its types
            if meant := _meant_choice(error):
                message = message.removesuffix(".") + meant
            message, status = f"{message} (`{path} --help` shows the usage)", error.exit_code
        except (click.Abort, KeyboardInterrupt) as error:
            if isinstance(error.__cause__, EOFError):  # click treats it as Ctrl-D at a prompt, but there are no prompts
                message, status = f"a file ended too early: {str(error.__cause__) or 'it is incomplete or damaged'}", 1
            else:
                message, status = "interrupted", 130
        except FflmError as error:
            broken_pipe = isinstance(error.__cause__, BrokenPipeError)  # for example with `-o /dev/stdout | head`
            message, status = "" if broken_pipe else _as_commands(str(error)), 2 if isinstance(error, SettingsError) else 1
        except MemoryError as error:
            message, status = f"not enough memory: {error or 'use a smaller model or less text'}", 1
        except OSError as error:
            with contextlib.suppress(OSError):  # discard buffered output, which cannot be written (`fflm next | head`)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            broken_pipe = isinstance(error, BrokenPipeError)
            message, status = "" if broken_pipe else f"{error.filename or 'standard output'}: {error.strerror or error}", 1
        if message:
            _say(f"error: {message}")
        if status and launched_as()[1] > 1:
            from fflm.parallel.world import end_all

            end_all(status, message)
        sys.exit(status)


def _open_standard_streams() -> None:
    """Make the standard streams usable, whatever the shell and the locale are.

    A closed stream, as in ``fflm score <&-``, for which Python has None, is replaced by the null device. Files and pipes are
    written in UTF-8, which is also the default encoding of input. A terminal keeps its own encoding. Characters that an encoding
    lacks, and unpaired surrogates, which stand for bytes of file names that are not UTF-8, are written like ``\\uXXXX`` in JSON.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    codecs.register_error("fflm.escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in some notebooks
            keep = stream.isatty() and codecs.lookup(stream.encoding).name != "ascii"  # Python's encoding if there is no locale
            stream.reconfigure(encoding=None if keep else "utf-8", errors="fflm.escape")


def _mute_all_but_first() -> None:
    """Let only the first of several processes print."""
    rank, _ = launched_as()
    if rank > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _connect_processes(words: list[str]) -> None:
    """Connect the processes in which a command was started, or refuse a command that uses one process.

    This comes before anything that may fail in one of the processes, which the others could not notice otherwise.
    """
    groups = ["classify", "train"], ["classify", "tune"], ["ngram", "train"]
    if words[0] in ("train", "tune", "score", "tokenize") or words[:2] in groups:
        from fflm.parallel.world import world

        world()
    else:
        refuse_several_processes(f"`fflm {words[0]}`")


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return the escape sequences of JSON for characters that an encoding lacks; Python's, such as ``\\xe9``, are not JSON."""
    import json

    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _meant_choice(error: click.UsageError) -> str:
    """Return a suggestion (see `did_you_mean`) if the error is about a value that is not one of an option's choices."""
    if not (isinstance(error, click.BadParameter) and error.param and isinstance(error.param.type, click.Choice)):
        return ""
    typed = re.match(r"'(.*?)' is not", error.message)
    return did_you_mean(typed[1], error.param.type.choices) if typed else ""


class _Echo(logging.Handler):
    """Writes messages to the current `sys.stderr`, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(f"{'warning: ' * (record.levelno >= logging.WARNING)}{record.getMessage()}")


def _show_log() -> None:
    """Print the library's log messages, for example about compiling kernels; with `--quiet`, only warnings and errors."""
    logger = logging.getLogger("fflm")
    logger.handlers = [_Echo()]
    logger.setLevel(logging.INFO)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print fflm's warnings as one line on standard error, also with --quiet; those of other libraries are unchanged."""
    with warnings.catch_warnings():
        default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, FflmWarning):
                _say(f"warning: {_as_commands(str(message))}")
            else:
                default(message, category, *where, **more)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", FflmWarning)
        yield


_FUNCTIONS = {
    "fflm.train": "fflm train",
    "fflm.train_ngram": "fflm ngram train",
    "fflm.train_classifier": "fflm classify train",
    "fflm.mix": "fflm mix",
    "fflm.Text": "-",
    "fflm.TextClassifier": "fflm classify",
    "fflm.search.search.start_search": "fflm tune",
    "fflm.text.tokenize.tokenize": "fflm tokenize",
    "fflm.filter": "fflm filter",
    "fflm.resume": "fflm train --resume",
    "fflm.resume_filter": "fflm filter --resume",
    "Search.resume": "fflm tune --resume",
}
"""The commands that correspond to the functions and classes in messages of the library."""


def _is_classifier(path: str) -> bool:
    """Return whether there is a text classifier in a folder."""
    from fflm.models.folder import read_config

    with contextlib.suppress(FflmError):
        return bool(read_config(Path(path)).get("kind") == "classifier")
    return False


def _as_commands(message: str) -> str:
    """Return a message of the library in the terms of the command line.

    Python code in backquotes is translated: arguments such as `overwrite=True` to options, and functions such as `fflm.mix` or
    calls such as `Search.resume('x.tune')` to commands.
    """
    from fflm.arguments import OPTION_NAMES

    names = "|".join(map(re.escape, _FUNCTIONS))

    def command(found: re.Match[str]) -> str:
        name, path = found["name"], found["path"]
        words = "fflm classify train --resume" if name == "fflm.resume" and path and _is_classifier(path) else _FUNCTIONS[name]
        return f"`{words} {path}`" if path else f"`{words}`"

    message = re.sub(rf"`(?P<name>{names})(?:\('(?P<path>.*?)'\))?`", command, message)

    def option(found: re.Match[str]) -> str:
        name, value = OPTION_NAMES.get(found["name"], found["name"].replace("_", "-")), found["value"]
        if value == "False":
            return f"--no-{name}"
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return re.sub(r"`(?P<name>\w+)(?:=(?P<quote>'?)(?P<value>[\w.-]+)(?P=quote))?`", option, message)


def _say(message: str) -> None:
    """Print a message as one line without control characters, because it may quote the content of files that are not trusted."""
    from fflm.cli.tables import printable

    click.echo(printable(" ".join(message.split())), err=True)


@click.command(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fflm")
def main() -> None:
    """Feedforward neural language models: train on text, generate, score.

    \b
    Example:
      fflm train corpora/stories.txt
      fflm generate --prefix "The cat"

    \b
    Exit status:
      0    success
      1    an error, explained by one line on standard error
      2    wrong usage
      130  interrupted by Ctrl-C or a signal
    """
