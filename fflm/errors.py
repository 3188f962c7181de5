"""What a user is meant to read: an error, a warning, and phrases that several messages share."""

from collections.abc import Iterable


class FflmError(Exception):
    """A problem that the user can solve: its text is one line that names the cause and says what to do."""


class FflmWarning(UserWarning):
    """Something that went on all the same, but that the user should know: one line, which the command line prints on stderr."""


_MEANT = {"gpu": "cuda"}
"""Values that people type for others whose spelling is not similar."""


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'relu'?)"`` with the choice that is spelled most like a value, or nothing if none is similar."""
    meant = nearest(value, choices)
    return f" (did you mean {meant!r}?)" if meant else ""


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return the choice that is spelled most like a value, or an empty string if none is similar."""
    from difflib import get_close_matches

    known = list(choices)
    meant = [choice for choice in known if choice == _MEANT.get(str(value))] or get_close_matches(str(value), known, n=1)
    return meant[0] if meant else ""


def install(extra: str) -> str:
    """Return the command that installs one of fflm's extras: fflm is not on a package index."""
    return f"`pip install '.[{extra}]'` in a checkout of fflm"
