"""Reading JSON from files, with validation against a type by msgspec.

The values that these functions return have the structure, the types and the ranges that the type describes.
"""

import json
import os
from pathlib import Path
from typing import Any

from fflm.arguments import convert
from fflm.errors import FflmError
from fflm.files import open_regular

LARGEST = 2**30
"""Maximum size of a JSON file, bytes; a log of this size has some million evaluations."""

REMEDY = "restore it from a copy, or train again"
"""What the user can do about a damaged file, for messages."""


def read_json(path: Path, of: Any, remedy: str = REMEDY) -> Any:
    """Read a JSON file as `from_json` reads a text.

    Raises
    ------
    FflmError
        If the file cannot be read or is damaged: one line with its name, the position, the expected value, and the remedy.
    """
    return from_json(read_whole(path, remedy), of, str(path), remedy)


def read_whole(path: Path, remedy: str = REMEDY) -> bytes:
    """Return the content of a file.

    Raises
    ------
    FflmError
        If the file cannot be read, is not a regular file, or has more than `LARGEST` bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(min(size, LARGEST))  # a larger number would allocate as much memory before reading
    if size > LARGEST:
        raise FflmError(f"{path} is damaged (it has more than {LARGEST:,} bytes): {remedy}")
    return content


def from_json(text: str | bytes, of: Any, source: str, remedy: str = REMEDY, *, infinite: bool = False) -> Any:
    """Return a JSON text as Python objects after validating it against a type.

    Strings may contain the surrogates that stand for bytes of file names that are not UTF-8, but no others.

    Parameters
    ----------
    text
        The JSON text, UTF-8.
    of
        The type, as for `fflm.arguments.convert`.
    source, remedy
        The file that the text is from, and what to do if it is damaged, for the message.
    infinite
        Whether numbers may be infinite; they must not be NaN.

    Raises
    ------
    FflmError
        If the text is not valid: one line with the source, the position, the expected value, and the remedy.
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
    """Raise an FflmError, as `from_json` does, if a JSON value is not valid for a type."""
    try:
        convert(value, of)
    except FflmError as error:
        raise FflmError(f"{source} is damaged ({str(error).replace('`', '')}): {remedy}") from None


def _constant(name: str) -> float:
    """Return the number that a name such as ``Infinity`` stands for; NaN is refused."""
    if name == "NaN":
        raise ValueError("NaN is not a number")
    return float(name)
