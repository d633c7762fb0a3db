"""Train, or resume the run in a work directory. A resumed run must have the same configuration."""

from pathlib import Path

from rml_jax.commands import cli
from rml_jax.data.sources import has_masks
from rml_jax.training.loop import train


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax train", description=__doc__)
    parser.add_config(without="digits")
    parser.add_argument("--workdir", required=True, help="folder of the run: config, checkpoints, logs")
    chosen, config = parser.parse_config(arguments, default="digits")
    cli.start_jax(config)
    state = train(config, Path(chosen.workdir))
    workdir = f"--workdir={chosen.workdir}"
    hint = (
        f"rml-jax eval {workdir}" if has_masks(config.data) else f"rml-jax predict {workdir} --out=OUT PHOTOS"
    )
    print(f"trained to step {int(state.step)}; next: {hint}")
