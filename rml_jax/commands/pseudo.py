"""Write pseudo masks of a split, in PASCAL VOC's layout, for training another segmentation network on them.

rml-jax pseudo --workdir=DIR --out=OUT [--split=NAME] [--stage=par]

The classes of an image are its given tags; pixels between the background scores pseudo_label.low and
pseudo_label.high are 255. A stopped command goes on where it was when it is repeated.
"""

import signal
from pathlib import Path

from rml_jax.commands import cli
from rml_jax.data.sources import make_source, with_class_names
from rml_jax.inference.predictor import load_model
from rml_jax.inference.pseudo import PseudoFolder, image_ids, make_pseudo_masks, pseudo_settings
from rml_jax.models import build
from rml_jax.utils import distributed
from rml_jax.utils.errors import Interrupted, UserError
from rml_jax.utils.progress import Progress
from rml_jax.utils.trees import digest
from rml_jax.validate import check_config


@cli.command
def main(arguments=None):
    """Runs the command."""
    parser = cli.Parser("rml-jax pseudo", description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run, or an exported model")
    parser.add_argument("--out", required=True, type=Path, help="folder to write, new or to go on with")
    parser.add_config(without="WORKDIR/config.json")
    parser.add_argument("--split", help="split to write masks of; data.train_split by default")
    parser.add_argument("--stage", default="par", help="stage that gives the masks; %(default)s by default")
    parser.add_argument("--save_images", action="store_true", help="write the images as JPEG, too")
    chosen, config = parser.parse_config(arguments)
    cli.start_jax(config)
    try:
        with distributed.noticing_lost_processes("repeat the command, which keeps the masks that there are"):
            pseudo(config, Path(chosen.workdir), chosen.out, chosen.split, chosen.stage, chosen.save_images)
    except OSError as error:
        where = error.filename or chosen.out
        raise UserError(f"{where}: {error.strerror or error}, expected room to write") from error
    except KeyboardInterrupt as error:
        message = f"\nstopped; the masks in {chosen.out} are kept, the same command goes on"
        raise Interrupted(message, signal.SIGINT) from error


def pseudo(config, workdir, out, split=None, stage="par", with_images=False):
    """Writes the pseudo masks of a split that are not there yet, and the lists of all.

    Args:
      config: ConfigDict of the run, possibly with overrides.
      workdir: pathlib.Path of the run or of an exported model.
      out: pathlib.Path of the folder (`rml_jax.inference.pseudo.PseudoFolder`).
      split: name of the split; None for `data.train_split`.
      stage: chain of stages that gives the masks.
      with_images: whether images are written, too.

    Raises:
      UserError: if the configuration, the data, the model or the folder is not as expected.
    """
    config = with_class_names(config).copy_and_resolve_references()
    config.eval.stages = (stage,)
    check_config(config)
    split = split or config.data.train_split
    source = make_source(config.data, split, with_masks=False)
    is_exported = (workdir / "model.safetensors").exists()
    _, params, step = load_model(workdir, None if is_exported else config.eval.checkpoint)
    graphdef, _ = build.build_graph(config)
    output = PseudoFolder(out, pseudo_settings(config, step, digest(params), split), with_images)
    distributed.on_first_process(output.open)
    ids = image_ids(source)
    missing = output.missing(ids)
    distributed.wait_for_all("all processes know which masks are missing")
    mine = distributed.share(missing)
    progress = distributed.on_first(Progress("pseudo", len(mine), "images").update)
    make_pseudo_masks(graphdef, params, source, mine, config, output, progress)
    distributed.wait_for_all("all masks are written")
    written = distributed.on_first_process(lambda: output.finish(ids))
    if distributed.is_first():
        unsure = f", {output.unsure:.1%} of their pixels unsure (255)" if output.images else ""
        print(f"{output.images} masks written{unsure}; {written} of {len(ids)} images have one: {out}")
