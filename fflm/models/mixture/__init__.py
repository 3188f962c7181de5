"""Mixtures: linear interpolations of language models."""
