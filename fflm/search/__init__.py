"""Hyperparameter search: its space, its history, and the search itself. Needs Optuna."""
