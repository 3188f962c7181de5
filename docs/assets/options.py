"""An extension of Griffe: functions whose options are listed when they are imported are documented with them."""

import inspect
import re
from typing import Any

import griffe

from fflm import api

LISTED = {f"fflm.api.{function.__name__}": function for function in (api.train, api.train_ngram, api.train_classifier)}


class Options(griffe.Extension):
    """Replaces the docstring in the source by that at run time, which `fflm.arguments.with_options` completes."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Take the docstring of a function that is imported."""
        if func.path in LISTED and func.docstring:
            text = inspect.getdoc(LISTED[func.path]) or ""
            text = re.sub(r"</?\w+>|__label__", r"`\g<0>`", text)  # Markdown would read them as HTML and as bold print
            func.docstring.value = re.sub(r"^(\w+ : .+), default (.+)$", r"\1\n    Default: ``\2``.", text, flags=re.MULTILINE)
