"""Text: characters in, ids and windows out.

Holds the tokenizer, the vocabulary, the reading of files, the corpus of ids on disk, the windows that cut it into
examples, and the catalogue of public corpora. It must not know what is done with the examples: it imports no
network, no backend and no training, only the modules below all packages, such as ``fflm.errors`` and ``fflm.files``.
"""
