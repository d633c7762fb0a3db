"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """Bad input from outside: a file, a configuration value, a command line.

    Its message is one line that names the file or key, what was found and what was expected; below it there may be
    a list, such as the parameters that a file of weights lacks. The commands print it without a stack trace and
    exit with status 2 (`rml_jax.cli.run`).
    """
