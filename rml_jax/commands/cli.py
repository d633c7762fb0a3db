"""Parsing of flags and configurations, and handling of errors, for all commands."""

import argparse
import collections
import difflib
import functools
import os
import re
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from rml_jax.config import default_config, flatten, load_config
from rml_jax.utils import distributed
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import Interrupted, UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package contains the configurations (setup.py); in a checkout they are next to the package.
_FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
CONFIGS = {path.stem: path for path in sorted(_FOLDER.glob("*.py"))}
"""Name of a configuration in `configs/` -> its file."""


class Parser(argparse.ArgumentParser):
    """Parses the flags of one command.

    Wrong usage raises a UserError of one line instead of printing the usage; for an unknown flag it suggests similar
    ones. Flags cannot be abbreviated.

    Args:
      prog: the command, such as "rml-jax train".
      options: see argparse.ArgumentParser.
    """

    def __init__(self, prog, **options):
        self._flags, self._has_subcommands = [], False
        super().__init__(
            prog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def add_argument(self, *names, **options):
        self._flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **options)

    def add_subparsers(self, **options):
        self._has_subcommands = True
        return super().add_subparsers(**options)

    def add_config(self, without):
        """Adds `--config=FILE[:VARIANT]` and `--config.KEY=VALUE`, which `parse_config` reads.

        Args:
          without: the default without `--config`, for the help text.
        """
        self.add_argument(
            "--config",
            metavar="FILE[:VARIANT]",
            help=f"configuration file, or one of {', '.join(CONFIGS)}; {without} by default",
        )
        self.add_argument(
            "--config.KEY", metavar="VALUE", help="set one key, such as --config.train.steps=100"
        )

    def parse_known_args(self, args=None, namespace=None):
        # Checks for unknown flags first; argparse would report a missing flag instead of the mistyped one.
        args = sys.argv[1:] if args is None else list(args)
        names = [arg.partition("=")[0] for arg in args[: args.index("--") if "--" in args else None]]
        for name in [] if self._has_subcommands else names:
            if name.startswith("--") and name not in self._flags:
                self.error(f"{name} is no flag of {self.prog}: expected {_nearest(name, self._flags)}")
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None):
        chosen, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"{rest[0]!r} belongs to no flag: expected --flag=value")
        return chosen

    def parse_config(self, args=None, default=None):
        """Parses flags and configuration.

        Args:
          args: command-line arguments; None uses those of this process.
          default: name in `CONFIGS` of the configuration to use without `--config`; None uses the one saved in
            `--workdir`.

        Returns:
          argparse.Namespace of the flags, and the ConfigDict, locked.

        Raises:
          UserError: for an unknown flag or key, a value of the wrong type, or a configuration that can't be read.
        """
        overrides, args = _split_overrides(sys.argv[1:] if args is None else args)
        chosen = self.parse_args(args)
        file = chosen.config or default
        saved = None if file else load_config(Path(chosen.workdir, "config.json"))
        return chosen, _with_overrides(file, saved, overrides)

    def error(self, message):
        raise UserError(message)


def command(main):
    """Decorates the main function of a command: a UserError is printed to standard error and exits with status 2.

    An interruption exits with the status that shells use for a signal, 128 plus its number.

    Args:
      main: function of the command-line arguments, or of None for those of this process.
    """

    @functools.wraps(main)
    def call(arguments=None):
        # XLA's log messages would hide the progress line.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        flags.FLAGS.mark_as_parsed()  # Libraries read absl's flags, which the commands do not parse.
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        try:
            return main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return distributed.leave(2)
        except Interrupted as interruption:
            print(interruption, file=sys.stderr)
            sys.exit(interruption.status)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)

    return call


def start_jax(config):
    """Sets up the compilation cache and, if `config.distributed` is set, joins the other processes."""
    use_compilation_cache()
    if config.distributed:
        distributed.join_processes()


def _nearest(name, names):
    return "one such as " + ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))


def _split_overrides(args):
    """Splits arguments into those that set keys, as `--config.KEY=VALUE`, and the others."""
    known = flatten(default_config().to_dict())
    overrides, others, args = [], [], collections.deque(args)
    while args:
        argument = args.popleft()
        match = re.match(r"--(?:no)?config\.([^=]*)(=?)", argument)
        if not match:
            others.append(argument)
            continue
        key, equals = match.groups()
        if key not in known:
            raise UserError(f"--config.{key} is no configuration key: expected {_nearest(key, known)}")
        if not equals and not isinstance(known[key], bool):
            if not args:
                raise UserError(f"--config.{key}: found no value, expected --config.{key}=VALUE")
            argument = f"{argument}={args.popleft()}"
        overrides.append(argument)
    return overrides, others


def _with_overrides(file, saved, overrides):
    """Returns the configuration of a file or, if that is None, the saved one, with overrides applied."""
    values = flags.FlagValues()
    name, colon, variant = (file or "").partition(":")
    argv = ["", *([f"--config={CONFIGS.get(name, name)}{colon}{variant}"] if file else []), *overrides]
    try:
        if file:
            holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        else:
            holder = config_flags.DEFINE_config_dict("config", saved, flag_values=values, sys_argv=argv)
        values(argv)
    except flags.Error as error:
        raise UserError(_reason(error)) from error
    # ml_collections reports a missing file only when the value is used.
    if not isinstance(holder.value, ConfigDict):
        raise UserError(
            f"--config={file}: no such file, expected FILE[:VARIANT] or one of {', '.join(CONFIGS)}"
        )
    return holder.value


def _reason(error):
    """Returns one line for a flag's error: the last line, with the cause, for an error inside a config file."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("rml_jax.utils.errors.UserError: ") if "Traceback" in str(error) else lines[0]
    )
