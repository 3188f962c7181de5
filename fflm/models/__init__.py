"""Models of text: language models (neural, n-gram, mixtures) and text classifiers.

Each kind is a package with a ``model.py`` (what it is, load, save) and a ``train.py``. The modules here are what the kinds share.
This package prints nothing and knows nothing of the command line.
"""
