"""RML on photographs in PASCAL VOC's folder layout, six animal classes of VOC, sized for a CPU.

    python train.py --config=configs/voc_animals.py --config.data.root=.../VOC2012 --workdir=runs/voc_animals

The folder contains JPEGImages, SegmentationClassAug and ImageSets/Segmentation with the lists train_aug.txt and
val.txt. Training takes only the classes that occur from the masks. It starts from random weights, with the smallest
published network (b0) and a 160-pixel crop: a test of the whole pipeline on real photographs in about 6 minutes on 2
cores (experiments/results/voc_animals.json), not an experiment of the paper.
"""

from rml_jax.config import default_config, size_for_cpu
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    config = default_config()

    config.data.name = "voc_animals"
    config.data.source = "voc"
    config.data.class_names = ("cat", "cow", "dog", "horse", "person", "sheep")
    config.data.mask_values = (8, 10, 12, 13, 15, 17)
    config.data.train_split = "train_aug"
    config.data.val_split = "val"

    size_for_cpu(config)
    config.pseudo_label.slots = 6
    config.log.pictures_every = 400
    config.eval.canvases = ((240, 320), (320, 240), (320, 320))
    config.eval.batch_size = 4
    return with_variant(config, variant)
