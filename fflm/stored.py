"""JSON that our files hold: read, and checked once against a type, by msgspec.

Whoever gets a value from here need not doubt its shape, its types, or the ranges that its type has.
"""

import json
import os
from pathlib import Path
from typing import Any

from fflm.arguments import convert
from fflm.errors import FflmError
from fflm.files import open_regular

LARGEST = 2**30
"""No file that is read whole has more bytes: of a log, that is some million evaluations."""

REMEDY = "restore it from a copy, or train again"


def read_json(path: Path, of: Any, remedy: str = REMEDY) -> Any:
    """Read a JSON file as `from_json` reads a text.

    Raises
    ------
    FflmError
        If it cannot be read or is damaged: one line with its name, the place, what is expected there, and the remedy.
    """
    return from_json(read_whole(path, remedy), of, str(path), remedy)


def read_whole(path: Path, remedy: str = REMEDY) -> bytes:
    """Return what a file holds.

    Raises
    ------
    FflmError
        If it cannot be read, is not a regular file, or has more than `LARGEST` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, LARGEST))  # not more, for that much memory is taken before anything is read
    if size > LARGEST:
        raise FflmError(f"{path} is damaged (it has more than {LARGEST:,} bytes): {remedy}")
    return content


def from_json(text: str | bytes, of: Any, source: str, remedy: str = REMEDY, *, infinite: bool = False) -> Any:
    """Return a JSON text as Python's own values, after checking that it could be converted to a type.

    Strings may contain the surrogates that stand for bytes of file names that are not UTF-8, but no others.

    Parameters
    ----------
    text
        UTF-8.
    of
        As `fflm.arguments.convert` takes it.
    source, remedy
        Where the text is from, and what to do if it is damaged, for the message.
    infinite
        Whether a number may be infinite; none may be NaN.

    Raises
    ------
    FflmError
        If it cannot be converted: one line with the source, the place, what is expected there, and the remedy.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=infinite).encode(errors="surrogateescape")
        check_json(value, of, source, remedy)
    except UnicodeEncodeError:
        wrong = "a string contains half of a surrogate pair"
    except RecursionError:
        wrong = "it is nested too deeply"
    except ValueError as error:
        wrong = f"not valid JSON: {error}"
    else:
        return value
    raise FflmError(f"{source} is damaged ({wrong}): {remedy}")


def check_json(value: Any, of: Any, source: str, remedy: str = REMEDY) -> None:
    """Raise an FflmError, as `from_json` does, if JSON values cannot be converted to a type."""
    try:
        convert(value, of)
    except FflmError as error:
        raise FflmError(f"{source} is damaged ({str(error).replace('`', '')}): {remedy}") from None


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is not a number")
    return float(name)
