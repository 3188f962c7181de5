"""How parameters are found: settings, optimizers, schedules, the loop, checkpoints and the log.

The loop is a generator of events and prints nothing: progress, log, checkpoints and interruption are ordinary code that consumes
it. Knows networks and arrays of word ids, no text.
"""
