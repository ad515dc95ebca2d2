"""The one exception that stands for a user's mistake."""


class SparseccError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what was wrong and what to do about it. The command line prints it without a
    traceback and exits with code 2.
    """
