"""RML on COCO 2014: the paper's row, COCO val 39.1 mIoU, 40.0 with CRF.

    python train.py --config=configs/coco.py --config.data.root=COCO --config.model.init_from=MIT_B1 --workdir=DIR

The folder contains train2014, val2014 and annotations/instances_*.json as in COCO's archives, or is the output of
`rml-jax prepare coco`; images without any of the 80 classes are left out. Other data sets in COCO's format are
read as well, with classes from their own categories (docs/data.md, COCO): `--config.data.train_split=train
--config.data.val_split=valid`. The constants are the paper's (docs/method.md, Training constants): MiT-B1 from
ImageNet-1k weights, crop 320, 75,000 steps, the first 5,000 on classification alone. The score is the paper's; it was
not reproduced, since the published weights were not available.
"""

from rml_jax.config import default_config
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    config = default_config()
    config.data.name = "coco"
    config.data.source = "coco"
    config.data.train_split = "train2014"
    config.data.val_split = "val2014"
    config.loss.start_step = 5000
    config.train.steps = 75_000
    config.checkpoint.every = 2500
    return with_variant(config, variant)
