"""Trains RML: python train.py --config=FILE[:VARIANT] --workdir=DIR [--config.key=value]"""

from pathlib import Path

from absl import flags

from rml_jax import cli
from rml_jax.training.loop import train

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config.json, checkpoints, TensorBoard.")


def main(config):
    state = train(config, Path(_WORKDIR.value))
    print(f"trained to step {int(state.step)}; next: python eval.py --workdir={_WORKDIR.value}")


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    cli.run(main, cli.config_file(default="configs/digits.py"))
