"""The configuration of a run: every key with its default, read and written.

The defaults are METHOD.md section 5's for PASCAL VOC; a file in `configs/` changes what its data set needs.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write


def default_config():
    """All keys of a run.

    Returns:
      ConfigDict, locked: a key that is not here cannot be set.
    """
    config = ConfigDict()
    config.distributed = False  # several processes: jax.distributed.initialize() (docs/long_runs.md)

    config.data = data = ConfigDict()
    data.name = ""  # what scores and reports call the data set
    data.source = ""  # "digits", "voc" (VOC's folder layout), "coco" (COCO's) or "folder" (own photographs)
    data.root = (
        ""  # folder in VOC's or COCO's layout, of photographs, or prepared by rml_jax.commands.prepare
    )
    data.tags = (
        ""  # CSV or JSON Lines with image,tags; "": voc: classes in the masks; folder: names of sub-folders
    )
    data.masks = ""  # folder of masks, for scoring; folder only
    data.class_names = ()  # C foreground classes; folder: () takes them from the tags
    data.mask_values = ()  # the number each class has in the mask files; folder: () means 1..C
    data.mask_ignore = 255  # the number of pixels that aren't annotated in the mask files; -1: there are none
    data.allow_absent = False  # whether a class may occur in none of a split's masks
    data.val_list = ""  # text file that names the validation images; folder only
    data.val_fraction = (
        0.1  # share of the images drawn for validation where there is no val_list; folder only
    )
    data.skip_bad = False  # whether training leaves out files that can't be read, with a count, or stops
    data.train_split = "train"
    data.val_split = "val"
    data.num_train = 0  # scenes; digits only
    data.num_val = 0
    data.seed = 0  # of digits' scenes; of the draw of a folder's validation images
    data.scene = scene = ConfigDict()  # digits only, see DigitScenes
    scene.size = 64
    scene.digits = (1, 2)
    scene.digit_size = (28, 44)
    scene.background_brightness = 0.55
    data.workers = 0  # processes that decode and augment; 0 uses threads

    config.augment = augment = ConfigDict()
    augment.scale = (0.5, 2.0)
    augment.flip = True

    config.model = model = ConfigDict()
    model.variant = "b1"
    model.drop_path = 0.1
    model.pooling = "max"
    model.context_channels = 15  # K of the fused context R_c
    model.fused_stages = (
        4  # how many stages, from the last, R_c is fused from; 4 = all, 1 = without the fusion
    )
    model.symmetric_affinity = True  # whether R_a is made of x + x^T (METHOD.md section 1) or of x alone
    model.dtype = "float32"  # of the backbone's activations; "bfloat16" on GPU and TPU
    model.init_from = ""  # weights to start from (rml_jax.models.weights says which files); "" = scratch

    config.affine = affine = ConfigDict()
    affine.scale = (0.5, 1.0)
    affine.rotation = 15.0  # degrees either way
    affine.translation = 0.1  # share of the side, either way
    affine.flip = 0.5  # probability

    config.cam = cam = ConfigDict()
    cam.scales = (0.5, 1.0, 1.5)
    cam.flip = True

    config.pseudo_label = pseudo = ConfigDict()
    pseudo.high = 0.55
    pseudo.low = 0.35
    pseudo.slots = 8  # classes per image that are refined
    pseudo.dilations = (1, 2, 4, 8, 12, 24)
    pseudo.iterations = 10

    config.loss = loss = ConfigDict()
    loss.ciml = 0.1
    loss.mfml = 0.1
    loss.apml = 0.1
    loss.alpha = 0.1
    loss.affinity = 1.0
    loss.beta1 = 1.0
    loss.beta2 = 1.0
    loss.self_training = 0.0  # of L_self, beyond the paper (docs/method.md)
    # METHOD.md's readings; rml_jax.losses.CIMLReading says what the others are.
    loss.ciml_classes = "present"
    loss.ciml_prototypes = "batch"
    loss.ciml_gradient = "both"
    loss.decorrelate = False  # whether L_MFML whitens the context rather than standardising each channel
    loss.radius = 8  # cells of stage 4's grid
    loss.start_step = 2000  # steps of classification alone

    config.optimizer = optimizer = ConfigDict()
    optimizer.backbone_lr = 6e-5
    optimizer.head_lr = 6e-4
    optimizer.weight_decay = 0.01
    optimizer.warmup_steps = 1500
    optimizer.freeze_norms = "pretrained"  # "pretrained" (where init_from is set), "always" or "never"

    config.train = train = ConfigDict()
    train.steps = 18000
    train.batch_size = 4  # pictures of one update, over all devices
    train.grad_accum_steps = (
        1  # parts a batch is computed in, one after the other; losses are means over the parts
    )
    train.shard_optimizer = False  # whether each device keeps a share of the optimizer's state, not a copy
    train.max_skipped = 20  # steps in a row whose loss or gradient is not finite before training stops
    train.crop_size = 320
    train.seed = 0

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps
    checkpoint.keep = 3  # newest checkpoints
    checkpoint.keep_best = 1  # and those with the lowest best_metric; 0 = none
    checkpoint.best_metric = "classification"  # a loss, as logged: its mean over the last log.every steps

    config.log = log = ConfigDict()
    log.every = 50  # steps between scalars
    log.pictures_every = 1000  # steps between pictures and measures of localisation on validation; 0 = never

    config.eval = evaluation = ConfigDict()
    evaluation.canvases = ((384, 512), (512, 384), (512, 512))  # (height, width) that pictures are padded to
    evaluation.batch_size = 4  # pictures per device
    evaluation.stages = (
        "cam",
        "affinity",
        "par",
        "crf",
    )  # rml_jax.stages.stages says which there are
    evaluation.protocols = ("predicted", "given")  # whose tags: the model's own, the ground truth's
    evaluation.background = ConfigDict({"cam": 0.45, "affinity": 0.35, "par": 0.45})
    evaluation.crf = "afa"  # name of the CRF's settings (rml_jax.ops.crf)
    evaluation.sweep = sweep = ConfigDict()
    sweep.split = ""  # split to choose the background scores on; "" takes eval.background
    sweep.images = 0  # how many of its first images; 0 = all
    sweep.grid = tuple(round(0.05 * i, 2) for i in range(1, 20))
    evaluation.checkpoint = "newest"  # which is scored and predicted with: "newest", "best" or a step, "6000"
    evaluation.pictures = 8  # images in each part of the report: the first ones, the worst, the best
    return config.lock()


def size_for_cpu(config):
    """Turns a configuration, in place, into a first look on a CPU: MiT-b0 from scratch on 160-pixel crops, 400 steps.

    Args:
      config: ConfigDict of `default_config`'s keys.
    """
    config.model.variant = "b0"
    config.optimizer.backbone_lr = 5e-4
    config.optimizer.head_lr = 5e-4
    config.optimizer.warmup_steps = 50
    config.loss.start_step = 200
    config.train.steps = 400
    config.train.batch_size = 8
    config.train.crop_size = 160
    config.checkpoint.every = 100
    config.log.every = 10


def save_config(config, path):
    """Writes a config as JSON.

    Args:
      config: ConfigDict.
      path: pathlib.Path of the file.
    """
    atomic_write(path, config.to_json_best_effort(indent=2) + "\n")


def load_config(path):
    """Reads what `save_config` wrote.

    Args:
      path: the file config.json of a work directory.

    Returns:
      ConfigDict, locked, with tuples where the defaults have tuples.

    Raises:
      UserError: if the file is missing, is no JSON, or has keys or types this version doesn't know.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected the config.json of a training run") from error
    except ValueError as error:
        raise UserError(f"{path}: no valid JSON ({error}), expected the config of a training run") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: found no JSON object, expected the config of a training run")
    config = default_config()
    flat = {key: _to_tuple(value) for key, value in flatten(values).items()}
    unknown = sorted(flat.keys() - flatten(config.to_dict()).keys())
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}, expected the keys of this version")
    for key, value in flat.items():
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise UserError(f"{path}: {key} is {value!r}, expected a value of another type") from error
    return config


def config_difference(old, new):
    """The keys in which two configs differ.

    Args:
      old, new: ConfigDicts.

    Returns:
      Dict from dotted key to (old value, new value); a key that one side lacks has None there.
    """
    old, new = (flatten(json.loads(config.to_json_best_effort())) for config in (old, new))
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def flatten(values, prefix=""):
    """A nested dict as one level of dotted keys."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _to_tuple(value):
    return tuple(_to_tuple(item) for item in value) if isinstance(value, list | tuple) else value
