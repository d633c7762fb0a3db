"""Pre-training of a backbone on a folder of images with one sub-folder per class, in a checkout of the repository:

    python -m experiments.pretrain --config=pretrain --config.data.root=PHOTOS --save_to=pretrained.safetensors

Pass the file to another run as `model.init_from`. It is no substitute for the ImageNet-1k weights that the paper
starts from. Sized for the 100,000 images of Tiny ImageNet at 32 pixels, enlarged to 64, and 2 cores: MiT-b0, 6.5
epochs, about an hour (experiments/results/pretrain.json).
"""

from rml_jax.config import default_config


def get_config():
    """Returns the configuration."""
    config = default_config()

    config.data.name = "pretrain"
    config.data.source = "folder"
    config.data.val_fraction = 0.02

    # Images of 32 pixels are enlarged to 64 to 90, of which the crop has 64.
    config.augment.scale = (2.0, 2.8)

    config.model.variant = "b0"
    config.model.drop_path_rate = 0.0
    config.model.pooling = "average"

    config.optimizer.backbone_lr = 1e-3
    config.optimizer.head_lr = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 300

    config.train.steps = 5000
    config.train.batch_size = 128
    config.train.crop_size = 64

    config.checkpoint.every = 500
    config.log.every = 50
    config.log.pictures_every = 0
    config.eval.canvases = ((64, 64),)
    return config
