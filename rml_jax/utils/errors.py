"""The exceptions that the commands turn into a message and an exit status."""


class UserError(ValueError):
    """Bad input from outside: a file, a configuration value, a command line.

    Its message is one line that names the file or key, what was found and what was expected; below it there may be
    a list, such as the parameters that a file of weights lacks. The commands print it without a stack trace and
    exit with status 2 (`rml_jax.commands.cli.command`).
    """


class Interrupted(Exception):
    """A signal ended the work before its time; what was done is saved.

    The commands print its message and exit with the status that shells use for a signal, 128 and its number.

    Args:
      message: one line that says what was saved and how to go on.
      signal: number of the signal.
    """

    def __init__(self, message, signal):
        super().__init__(message)
        self.status = 128 + signal
