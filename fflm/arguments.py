"""Arguments and settings: checked against their annotations (by msgspec), from which help texts and documentation come, too.

An annotation such as ``Annotated[int, Meta(ge=1, description="...")]`` says type, range and meaning once. NumPy's numbers and
arrays are taken for Python's, one value for a tuple of one (``hidden=4``), any iterable but a str for a sequence. Numbers are
never made of strings, integers never of floats or bools.
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

from fflm.errors import FflmError, nearest
from fflm.files import os_errors_as_fflm_error

if TYPE_CHECKING:  # its import takes longer than a help text may
    import numpy as np
    import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | Iterable[PathLike]

Positive: TypeAlias = Annotated[int, Meta(ge=1)]
Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]

# Numbers that memory or time depend on: none that makes sense is refused, one by mistake or malice is.
Size: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
Many: TypeAlias = Annotated[int, Meta(ge=1, le=10_000_000)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]

# What several functions take.
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
    Literal["cpu", "cuda", "auto"],
    Meta(description="Device: cpu, cuda (an NVIDIA GPU), or auto for the GPU if one works."),
]
Precision: TypeAlias = Annotated[
    Literal["fp32", "mixed"],
    Meta(description="Precision of training: mixed multiplies 16-bit numbers on the GPU and accumulates in 32 bits."),
]
Progress: TypeAlias = Annotated[
    Callable[[int], None] | None,
    Meta(description="Function that is called with the number of characters of each piece of text read."),
]
Overwrite: TypeAlias = Annotated[bool, Meta(description="Replace existing output.")]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def check(name: str, annotation: Any, value: Any) -> Any:
    """Return an argument as its annotation wants it.

    Raises
    ------
    FflmError
        If it cannot be: one line with its name, what is expected, and what was given.
    """
    own = plain(value)
    several = isinstance(own, list)
    if not isinstance(own, list | NoneType) and is_tuple(annotation):
        own = [own]
    try:
        if isinstance(own, set | frozenset):  # msgspec would make lists of them, in no order
            raise msgspec.ValidationError
        result = msgspec.convert(own, annotation, dec_hook=_custom)
        if isinstance(result, float) and not math.isfinite(result):
            raise msgspec.ValidationError
    except msgspec.ValidationError as error:
        wanted = describe(annotation)
        place = re.search(r"\$\[(\d+)\]", str(error))
        if several and place:
            raise FflmError(f"`{name}` must be {wanted}; item {place[1]} is {show(own[int(place[1])])}") from None
        hint = ": put it into a list" if isinstance(value, str) and wanted.startswith("a list of strings") else ""
        raise FflmError(f"`{name}` must be {wanted}, not {show(value)}{hint}") from None
    return result


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function check its arguments, but for paths, which it converts itself (`to_path`, `to_paths`)."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            parameter = signature.parameters[name]
            if value is not parameter.default and _checkable(parameter):
                given.arguments[name] = check(name, parameter.annotation, value)
        return function(*given.args, **given.kwargs)

    return call


@functools.cache
def _checkable(parameter: inspect.Parameter) -> bool:
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
    """Base of dataclasses whose fields are checked, and stored as JSON."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, check(field.name, field.type, getattr(self, field.name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        result: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return result

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Make settings from `to_dict`'s result.

        Raises
        ------
        FflmError
            If it is none; one that `fflm.stored.read_json` has checked is one.
        """
        result: Self = convert(fields, cls)
        return result


def convert(value: Any, of: Any) -> Any:
    """Return JSON values as a type that msgspec knows, such as a TypedDict, perhaps with `Settings` in it.

    Objects may have more fields than a TypedDict names, which a newer version may have written; but not than `Settings` have, for
    to leave out a setting would change results.

    Raises
    ------
    FflmError
        If they are not of the type: one line with the place, and what is expected there.
    """
    try:
        result = msgspec.convert(value, of)
    except msgspec.ValidationError as error:
        wrong = re.sub(r"^(.*) - at `(.*)`$", r"at \2: \1", str(error))
        raise FflmError(wrong.replace("`", "").replace("Expected", "expected")) from None
    _refuse_fields(value, result)
    return result


def _refuse_fields(given: Any, result: Any) -> None:
    """Raise an FflmError if settings, wherever they are in a result, were given more fields than they have."""
    values = vars(result) if isinstance(result, Settings) else result
    if not isinstance(values, dict):
        return
    if isinstance(result, Settings):
        for name in given.keys() - values.keys():
            raise FflmError(f"unknown setting {name!r}: a newer version of fflm may have written it")
    for name in values.keys() & given.keys():
        _refuse_fields(given[name], values[name])


def parameters(of: Any, *but: str) -> dict[str, inspect.Parameter]:
    """Return the options that a dataclass or a function has, but some: keyword parameters by their names."""
    own = inspect.signature(of).parameters.values()
    return {
        each.name: each.replace(kind=each.KEYWORD_ONLY) for each in own if each.name not in but and each.default is not each.empty
    }


def description(annotation: Any) -> str:
    """Return what an annotation says of its parameter."""
    found = (each.description for each in _metadata(annotation) if isinstance(each, Meta) and each.description)
    return next(found, "")


def describe(annotation: Any) -> str:
    """Return what an annotation allows, in words."""
    from msgspec.inspect import type_info

    try:
        return _describe(type_info(annotation))
    except TypeError:  # a union with paths
        names = [getattr(part, "__name__", "None") for part in get_args(_bare(annotation))]
        return " or ".join(name.replace("NoneType", "None") for name in names)


def choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of an annotation that is a Literal, or None."""
    bare = _bare(annotation)
    parts = [bare] if get_origin(bare) is Literal else map(_bare, get_args(bare))
    return next(get_args(part) for part in parts if get_origin(part) is Literal)


def with_options(options: Mapping[str, inspect.Parameter]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function with ``**options`` a signature and a documentation that list them."""
    types = get_type_hints(SimpleNamespace(__annotations__={name: each.annotation for name, each in options.items()}))

    def add(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        listed = [each.replace(annotation=types[name]) for name, each in options.items()]
        function.__signature__ = signature.replace(parameters=[*own, *listed])  # type: ignore[attr-defined]
        lines = [inspect.cleandoc(function.__doc__ or ""), "", "Other Parameters", "----------------"]
        for name, each in options.items():
            text = textwrap.fill(description(each.annotation), 100)
            lines += [f"{name} : {describe(each.annotation)}, default {each.default!r}", textwrap.indent(text, "    ")]
        function.__doc__ = "\n".join(lines)
        return function

    return add


def refuse_unknown(names: Collection[str], known: Iterable[str]) -> None:
    """Raise an FflmError if there are names of settings left that nobody knows, with the one that may have been meant."""
    for name in names:
        meant = nearest(name, known)
        raise FflmError(f"unknown setting {name!r}: " + (f"did you mean {meant!r}?" if meant else "leave it out"))


def to_path(name: str, value: object) -> Path:
    """Return a path; raise an FflmError if it is none."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path or not _encodable(path):
        raise FflmError(f"`{name}` must be a path, not {show(value)}")
    with os_errors_as_fflm_error(f"use {show(path)}, `{name}` must be a path"):  # such as a whole text, too long for a name
        Path(path).exists()
    return Path(path)


def _encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def to_paths(name: str, values: object) -> tuple[Path, ...]:
    """Return one or several paths; raise an FflmError if they are none, or a text."""
    several = values if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping) else [values]
    paths = tuple(to_path(name, value) for value in several)
    if not paths:
        raise FflmError(f"`{name}` is empty: give at least one path")
    for path in paths:
        if len(str(path).split()) > 1 and not path.exists():
            raise FflmError(f"there is no file {show(str(path))}: `{name}` must be paths; write a text to a file to give it")
    return paths


def check_ids(name: str, value: Any, limit: int, shape: tuple[int | None, ...] = (None,)) -> "npt.NDArray[np.int32]":
    """Return ids that a caller gives as an array that kernels may use as indices: contiguous, int32, in range.

    Parameters
    ----------
    name, value
        Of the argument: an array of integers of any type, or what NumPy makes one of.
    limit
        Ids lie in [0, limit).
    shape
        The length of each dimension, None for any.

    Raises
    ------
    FflmError
        If they have another shape, are no integers, or are out of range.
    """
    import numpy as np

    try:
        ids = np.asarray(value)
    except (ValueError, TypeError):  # rows of different lengths
        ids = np.asarray(None)
    wanted = f"({', '.join('N' if length is None else str(length) for length in shape)}{',' * (len(shape) == 1)})"
    if ids.ndim != len(shape) or any(length not in (None, found) for length, found in zip(shape, ids.shape, strict=True)):
        raise FflmError(f"`{name}` must be an array of ids of the shape {wanted}, not {ids.shape or show(value)}")
    if ids.size and ids.dtype.kind not in "iu":
        raise FflmError(f"`{name}` must be ids, which are integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= limit):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise FflmError(f"`{name}` must be ids from 0 to {limit - 1:,}, not {wrong:,}")
    return np.ascontiguousarray(ids, np.int32)


def show(value: Any) -> str:
    """Return a value in a few words."""
    return " ".join(_REPR.repr(value).split())


def plain(value: Any) -> Any:
    """Return values of NumPy, pandas and subclasses as Python's own, and as a list what stands for a sequence."""
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


def _custom(wanted: type, value: Any) -> Any:
    """Convert what msgspec does not know."""
    if wanted is Path and isinstance(value, str | os.PathLike) and os.fspath(value):
        return Path(value)
    if isinstance(value, get_origin(wanted) or wanted):  # such as Callable[[int], None]
        return value
    raise ValueError


def is_tuple(annotation: Any) -> bool:
    """Whether an annotation is a tuple, or that or None."""
    bare = _bare(annotation)
    return any(get_origin(each) is tuple for each in (bare, *map(_bare, get_args(bare))))


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _metadata(annotation: Any) -> list[Any]:
    """Return the metadata of an annotation, and of what it is made of."""
    own = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
    return [*own, *(each for part in get_args(_bare(annotation)) for each in _metadata(part))]


def _describe(info: Any, *, several: bool = False) -> str:
    """Say what a type is, in words."""
    from msgspec import inspect as types

    def noun(one: str, many: str) -> str:
        return many if several else one

    match info:
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
