"""RML on voc_animals from a backbone of `configs/pretrain.py`, sized for the ablation on a CPU core.

    python -m experiments.ablation --config=configs/voc_animals_pretrained.py --config.data.root=.../VOC2012 \
        --config.model.init_from=pretrained.safetensors --workdir=runs/ablation-animals --variants=baseline,full

MiT-b0 on 128-pixel crops, batches of 8, 1,000 steps of classification alone and 400 with all terms. Not an experiment
of the paper. The background scores are chosen for each variant on the first 48 training images: the default scores
are for VOC and a stronger network, and a fixed score would favour some variants.
"""

import runpy
from pathlib import Path

from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant (`rml_jax.variants`)."""
    # By path, since an installed package has the configurations in another folder.
    config = runpy.run_path(Path(__file__).with_name("voc_animals.py"))["get_config"]()
    # A crop covers most of an image of 320 pixels, so that most of its tags are valid for the crop.
    config.augment.scale = (0.5, 1.0)
    # At their own size, objects already appear larger than in training.
    config.cam.scales = (0.5, 1.0)
    config.optimizer.backbone_lr = 2e-4
    config.optimizer.head_lr = 2e-3
    config.train.crop_size = 128
    config.train.steps = 1400
    config.loss.start_step = 1000
    config.log.pictures_every = 0
    config.eval.stages = ("cam", "par")
    config.eval.sweep.split = "train_aug"
    config.eval.sweep.images = 48
    config.eval.sweep.grid = (0.2, 0.3, 0.4, 0.5, 0.6)
    return with_variant(config, variant)
