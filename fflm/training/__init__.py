"""Training: settings, optimizers, schedules, the training loop, checkpoints and the log.

The training loop is a generator of events and prints nothing. Progress, log, checkpoints and interruption are handled by code
that iterates over the events. This package knows networks and arrays of word ids, but no text.
"""
