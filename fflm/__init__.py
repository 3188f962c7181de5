"""Feedforward neural language models in the manner of Bengio et al. 2003, in Python with Numba.

import fflm

model = fflm.train("corpora/stories.txt", "stories.model")
model = fflm.load("stories.model")
model.generate("the cat")[0]
model.next_words("the cat", top=5)
model.score("The cat sat on the wall.").perplexity
model.neighbours("cat")
"""

import os

from fflm.errors import FflmError

TYPE_CHECKING = False  # type checkers treat it as true, like that of typing, which takes long to import
if TYPE_CHECKING:
    from fflm.api import filter, load, resume, resume_filter, train, train_classifier, train_ngram
    from fflm.estimators import FeedforwardClassifier, FeedforwardRegressor
    from fflm.given import Text
    from fflm.models.classifier.model import TextClassifier
    from fflm.models.language_model import LanguageModel
    from fflm.models.mixture.model import Mixture
    from fflm.models.mixture.train import mix
    from fflm.models.neural.model import NeuralModel
    from fflm.models.ngram.model import NgramModel
    from fflm.models.quantize import quantize
    from fflm.models.scoring import Score

# Numba and OpenMP read these variables when they are imported, possibly before any other module of fflm is. Compiling with the
# highest level of optimization takes a third longer than with the second, and the kernels are not faster. Waiting threads should
# sleep: if other programs use the cores, spinning at the barriers in a training step makes the step take ten times as long.
os.environ.setdefault("NUMBA_OPT", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__: str
__all__ = [
    "FeedforwardClassifier",
    "FeedforwardRegressor",
    "FflmError",
    "LanguageModel",
    "Mixture",
    "NeuralModel",
    "NgramModel",
    "Score",
    "Text",
    "TextClassifier",
    "__version__",
    "filter",
    "load",
    "mix",
    "quantize",
    "resume",
    "resume_filter",
    "train",
    "train_classifier",
    "train_ngram",
]

# These names are imported when they are first used, because importing Numba takes a good part of a second. Importing this module
# must be fast, because it happens before the command line can handle Ctrl-C.
_LAZY = {
    "FeedforwardClassifier": "fflm.estimators",
    "FeedforwardRegressor": "fflm.estimators",
    "LanguageModel": "fflm.models.language_model",
    "Mixture": "fflm.models.mixture.model",
    "NeuralModel": "fflm.models.neural.model",
    "NgramModel": "fflm.models.ngram.model",
    "Score": "fflm.models.scoring",
    "Text": "fflm.given",
    "TextClassifier": "fflm.models.classifier.model",
    "filter": "fflm.api",
    "load": "fflm.api",
    "mix": "fflm.models.mixture.train",
    "quantize": "fflm.models.quantize",
    "resume": "fflm.api",
    "resume_filter": "fflm.api",
    "train": "fflm.api",
    "train_classifier": "fflm.api",
    "train_ngram": "fflm.api",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("fflm")
    if name in _LAZY:
        from fflm.environment import check_environment

        check_environment()
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fflm' has no attribute {name!r}")
