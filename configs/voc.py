"""RML on PASCAL VOC 2012 with SBD's images: the paper's main row, VOC val 64.9 mIoU, 67.2 with CRF.

    python train.py --config=configs/voc.py --config.data.root=VOC2012 --config.model.init_from=MIT_B1 --workdir=DIR

The folder is VOC2012 from VOC's archive (JPEGImages) with the folder SegmentationClassAug (VOC's and SBD's masks,
12,031) and ImageSets/Segmentation/train_aug.txt (10,582 ids) added, or the output of `rml-jax prepare voc`. Training
takes only the classes that occur from the masks, unless `data.tags` names a tag file. The constants are the paper's
(docs/method.md, Training constants): MiT-B1 from ImageNet-1k weights, crop 320, batch 4, 18,000 steps, about 3 hours
on one RTX 3090 with the authors' code. The score is the paper's; it was not reproduced, since the published weights
were not available.
"""

from rml_jax.config import default_config
from rml_jax.data.sources.voc import CLASS_NAMES
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    config = default_config()
    config.data.name = "voc"
    config.data.source = "voc"
    config.data.class_names = CLASS_NAMES
    config.data.mask_values = tuple(range(1, 21))
    config.data.train_split = "train_aug"
    config.data.val_split = "val"
    return with_variant(config, variant)
