"""The exceptions that users see."""


class UserError(Exception):
    """Something the user gave is wrong. Its message is one line: what is wrong, and what would be right.

    The entry point prints that line and exits with status 2; everything else is a bug and shows its traceback.
    """


class Unsupported(UserError):
    """The model, or this machine, cannot do what was asked. The entry point adds how to see what it can."""
