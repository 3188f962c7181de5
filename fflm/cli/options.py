"""Options that several commands share, and validation of their values."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from fflm.arguments import (
    Device,
    Encoding,
    Errors,
    Precision,
    Processes,
    Threads,
    check,
    choices,
    description,
    is_tuple,
    parameters,
)
from fflm.errors import FflmError

Command = TypeVar("Command", bound=Callable[..., Any])

HEADINGS = {
    "inputs": "Options",
    "window": "Network",
    "epochs": "Training",
    "tokenizer": "Text",
    "quiet": "Messages",
}
"""The headings in the help of a `HeadedCommand`, by the first parameter below each heading."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _silence_log(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Limit the library's log to warnings and errors if the option is given."""
    if value:
        logging.getLogger("fflm").setLevel(logging.WARNING)
    return value


class _Path(click.Path):
    """The type of a path, which is not empty, as it would be in a script with an unset variable."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

quiet_option = click.option("-q", "--quiet", is_flag=True, callback=_silence_log, help="Print only results, warnings and errors.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing output.")
model_option = click.option(
    "-m",
    "--model",
    "model_path",
    type=PATH,
    metavar="FOLDER",
    help="The model. [default: the latest usable model in this folder]",
)


def check_number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity, which click accepts in some ranges; this is the callback of options."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("give a finite number")
    return value


save_every_option = click.option(
    "--save-every",
    type=click.FloatRange(0),
    default=60,
    show_default=True,
    callback=check_number,
    help="Seconds between checkpoints.",
)
top_option = click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Number of words to show.")


def field_option(of: type, field: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return the option for a field of a dataclass; ``attributes`` are those of `annotated_option`, and may include a default."""
    parameter = parameters(of)[field]
    return annotated_option(field, parameter.annotation, attributes.pop("default", parameter.default), **attributes)


def annotated_option(
    name: str, annotation: Any, default: Any = None, *, by: str = "", option: str = "", parameter: str = "", **attributes: Any
) -> Callable[[Command], Command]:
    """Return the option for a setting, with the type, the range and the help text from the setting's annotation.

    Parameters
    ----------
    name, annotation, default
        The name, annotation and default of the setting; the name ``batch_size`` gives ``--batch-size``.
    by
        What determines the value by default, such as "the size of the text".
    option, parameter
        Names of the option on the command line, and of the parameter of the command, if they differ from the setting's name.
    attributes
        Attributes of the option for `click.option`, which replace those derived from the annotation.
    """
    from msgspec import inspect

    attributes.setdefault("help", description(annotation))
    attributes.setdefault("show_default", default is not None)
    declaration = f"--{(option or name).replace('_', '-')}"
    info = inspect.type_info(annotation)
    while isinstance(info, inspect.Metadata | inspect.UnionType):
        info = info.type if isinstance(info, inspect.Metadata) else info.types[0]
    match info:
        case inspect.BoolType():
            attributes["is_flag"] = True
            declaration += f"/--no-{declaration.removeprefix('--')}"
        case inspect.IntType(ge=low, le=high):
            attributes["type"] = click.IntRange(low, high if high is None or high < 2**31 else None)
            attributes.setdefault("metavar", "INTEGER")
        case inspect.FloatType():
            least = info.ge if info.gt is None else info.gt
            most = info.le if info.lt is None else info.lt
            attributes["type"] = click.FloatRange(least, most, min_open=info.gt is not None, max_open=info.lt is not None)
            attributes.setdefault("metavar", "NUMBER")
            attributes["callback"] = check_number
        case inspect.LiteralType():
            names = choices(annotation)
            attributes["type"] = ChoiceForEach(names) if is_tuple(annotation) else click.Choice(names)
        case inspect.VarTupleType():
            attributes["type"] = Sizes()
            attributes["help"] += " Give 0 for none."
        case inspect.CustomType():
            attributes["type"] = PATH
    if by:
        attributes["help"] += f" [default: by {by}]"
    return click.option(declaration, parameter or name, default=default, **attributes)


class DeviceChoice(click.Choice[str]):
    """A device by its name. The choice ``cuda:1`` is an example: any number of a GPU is accepted."""

    def __init__(self) -> None:
        super().__init__(("cpu", "cuda", "cuda:1", "auto"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the name."""
        try:
            device: str = check("device", Device, value)
        except FflmError:
            return super().convert(value, param, ctx)  # its error has the names
        return device


def device_option_with(default: str) -> Callable[[Any], Any]:
    """Return the option ``--device`` with a default."""
    return annotated_option("device", Device, default, type=DeviceChoice())


device_option = device_option_with("cpu")
precision_option = annotated_option("precision", Precision, "fp32")
encoding_option = annotated_option("encoding", Encoding, "utf-8")
errors_option = annotated_option("errors", Errors, "strict")
threads_option = annotated_option("threads", Threads)


class HeadedCommand(click.Command):
    """A command whose help lists the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, with a heading before each of the parameters in `HEADINGS`."""
        lists: list[tuple[str, list[tuple[str, str]]]] = []
        for param in self.get_params(ctx):
            if param.name in HEADINGS:
                lists.append((HEADINGS[param.name], []))
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                lists[-1][1].append(record)
        for heading, records in lists:
            with formatter.section(heading):
                formatter.write_dl(records)


class ChoiceForEach(click.Choice[str]):
    """One of some names, or several of them with commas between: ``relu``, or ``relu,tanh`` for two layers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the names."""
        if isinstance(value, tuple):
            return value
        names = [super(ChoiceForEach, self).convert(name, param, ctx) for name in str(value).split(",")]
        return names[0] if len(names) == 1 else tuple(names)


class Sizes(click.ParamType[tuple[int, ...]]):
    """The type of options for several whole numbers: ``100``, ``256,256``, or ``0`` for none."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the sizes."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(size) for size in str(value).split(","))
        except ValueError:
            self.fail(
                f"{value!r} is not a list of whole numbers: write one, or several with commas between, or 0 for none", param, ctx
            )
        return () if sizes == (0,) else sizes


def given_options(context: click.Context) -> dict[str, str]:
    """Return the names of the parameters that were given on the command line, with their spelling in the help."""
    return {
        param.name: param.opts[0] if isinstance(param, click.Option) else "INPUTS"
        for param in context.command.params
        if param.name and context.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
    }


def refuse_fixed(given: Mapping[str, str], free: Collection[str], what: str, note: str = "") -> None:
    """Raise a UsageError if options were given that a resumed run does not take.

    Parameters
    ----------
    given
        The given options, from `given_options`.
    free
        The names of the parameters that may be given.
    what
        What the message says first, such as "a resumed run keeps its data and settings".
    note
        What it says last.
    """
    if fixed := [option for name, option in given.items() if name not in free]:
        raise click.UsageError(f"{what}: leave out {', '.join(fixed)}{note}")


def _use_preset(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Make the settings of a preset the defaults of all options that are processed after this one."""
    if value != "default":
        from fflm.models.neural.train import PRESETS

        context.default_map = PRESETS[value]


def preset_option(presets: object) -> Callable[[Command], Command]:
    """Return the option ``--preset``, which changes the defaults of the other options; ``presets`` is the type of its values."""
    return click.option(
        "--preset",
        type=click.Choice(choices(presets)),
        default="default",
        show_default=True,
        is_eager=True,
        expose_value=False,
        callback=_use_preset,
        help=description(presets),
    )


def network_options(command: Command) -> Command:
    """Add the options that are the fields of `NetworkConfig`."""
    from fflm.network.config import NetworkConfig

    fields = parameters(NetworkConfig, "input", "numbers", "outputs", "output")
    return add_options([_field_of_model(NetworkConfig, name) for name in fields], command)


def training_options(command: Command) -> Command:
    """Add the options that are the fields of `TrainingSettings`, and those on checkpoints and threads."""
    from fflm.training.settings import TrainingSettings

    options = [
        *(_field_of_model(TrainingSettings, name) for name in parameters(TrainingSettings, "frozen", "seed")),
        save_every_option,
        field_option(TrainingSettings, "seed"),
        threads_option,
        device_option,
        precision_option,
    ]
    return add_options(options, command)


def _field_of_model(of: type, name: str) -> Callable[[Command], Command]:
    """Return the option for a setting of a language model; the default of some depends on the text or on other settings."""
    from fflm.training.settings import AUTOMATIC

    if name not in AUTOMATIC:
        return field_option(of, name)
    return field_option(of, name, default=None, by=AUTOMATIC[name])


def add_options(options: Iterable[Callable[[Any], Any]], command: Command) -> Command:
    """Add options to a command in the order in which its help shows them."""
    for option in reversed(list(options)):
        command = option(command)
    return command


def text_options(command: Command) -> Command:
    """Add the options for reading text: tokenizer, vocabulary, held-out parts, encoding."""
    from fflm.text.holdout import Test, Valid
    from fflm.text.settings import TextSettings
    from fflm.text.tokenizer import Tokenizer
    from fflm.text.vocabulary import VocabularyRule

    options = [
        field_option(Tokenizer, "mode", option="tokenizer", parameter="tokenizer"),
        field_option(Tokenizer, "lowercase"),
        field_option(Tokenizer, "normalization"),
        field_option(TextSettings, "mode"),
        field_option(TextSettings, "line_ends"),
        field_option(VocabularyRule, "min_count"),
        field_option(VocabularyRule, "max_size"),
        field_option(VocabularyRule, "words", option="vocabulary", metavar="FILE"),
        field_option(VocabularyRule, "source", option="vocabulary-source"),
        *held_out_options(Valid, "5%", Test),
        encoding_option,
        errors_option,
        annotated_option("processes", Processes),
    ]
    return add_options(options, command)


def held_out_options(valid: Any, default: str, test: Any) -> list[Callable[[Command], Command]]:
    """Return the options for held-out parts; ``valid`` and ``test`` are annotations with help texts."""
    shared: dict[str, Any] = {"multiple": True, "metavar": "PATH|SHARE|COUNT"}
    return [
        click.option("--valid", help=description(valid), default=[default], show_default=True, **shared),
        click.option("--test", help=f"{description(test)} [default: none]", **shared),
    ]


def refuse_text_options(inputs: Iterable[Path], given: dict[str, str]) -> None:
    """Refuse options for reading text if the inputs are tokenized already; ``given`` is from `given_options`."""
    from fflm.models.corpora import corpus_folder

    reading = {param.name for param in click.command()(text_options(lambda: None)).params}
    fixed = [name for key, name in given.items() if key in reading]
    if fixed and corpus_folder(list(inputs)):
        raise click.UsageError(f"the text is tokenized already: leave out {', '.join(fixed)}, or give the text itself")


def prefix_options(command: Command) -> Command:
    """Add the options for the text to continue, whose values `fflm.cli.loading.read_prefix` takes."""
    options = [
        click.option("--prefix", metavar="TEXT", callback=check_text, help="The text to continue. [default: none]"),
        click.option(
            "--prefix-file",
            type=PATH,
            metavar="FILE",
            help="A file with the text to continue, - for standard input; a newline at its end is ignored.",
        ),
    ]
    return add_options(options, command)


def check_text(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse text that is not UTF-8, in whatever encoding the locale decoded it; this is the callback of options."""
    try:
        (value or "").encode()
        return value
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeError):
            return os.fsencode(value or "").decode()
        raise click.BadParameter("is not valid UTF-8: fix it, or set the locale to UTF-8") from None
