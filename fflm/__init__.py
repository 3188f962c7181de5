"""Feedforward neural language models in the manner of Bengio et al. 2003, in Python with Numba.

import fflm

model = fflm.train("corpora/stories.txt", "stories.model")
model = fflm.load("stories.model")
model.generate("the cat")[0]
model.next_words("the cat", top=5)
model.score("The cat sat on the wall.").perplexity
model.neighbours("cat")
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from fflm.errors import FflmError

if TYPE_CHECKING:
    from fflm.api import load, train
    from fflm.lm.model import LanguageModel

__version__ = importlib.metadata.version("fflm")
__all__ = ["FflmError", "LanguageModel", "__version__", "load", "train"]

# Numba takes a good part of a second to import: only those who train or use a model wait for it.
_LAZY = {"LanguageModel": "fflm.lm.model", "load": "fflm.api", "train": "fflm.api"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fflm' has no attribute {name!r}")
