"""RML on the built-in data set `digits`: handwriting on photographs, no download, minutes on two CPU cores.

    python train.py --config=configs/digits.py --workdir=runs/digits

Not an experiment of the paper. `full` corresponds to Table 1's RML without CRF, `:baseline` to its first line
(classification alone, same number of steps); `rml_jax.variants` has the others. All start from random weights.
`make demo` trains and evaluates `full` in about 10 minutes on 2 cores.
"""

from rml_jax.config import default_config
from rml_jax.data.sources.digits import CLASS_NAMES
from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant."""
    config = default_config()

    config.data.name = "digits"
    config.data.source = "digits"
    config.data.class_names = CLASS_NAMES
    config.data.num_train = 100_000
    config.data.num_val = 400

    # A mirrored 2 is not a 2, and digits of other sizes do not occur.
    config.augment.scale = (1.0, 1.0)
    config.augment.flip = False
    config.affine.scale = (0.7, 1.0)
    config.affine.flip = 0.0
    config.cam.scales = (1.0,)
    config.cam.flip = False

    config.model.variant = "mini"
    config.model.drop_path_rate = 0.0

    # Thresholds and distances for 64x64 images; the defaults were chosen on VOC.
    config.pseudo_label.high = 0.3
    config.pseudo_label.low = 0.15
    config.pseudo_label.slots = 2
    config.pseudo_label.dilations = (1, 2, 4, 8)
    config.loss.radius = 4
    config.loss.start_step = 600

    config.optimizer.backbone_lr = 1e-3
    config.optimizer.head_lr = 1e-3
    config.optimizer.warmup_steps = 50

    config.train.steps = 900
    config.train.batch_size = 16
    config.train.crop_size = 64

    config.checkpoint.every = 150
    config.log.every = 10
    config.log.pictures_every = 300
    config.eval.canvases = ((64, 64),)
    config.eval.batch_size = 50
    config.eval.background = {"cam": 0.25, "affinity": 0.25, "par": 0.3}
    return with_variant(config, variant)
