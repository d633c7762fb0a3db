"""Score a run's checkpoint, a file of weights or a folder of masks. Results are written to WORKDIR/eval.

rml-jax eval --workdir=DIR
rml-jax eval --weights=PATH --config=FILE[:VARIANT] --workdir=DIR
rml-jax eval --masks=FOLDER --config=FILE[:VARIANT] --workdir=DIR
"""

import signal
from pathlib import Path

from rml_jax.commands import cli
from rml_jax.report import score_table
from rml_jax.report.evaluation import evaluate_masks, evaluate_run
from rml_jax.report.scores import background_flags
from rml_jax.utils import distributed
from rml_jax.utils.errors import Interrupted, UserError


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax eval", description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run, or for the results")
    parser.add_config(without="WORKDIR/config.json")
    parser.add_argument("--split", help="split to score; data.val_split by default")
    parser.add_argument(
        "--weights", default="", help="file or model folder to score instead of the checkpoint"
    )
    parser.add_argument(
        "--masks", default="", help="folder of mask PNGs, ID.png, to score instead of a network"
    )
    parser.add_argument(
        "--save_masks", action="store_true", help="write the predicted masks in the VOC server's layout"
    )
    chosen, config = parser.parse_config(arguments)
    if chosen.masks and (chosen.weights or chosen.save_masks):
        raise UserError(
            "--masks scores finished masks: expected neither --weights nor --save_masks beside it"
        )
    cli.start_jax(config)
    workdir, split = Path(chosen.workdir), chosen.split or config.data.val_split
    try:
        with distributed.noticing_lost_processes("start all of them again, they go on with what is scored"):
            if chosen.masks:
                metrics, page = evaluate_masks(config, workdir, split, chosen.masks)
            else:
                metrics, page = evaluate_run(config, workdir, split, chosen.weights, chosen.save_masks)
    except OSError as error:
        where = error.filename or workdir
        raise UserError(
            f"{where}: {error.strerror or error}, expected a folder with room to write"
        ) from error
    except KeyboardInterrupt as error:
        message = "\nstopped; the same command goes on with the images that are not scored yet"
        raise Interrupted(message, signal.SIGINT) from error
    if not distributed.is_first():
        return
    print(score_table(metrics))
    if flags := background_flags(metrics):
        print(flags)
    if "programs" in metrics:
        print(f"{metrics['programs']} programs for canvases {', '.join(metrics['canvases'])}")
    print(f"images: {page}")
