"""Filtering of collections of documents by how well a model predicts each.

`quality` scores documents and selects among scores; it knows no files. `sources` finds and opens files, `formats` reads the
documents in them, and `job` filters a collection, in worker processes, so that it can be interrupted and resumed.
"""
