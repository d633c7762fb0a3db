"""RML on magnetic tiles with five kinds of defects, from random weights on a CPU.

    git clone https://github.com/abin24/Magnetic-tile-defect-datasets.
    python -m experiments.defect_data magnetic_tiles Magnetic-tile-defect-datasets. --out=data/magnetic_tiles
    python train.py --config=configs/magnetic_tiles.py --config.data.root=data/magnetic_tiles \
        --workdir=runs/magnetic_tiles

1,344 images of 103 to 632 pixels a side, 952 of them without a defect; a fifth is drawn for testing. The repository
states no licence. Training takes only the classes that occur from the masks. The background scores are chosen on 120
training images, whose masks are used for that.
"""

from rml_jax.config import default_config, size_for_cpu
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    config = default_config()

    config.data.name = "magnetic_tiles"
    config.data.source = "voc"
    config.data.class_names = ("blowhole", "break", "crack", "fray", "uneven")
    config.data.mask_values = (1, 2, 3, 4, 5)
    config.data.train_split = "train"
    config.data.val_split = "test"

    size_for_cpu(config)
    config.augment.scale = (0.4, 0.8)  # The whole tile, or most of it, is in the crop.
    # The plates of one kind of defect share their exposure and grain, which say nothing about where the defect is.
    config.augment.contrast = 0.7
    config.augment.brightness = 0.2
    config.augment.noise = 0.1
    config.model.padding = "edge"
    config.loss.start_step = 600
    config.train.steps = 900
    config.train.batch_size = 16
    config.pseudo_label.slots = 5
    config.checkpoint.every = 300
    config.log.pictures_every = 0
    config.eval.canvases = ((256, 416), (416, 256), (416, 416), (416, 640))
    config.eval.batch_size = 8
    config.eval.sweep.split = "train"
    config.eval.sweep.images = 120
    return with_variant(config, variant)
