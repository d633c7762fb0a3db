"""Exceptions that the commands report as a message and an exit status."""


class UserError(ValueError):
    """Wrong input: a file, a configuration value or a flag.

    The message is one line with the file or key, what was found and what was expected. A list may follow, such as
    the parameters that are missing in a file. Commands print it without a stack trace and exit with status 2
    (`rml_jax.commands.cli.command`).
    """


class Interrupted(Exception):
    """A signal stopped the work, after progress was saved.

    Commands print the message and exit with the status that shells use for a signal, 128 plus its number.

    Args:
      message: one line with what was saved and how to continue.
      signal: number of the signal.
    """

    def __init__(self, message, signal):
        super().__init__(message)
        self.status = 128 + signal
