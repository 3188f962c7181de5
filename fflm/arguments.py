"""Validation of arguments and settings against their annotations, by msgspec.

An annotation such as ``Annotated[int, Meta(ge=1, description="...")]`` defines the type, the range and the description of a
parameter, from which validation, help texts and documentation are generated. Numbers and arrays of NumPy are accepted in place of
Python's, a single value in place of a tuple of one (``hidden=4``), and any iterable except for strings in place of a sequence.
Strings are not converted to numbers, and floats and bools are not converted to integers.
"""

import dataclasses
import functools
import inspect
import math
import os
import re
import reprlib
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from fflm.errors import FflmError, SettingsError, nearest
from fflm.files import os_errors_as_fflm_error
from fflm.given import Text

if TYPE_CHECKING:  # importing NumPy takes longer than printing a help text
    import numpy as np
    import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | Iterable[PathLike]
Texts: TypeAlias = PathLike | Text | Iterable[PathLike | Text]

Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]

# Numbers on which memory or time depend. The limits admit every sensible number, but not those given by mistake or with malice.
Size: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
Many: TypeAlias = Annotated[int, Meta(ge=1, le=10_000_000)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]

# Parameters of several functions.
Encoding: TypeAlias = Annotated[str, Meta(description="Character encoding of the text.")]
Errors: TypeAlias = Annotated[
    Literal["strict", "replace"], Meta(description="Refuse bytes that cannot be decoded, or replace them.")
]
Workers: TypeAlias = Annotated[int, Meta(ge=1, le=4096)]
Processes: TypeAlias = Annotated[
    Workers | None, Meta(description="Number of worker processes for tokenization; by default one per core.")
]
Threads: TypeAlias = Annotated[Workers | None, Meta(description="Number of threads; by default one per core.")]
Device: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(cpu|cuda(:[0-9]{1,4})?|auto)\Z",
        examples=["cpu", "cuda", "cuda:1", "auto"],
        description="Device: cpu, cuda (an NVIDIA GPU; cuda:1 is the second one), or auto for the GPU if one works.",
    ),
]
Precision: TypeAlias = Annotated[
    Literal["fp32", "tf32", "mixed"],
    Meta(
        description="Precision of matrix products in training: fp32; on a GPU also tf32 (operands rounded to TF32) or mixed "
        "(operands rounded to float16). All accumulate in float32, and weights stay float32."
    ),
]
Progress: TypeAlias = Annotated[
    Callable[[int], None] | None,
    Meta(description="Function that is called with the number of characters of each piece of text read."),
]
Overwrite: TypeAlias = Annotated[bool, Meta(description="Replace existing output.")]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60  # characters


def check(name: str, annotation: Any, value: Any) -> Any:
    """Return an argument, converted to the type of its annotation.

    Raises
    ------
    FflmError
        If the argument is not valid: one line with its name, the expected value, and the given value.
    """
    if type(value) is annotation is str:
        return value
    given = plain(value)
    is_list = isinstance(given, list)
    if not isinstance(given, list | NoneType) and is_tuple(annotation):
        given = [given]
    try:
        if isinstance(given, set | frozenset):  # msgspec would convert them to lists, in arbitrary order
            raise msgspec.ValidationError
        result = msgspec.convert(given, annotation, dec_hook=_convert_custom)
        if isinstance(result, float) and not math.isfinite(result):
            raise msgspec.ValidationError
    except msgspec.ValidationError as error:
        expected = describe(annotation)
        place = re.search(r"\$\[(\d+)\]", str(error))
        if is_list and place:
            raise FflmError(f"`{name}` must be {expected}; item {place[1]} is {show(given[int(place[1])])}") from None
        hint = ": put it into a list" if isinstance(value, str) and expected.startswith("a list of strings") else ""
        raise FflmError(f"`{name}` must be {expected}, not {show(value)}{hint}") from None
    return result


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it checks its arguments, except for paths, which it converts itself (`to_path`, `to_paths`)."""
    parameters = inspect.signature(function).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.cache
    def is_checkable(name: str) -> bool:  # not a cache of parameters, whose hashes take longer than all else here
        return name in parameters and _checkable(parameters[name])

    def check_argument(name: str, value: Any) -> Any:
        if is_checkable(name) and value is not parameters[name].default:
            return check(name, parameters[name].annotation, value)
        return value

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # `inspect.Signature.bind` would take longer than to score a line; arguments that do not exist are the function's error.
        values: Any = [*map(check_argument, names, args), *args[len(names) :]]
        named: Any = {name: check_argument(name, value) for name, value in kwargs.items()}
        return function(*values, **named)

    return call


def _checkable(parameter: inspect.Parameter) -> bool:
    """Return whether msgspec can check the argument of a parameter."""
    from msgspec.inspect import type_info

    annotation, kind = parameter.annotation, parameter.kind
    if annotation is parameter.empty or kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    if getattr(annotation, "_is_protocol", False):
        return False
    try:
        type_info(annotation)
    except TypeError:  # unions with paths
        return False
    return True


@dataclass(frozen=True)
class Settings:
    """Base class of dataclasses whose fields are checked when they are created, and can be stored as JSON.

    Raises
    ------
    FflmError
        If a field is not valid.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not msgspec.UNSET:
                object.__setattr__(self, field.name, check(field.name, field.type, value))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return result

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the settings whose `to_dict` is ``fields``.

        Raises
        ------
        FflmError
            If the fields are not valid. Values from `fflm.stored.read_json` have been validated before.
        """
        result: Self = convert(fields, cls)
        return result


def convert(value: Any, of: Any) -> Any:
    """Return a JSON value converted to a type that msgspec supports, such as a TypedDict, which may contain `Settings`.

    Objects may have more fields than a TypedDict, because a newer version of fflm may have written them. But they must not have
    more fields than `Settings`, because ignoring a setting would change results.

    Raises
    ------
    FflmError
        If the value is not valid for the type: one line with the position in the value, and the expected value.
    """
    try:
        result = msgspec.convert(value, of)
    except msgspec.ValidationError as error:
        wrong = re.sub(r"^(.*) - at `(.*)`$", r"at \2: \1", str(error))
        raise FflmError(wrong.replace("`", "").replace("Expected", "expected")) from None
    _refuse_fields(value, result)
    return result


def _refuse_fields(given: Any, result: Any) -> None:
    """Raise an FflmError if ``given``, a JSON value, has more fields than the `Settings` in ``result``, its converted value."""
    values = vars(result) if isinstance(result, Settings) else result
    if not isinstance(values, dict):
        return
    if isinstance(result, Settings):
        for name in given.keys() - values.keys():
            raise FflmError(f"unknown setting {show(name)}: a newer version of fflm may have written it")
    for name in values.keys() & given.keys():
        _refuse_fields(given[name], values[name])


def parameters(of: Any, *but: str) -> dict[str, inspect.Parameter]:
    """Return the optional parameters of a dataclass or a function by name, as keyword parameters, except for those in ``but``."""
    own = inspect.signature(of).parameters.values()
    return {
        each.name: each.replace(kind=each.KEYWORD_ONLY) for each in own if each.name not in but and each.default is not each.empty
    }


def description(annotation: Any) -> str:
    """Return the description in an annotation; empty if it has none."""
    found = (each.description for each in _metadata(annotation) if isinstance(each, Meta) and each.description)
    return next(found, "")


def describe(annotation: Any) -> str:
    """Return a phrase for the values that an annotation allows, such as ``an integer of at least 1``."""
    from msgspec.inspect import type_info

    try:
        return _describe(type_info(annotation))
    except TypeError:  # a union with paths
        names = [getattr(part, "__name__", "None") for part in get_args(_bare(annotation))]
        return " or ".join(name.replace("NoneType", "None") for name in names)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of an annotation that is a Literal, or a union of a Literal and other types."""
    bare = _bare(annotation)
    parts = [bare] if get_origin(bare) is Literal else map(_bare, get_args(bare))
    return next(get_args(part) for part in parts if get_origin(part) is Literal)


def with_options(options: Mapping[str, inspect.Parameter]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that lists options in a function's docstring, and in place of ``**options`` in its signature."""
    types = get_type_hints(SimpleNamespace(__annotations__={name: each.annotation for name, each in options.items()}))

    def add(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        listed = [each.replace(annotation=types[name]) for name, each in options.items() if name not in signature.parameters]
        function.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined]
        lines = [inspect.cleandoc(function.__doc__ or ""), "", "Other Parameters", "----------------"]
        for name, each in options.items():
            text = textwrap.fill(description(each.annotation), 100)
            lines += [f"{name} : {describe(each.annotation)}, default {each.default!r}", textwrap.indent(text, "    ")]
        function.__doc__ = "\n".join(lines)
        return function

    return add


OPTION_NAMES = {"initial": "from", "lexicons": "lexicon", "path": "output", "source": "vocabulary-source", "words": "vocabulary"}
"""The options of the command line that correspond to arguments with another name."""


def refuse_unknown(names: Collection[str], known: Collection[str]) -> None:
    """Raise a SettingsError if there are names of settings that nothing has used; it suggests the most similar known name."""
    for name in names:
        if name in known:
            raise SettingsError(f"the setting {name!r} has no use here: leave it out")
        same = (argument for argument, option in OPTION_NAMES.items() if option == name.replace("_", "-") and argument in known)
        meant = next(same, nearest(name, known))
        raise SettingsError(f"unknown setting {show(name)}: " + (f"did you mean {meant!r}?" if meant else "leave it out"))


def to_path(name: str, value: object) -> Path:
    """Return the path that an argument names; raise an FflmError if it is not a path."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path or not _encodable(path):
        raise FflmError(f"`{name}` must be a path, not {show(value)}")
    with os_errors_as_fflm_error(f"use {show(path)}, `{name}` must be a path"):  # a whole text is too long for a file name
        Path(path).exists()
    return Path(path)


def _encodable(path: str) -> bool:
    """Return whether a path can be passed to the operating system."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def to_paths(name: str, values: object) -> tuple[Path, ...]:
    """Return the paths that an argument names, one or several; raise an FflmError if there are none, or one is a text."""
    return tuple(to_path(name, value) for value in to_texts(name, values))


def to_texts(name: str, values: object) -> tuple[Path | Text, ...]:
    """Return the paths and texts in memory that an argument names; raise an FflmError if there are none, or one is a string."""
    several = values if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping) else [values]
    texts = tuple(value if isinstance(value, Text) else _to_file(name, value) for value in several)
    if not texts:
        raise FflmError(f"`{name}` is empty: give at least one path")
    return texts


def _to_file(name: str, value: object) -> Path:
    """Return the path that an argument names, as `to_path`; raise an FflmError if it is a text."""
    path = to_path(name, value)
    if len(str(path).split()) > 1 and not path.exists():
        shown = show(str(path))
        raise FflmError(f"there is no file {shown}: `{name}` must be paths; a text without a file is given by `fflm.Text`")
    return path


def check_ids(name: str, value: Any, limit: int, shape: tuple[int | None, ...] = (None,)) -> "npt.NDArray[np.int32]":
    """Return an argument of ids as an array that kernels can use as indices: contiguous, int32, in range.

    Parameters
    ----------
    name, value
        The name of the argument, and its value: an array of integers of any dtype, or anything that NumPy converts to one.
    limit
        The ids must be in [0, limit).
    shape
        The required length of each dimension; None for any length.

    Raises
    ------
    FflmError
        If the array has another shape, does not contain integers, or contains integers out of range.
    """
    import numpy as np

    try:
        ids = np.asarray(value)
    except (ValueError, TypeError):  # for example, rows of different lengths
        ids = np.asarray(None)
    expected = f"({', '.join('N' if length is None else str(length) for length in shape)}{',' * (len(shape) == 1)})"
    if ids.ndim != len(shape) or any(length not in (None, found) for length, found in zip(shape, ids.shape, strict=True)):
        raise FflmError(f"`{name}` must be an array of ids of the shape {expected}, not {ids.shape or show(value)}")
    if ids.size and ids.dtype.kind not in "iu":
        raise FflmError(f"`{name}` must be an array of integers, not of {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise FflmError(f"`{name}` must be ids from 0 to {limit - 1:,}, not {wrong:,}")
    return np.ascontiguousarray(ids, np.int32)


def show(value: Any) -> str:
    """Return an abbreviated `repr` of a value, on one line."""
    return " ".join(_REPR.repr(value).split())


def plain(value: Any) -> Any:
    """Return a value of NumPy, pandas or a subclass as one of a built-in type, and any other iterable as a list."""
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping | set | frozenset):
        return [plain(each) for each in value]
    return value


def _convert_custom(type_: type, value: Any) -> Any:
    """Convert a value to a type that msgspec does not support."""
    if type_ is Path and isinstance(value, str | os.PathLike) and os.fspath(value):
        return Path(value)
    if isinstance(value, get_origin(type_) or type_):  # the origin of Callable[[int], None] is Callable
        return value
    raise ValueError


def is_tuple(annotation: Any) -> bool:
    """Return whether an annotation is a tuple, or a union with a tuple."""
    bare = _bare(annotation)
    return any(get_origin(each) is tuple for each in (bare, *map(_bare, get_args(bare))))


def _bare(annotation: Any) -> Any:
    """Return an annotation without its metadata."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _metadata(annotation: Any) -> list[Any]:
    """Return the metadata of an annotation and of its parts."""
    own = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
    return [*own, *(each for part in get_args(_bare(annotation)) for each in _metadata(part))]


def _describe(info: Any, *, several: bool = False) -> str:
    """Return a phrase for a type, in the plural if ``several``."""
    from msgspec import inspect as types

    def noun(one: str, many: str) -> str:
        return many if several else one

    match info:
        case types.Metadata(type=types.StrType(pattern=str()), extra_json_schema={"examples": [*examples, last]}):
            return f"{noun('a string', 'strings')} such as {', '.join(examples)} or {last}"
        case types.Metadata(type=inner):
            return _describe(inner, several=several)
        case types.UnionType(types=parts):
            return " or ".join(_describe(part, several=several) for part in parts)
        case types.VarTupleType(item_type=item, max_length=most) | types.ListType(item_type=item, max_length=most):
            return f"a list of {'' if most is None else f'at most {most:,} '}{_describe(item, several=True)}"
        case types.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case types.IntType() | types.FloatType():
            name = noun("an integer", "integers") if isinstance(info, types.IntType) else noun("a number", "numbers")
            if info.ge is not None and info.le is not None:
                return f"{name} from {info.ge:,} to {info.le:,}"
            limits = (("of at least", info.ge), ("above", info.gt), ("up to", info.le), ("below", info.lt))
            return " ".join([name, " and ".join(f"{word} {limit:,}" for word, limit in limits if limit is not None)]).strip()
        case types.BoolType():
            return "True or False"
        case types.StrType():
            return noun("a string", "strings")
        case types.NoneType():
            return "None"
        case types.DictType():
            return "a dict"
        case types.CustomType(cls=cls) | types.DataclassType(cls=cls):
            names = {"Path": noun("a path", "paths"), "Callable": "a function"}
            return names.get(cls.__name__, f"a {cls.__name__}")
    return str(info)
