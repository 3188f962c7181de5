"""Text: from characters to ids and to the examples of a network.

This package contains the tokenizer, the vocabulary, the reading of files, the corpus of ids on disk, the windows that cut it
into examples, and the catalogue of public corpora. It stands alone: it imports no network, no backend and no training, only the
foundation modules such as ``fflm.errors`` and ``fflm.files``.
"""
