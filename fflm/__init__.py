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

TYPE_CHECKING = False  # type checkers take it for true, as they do typing's, whose import takes long
if TYPE_CHECKING:
    from fflm.api import load, resume, train, train_classifier, train_ngram
    from fflm.estimators import FeedforwardClassifier, FeedforwardRegressor
    from fflm.models.classifier.model import TextClassifier
    from fflm.models.language_model import LanguageModel
    from fflm.models.mixture.model import Mixture
    from fflm.models.mixture.train import mix
    from fflm.models.neural.model import NeuralModel
    from fflm.models.ngram.model import NgramModel
    from fflm.models.scoring import Score

# Numba and OpenMP read these when they are imported, which may be before any module of ours that uses them. The highest level of
# optimisation takes a third longer to compile than the second, for kernels that are no faster. Threads that wait should sleep:
# where other programs use the cores, spinning at each of a step's barriers costs ten times the step.
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
    "TextClassifier",
    "__version__",
    "load",
    "mix",
    "resume",
    "train",
    "train_classifier",
    "train_ngram",
]

# Numba takes a good part of a second to import: only those who train or use a model wait for it. Nothing else here may take long,
# for it runs before the command line can answer Ctrl-C.
_LAZY = {
    "FeedforwardClassifier": "fflm.estimators",
    "FeedforwardRegressor": "fflm.estimators",
    "LanguageModel": "fflm.models.language_model",
    "Mixture": "fflm.models.mixture.model",
    "NeuralModel": "fflm.models.neural.model",
    "NgramModel": "fflm.models.ngram.model",
    "Score": "fflm.models.scoring",
    "TextClassifier": "fflm.models.classifier.model",
    "load": "fflm.api",
    "mix": "fflm.models.mixture.train",
    "resume": "fflm.api",
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
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fflm' has no attribute {name!r}")
