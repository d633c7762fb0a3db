"""All commands under one name: rml-jax COMMAND ARGUMENTS, or python -m rml_jax COMMAND ARGUMENTS."""

import importlib
import sys

COMMANDS = {
    "train": ("rml_jax.commands.train", "train, or resume a run"),
    "eval": ("rml_jax.commands.eval", "score a run, weights or a folder of masks"),
    "predict": ("rml_jax.commands.predict", "masks for photographs"),
    "export": ("rml_jax.commands.export", "a trained network as files that run without this project"),
    "report": ("rml_jax.commands.report", "one HTML page of a run"),
    "convert": ("rml_jax.commands.convert", "weights of others to ours, or ours to transformers"),
    "prepare": ("rml_jax.commands.prepare", "a data set, checked and packed"),
    "inspect": (
        "rml_jax.commands.inspect",
        "augmented training pairs as a picture, and the pipeline's speed",
    ),
}
"""Name to the module whose `main()` it starts, and what that does."""


def main():
    """Starts the command that the first argument names; its module alone is imported."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in COMMANDS:
        print(f"error: {name!r} is no command, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module = importlib.import_module(COMMANDS[name][0])
    # What follows reads the command line as if it had been started by itself; absl's --help prints the docstring.
    sys.argv = [f"rml-jax {name}", *arguments]
    sys.modules["__main__"].__doc__ = module.__doc__
    sys.exit(module.main())


def _usage():
    lines = [f"  {name:<9}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: rml-jax COMMAND ARGUMENTS", "", *lines, "", "rml-jax COMMAND --help says more."]
    )


if __name__ == "__main__":
    main()
