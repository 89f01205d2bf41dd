"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """Bad input: the message names the culprit, its value, and the way out, in one line.

    The command line prints it without a traceback and exits with status 2.
    """
