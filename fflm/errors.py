"""The exception and the warning that fflm raises, and phrases that several messages share."""

from collections.abc import Iterable


class FflmError(Exception):
    """An error that the user can solve; its message is one line that names the cause and says what to do."""


class SettingsError(FflmError):
    """Settings that exclude each other, or a setting that has no use here: on the command line, wrong usage (exit status 2)."""


class FflmWarning(UserWarning):
    """A warning about a problem that did not stop the work; its message is one line."""


_SYNONYMS = {"gpu": "cuda"}
"""Values that users give instead of a choice whose spelling is not similar."""


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'relu'?)"`` with the choice most similar to a value, or an empty string if none is similar."""
    meant = nearest(value, choices)
    return f" (did you mean {meant!r}?)" if meant else ""


def nearest(value: object, choices: Iterable[str]) -> str:
    """Return the choice most similar to a value, or an empty string if none is similar."""
    from difflib import get_close_matches

    known = list(choices)
    meant = [choice for choice in known if choice == _SYNONYMS.get(str(value))] or get_close_matches(str(value), known, n=1)
    return meant[0] if meant else ""


def install(extra: str) -> str:
    """Return the command, in backquotes, that installs an optional dependency; fflm is not on a package index."""
    return f"`pip install '.[{extra}]'` in a checkout of fflm"
