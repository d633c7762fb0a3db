"""RML on NEU-Seg: steel surfaces with inclusions, patches and scratches, from random weights on a CPU.

    git clone https://github.com/DHW-Master/NEU_Seg
    python -m experiments.defect_data neu_seg NEU_Seg --out=data/neu_seg
    python train.py --config=configs/neu_seg.py --config.data.root=data/neu_seg --workdir=runs/neu_seg

3,630 training and 840 test images of 200x200 pixels. The repository states no licence. Training takes only the
classes that occur from the masks. The background scores are chosen on 120 training images, whose masks are used for
that.
"""

from rml_jax.config import default_config, size_for_cpu
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    config = default_config()

    config.data.name = "neu_seg"
    config.data.source = "voc"
    config.data.class_names = ("inclusion", "patches", "scratches")
    config.data.mask_values = (1, 2, 3)
    config.data.train_split = "train"
    config.data.val_split = "test"

    size_for_cpu(config)
    config.augment.scale = (0.8, 1.3)  # An image is never smaller than the crop.
    # The plates of one kind of defect share their exposure and grain, which say nothing about where the defect is.
    config.augment.contrast = 0.7
    config.augment.brightness = 0.2
    config.augment.noise = 0.1
    config.model.padding = "edge"
    config.model.center_radius = 6
    config.cam.scales = (1.0, 1.5)  # Defects are thin.
    config.loss.start_step = 600
    config.train.steps = 900
    config.train.batch_size = 16
    config.train.join = 0.5  # A plate with one kind of defect beside one with another.
    config.pseudo_label.slots = 3
    config.pseudo_label.iterations = 20  # Defects' outlines need more than objects'.
    config.checkpoint.every = 300
    config.log.pictures_every = 0
    config.eval.canvases = ((200, 200),)
    config.eval.batch_size = 8
    config.eval.region_contrast = 20.0
    config.eval.sweep.split = "train"
    config.eval.sweep.images = 120
    return with_variant(config, variant)
