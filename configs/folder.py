"""RML on your own images, with tags but no masks.

    python train.py --config=configs/folder.py --config.data.root=PHOTOS --config.data.tags=TAGS.csv --workdir=DIR

Without `data.tags`, the name of each sub-folder of PHOTOS is the tag of the images in it. The classes are the tags
that occur; a tenth of the images is kept for validation. `data.root` may also be the output of `rml-jax prepare
folder`, without `data.tags`. The method, MiT-B1 and constants are the paper's for VOC (docs/method.md, Training
constants). Set `model.init_from` to pre-trained weights if you can; a few thousand images are not enough to train
from random weights.

`:small` is a short run for a CPU: the smallest published network (b0) on 160-pixel crops, 400 steps from random
weights. `:surface` is for defects of surfaces (docs/defects.md): the settings of configs/neu_seg.py. `eval` chooses
the background scores without masks (docs/evaluation.md).
"""

import runpy
from pathlib import Path

from rml_jax.config import default_config, size_for_cpu
from rml_jax.utils.errors import UserError


def get_config(variant="full"):
    """Returns the configuration of a variant, "full", "small" or "surface"."""
    config = default_config()
    if variant == "surface":
        # By path, since an installed package has the configurations in another folder.
        config = runpy.run_path(Path(__file__).with_name("neu_seg.py"))["get_config"]()
        config.data = default_config().data
        config.eval.canvases = default_config().eval.canvases
    config.eval.sweep.criterion, config.eval.sweep.split, config.eval.sweep.images = "contrast", "train", 60
    config.data.name = "folder"
    config.data.source = "folder"
    config.log.pictures_every = 0  # Logged images need validation masks.
    if variant == "small":
        size_for_cpu(config)
    elif variant not in ("full", "surface"):
        raise UserError(
            f"found no variant {variant!r} of the configuration folder, expected full, small or surface"
        )
    return config
