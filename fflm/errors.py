"""The one exception that a user is meant to read."""


class FflmError(Exception):
    """A problem that the user can solve: its text is one line that names the cause and says what to do."""
