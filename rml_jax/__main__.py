"""Entry point of all commands: rml-jax COMMAND ARGUMENTS, or python -m rml_jax COMMAND ARGUMENTS."""

import importlib
import sys

COMMANDS = {
    "train": ("rml_jax.commands.train", "train, or resume a run"),
    "eval": ("rml_jax.commands.eval", "score a run, weights or a folder of masks"),
    "predict": ("rml_jax.commands.predict", "write masks for images"),
    "pseudo": ("rml_jax.commands.pseudo", "write masks of the training images for a second stage"),
    "export": ("rml_jax.commands.export", "write a trained network as files for other programs"),
    "report": ("rml_jax.commands.report", "write one HTML page about a run"),
    "prepare": ("rml_jax.commands.prepare", "check a data set and pack it for training"),
    "inspect": ("rml_jax.commands.inspect", "show augmented training pairs and time the input pipeline"),
    "convert": ("rml_jax.commands.convert", "convert weights from and to other layouts"),
    "compile": ("rml_jax.commands.compile", "compile for a GPU or TPU that need not be there"),
}
"""Name of a command -> (module whose `main(arguments)` runs it, description)."""


def main():
    """Runs the command named by the first argument and imports its module only."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    importlib.import_module(COMMANDS[name][0]).main(arguments)


def _usage():
    lines = [f"  {name:<9}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rml-jax COMMAND ARGUMENTS",
            "",
            *lines,
            "",
            "rml-jax COMMAND --help lists a command's flags.",
        ]
    )


if __name__ == "__main__":
    main()
