"""Trains RML: rml-jax train --config=FILE[:VARIANT] --workdir=DIR [--config.key=value]"""

from pathlib import Path

from absl import flags

from rml_jax.commands import cli
from rml_jax.data.sources import has_masks
from rml_jax.training.loop import train

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config.json, checkpoints, TensorBoard.")


def main():
    """Trains as the command line says."""
    flags.mark_flag_as_required("workdir")
    cli.run(_train, cli.config_file(default="digits"))


def _train(config):
    state = train(config, Path(_WORKDIR.value))
    workdir = f"--workdir={_WORKDIR.value}"
    command = (
        f"python eval.py {workdir}"
        if has_masks(config.data)
        else f"rml-jax predict {workdir} --out=OUT PHOTOS"
    )
    print(f"trained to step {int(state.step)}; next: {command}")


if __name__ == "__main__":
    main()
