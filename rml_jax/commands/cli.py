"""How the commands read their flags and how they fail."""

import difflib
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rml_jax.config import default_config, flatten, load_config
from rml_jax.utils import distributed
from rml_jax.utils.compilation_cache import use_compilation_cache
from rml_jax.utils.errors import Interrupted, UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package holds the configurations (setup.py); in a checkout they lie beside it.
_FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
CONFIGS = {path.stem: path for path in sorted(_FOLDER.glob("*.py"))}
"""Name to file of the project's own configurations."""


def config_file(default):
    """The flags `--config=FILE[:VARIANT]` and `--config.key=value`, for a new run.

    Args:
      default: name of the configuration (`CONFIGS`) to use where the command line names none.

    Returns:
      Function to pass to `run` as `define_config`.
    """
    return lambda argv: config_flags.DEFINE_config_file("config", str(CONFIGS[default]), sys_argv=argv)


def config_of_file_or_workdir(argv):
    """The flags `--config.key=value` over the file `--config=FILE` or, without it, over the configuration saved in
    `--workdir`; pass it to `run`.

    Raises:
      UserError: if there is no `--config` and the work directory holds no readable config.json.
    """
    if any(re.match(r"--?config(=|$)", argument) for argument in argv):
        return config_flags.DEFINE_config_file("config", sys_argv=argv)
    flags.FLAGS(argv, known_only=True)
    saved = load_config(Path(flags.FLAGS.workdir, "config.json"))
    return config_flags.DEFINE_config_dict("config", saved, sys_argv=argv)


def run(main, define_config):
    """Runs a command under absl, with one line instead of a stack trace for a user's mistake.

    Args:
      main: function of the configuration, a ConfigDict.
      define_config: `config_file(...)` or `config_of_file_or_workdir`. Called here and not at import, so that its
        errors are reported like any other.
    """
    # XLA reports its inner life on standard error; a user wants the progress line there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parsed = {}

    def parse(argv):
        _check_keys(argv)
        argv = [_with_config_path(argument) for argument in argv]
        try:
            holder = define_config(argv)
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            raise UserError(_reason(error)) from error
        # A missing config file shows only when the value is used.
        if not isinstance(holder.value, ConfigDict):
            name = flags.FLAGS["config"].config_filename
            raise UserError(
                f"--config={name}: no such file, expected FILE[:VARIANT] or one of {', '.join(CONFIGS)}"
            )
        if rest[1:]:
            raise UserError(f"{rest[1]!r} belongs to no flag: expected --flag=value only")
        parsed["config"], parsed["verbose"] = holder.value, flags.FLAGS["verbosity"].present
        return rest

    def start(_):
        if not parsed["verbose"]:
            logging.set_verbosity(logging.WARNING)
        use_compilation_cache()
        if parsed["config"].distributed:
            distributed.join_processes()
        main(parsed["config"])

    # --help explains the flags of what was started, wherever they are defined.
    for flag in flags.FLAGS.get_flags_for_module(main.__module__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_guarded(start), flags_parser=_guarded(parse))


def _check_keys(argv):
    known = flatten(default_config().to_dict())
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match and match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=3, cutoff=0.0)
            raise UserError(
                f"--config.{match[1]} is no configuration key: expected one such as {', '.join(near)}"
            )


def _with_config_path(argument):
    """An argument with the name of a configuration, `--config=digits:full`, replaced by its file's path."""
    match = re.fullmatch(r"(--?config=)(\w+)(:.*)?", argument)
    if not match or match[2] not in CONFIGS:
        return argument
    return f"{match[1]}{CONFIGS[match[2]]}{match[3] or ''}"


def _reason(error):
    """One line for a flag's error; of an error inside a config file, its last line, which names the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("rml_jax.utils.errors.UserError: ") if "Traceback" in str(error) else lines[0]
    )


def _guarded(function):
    def call(argv):
        try:
            return function(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            distributed.leave(2)
        except Interrupted as interruption:
            print(interruption, file=sys.stderr)
            sys.exit(interruption.status)

    return call
