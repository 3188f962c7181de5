"""Text classifiers: labelled text, what a network reads of it, training, prediction and its figures.

Knows the folder of a model (`fflm.lm.model`) and nothing of the command line.
"""
