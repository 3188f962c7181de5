"""What a user is meant to read: an error, and a warning."""


class FflmError(Exception):
    """A problem that the user can solve: its text is one line that names the cause and says what to do."""


class FflmWarning(UserWarning):
    """Something that went on all the same, but that the user should know: one line, which the command line prints on stderr."""
