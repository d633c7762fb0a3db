"""RML on magnetic tiles with five kinds of defects, from random weights on a CPU.

    git clone https://github.com/abin24/Magnetic-tile-defect-datasets.
    python -m experiments.defect_data magnetic_tiles Magnetic-tile-defect-datasets. --out=data/magnetic_tiles
    python train.py --config=configs/magnetic_tiles.py --config.data.root=data/magnetic_tiles \
        --workdir=runs/magnetic_tiles

1,344 images of 103 to 632 pixels a side, 952 of them without a defect; a fifth is drawn for testing. The repository
states no licence. Training takes only the classes that occur from the masks. The background scores are chosen on 120
training images, whose masks are used for that.
"""

import runpy
from pathlib import Path

from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    # By path, since an installed package has the configurations in another folder.
    config = runpy.run_path(Path(__file__).with_name("neu_seg.py"))["get_config"]()
    config.data.name = "magnetic_tiles"
    config.data.class_names = ("blowhole", "break", "crack", "fray", "uneven")
    config.data.mask_values = (1, 2, 3, 4, 5)
    config.augment.scale = (0.4, 0.8)  # The whole tile, or most of it, is in the crop.
    config.cam.scales = (0.5, 1.0, 1.5)
    config.pseudo_label.slots = 5
    config.eval.canvases = ((256, 416), (416, 256), (416, 416), (416, 640))
    return with_variant(config, variant)
