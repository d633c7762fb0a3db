"""The configuration of a run: all keys and their defaults, loading and saving.

The defaults are those of the paper for PASCAL VOC (docs/method.md, Training constants). A file in `configs/` changes
the keys that its data set needs.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from rml_jax.utils.errors import UserError
from rml_jax.utils.extensions import CONFIG_KEYS
from rml_jax.utils.files import atomic_write, json_checksum


def default_config():
    """Returns all keys of a run with their defaults.

    Returns:
      ConfigDict, locked: a key that is not here cannot be set.
    """
    config = ConfigDict()
    config.distributed = False  # several processes: jax.distributed.initialize() (docs/long_runs.md)

    config.data = data = ConfigDict()
    data.name = ""  # name of the data set in scores and reports
    data.source = ""  # layout of the data: a name in rml_jax.data.sources.SOURCES, such as "voc" or "folder"
    # Folder in VOC's or COCO's layout, of photographs, or prepared by `rml-jax prepare`.
    data.root = ""
    # Tag file (docs/data.md); "": classes in the masks (voc) or names of sub-folders (folder).
    data.tags = ""
    # Folder of masks: for scoring (folder), or instead of SegmentationClassAug (voc, a name or a path).
    data.masks = ""
    data.class_names = ()  # C foreground classes; folder, coco: () takes them from the data
    data.category_ids = ()  # id of each class in the annotation file, for predictions; coco: () takes them from it
    data.mask_values = ()  # value of each class in the mask files; folder: () means 1..C
    data.mask_ignore = 255  # value of pixels that are not annotated in the mask files; -1: there are none
    data.allow_absent = False  # whether a class may occur in none of a split's masks
    data.allow_changes = False  # whether a run may resume after its images or tags have changed
    data.val_list = ""  # text file with the names of the validation images; folder only
    # Fraction of the images drawn for validation if there is no val_list, 0 to 1; folder, and coco in one file.
    data.val_fraction = 0.1
    data.skip_bad = False  # whether training skips and counts files that can't be read, rather than stop
    data.train_split = "train"  # split that is trained on
    data.val_split = "val"  # split that is scored by default, and whose images are logged
    data.num_train = 0  # training scenes, at least 1; digits only
    data.num_val = 0  # validation scenes, at least 1; digits only
    data.seed = 0  # of digits' scenes and of the draws of validation and of sweep images, at least 0
    data.scene = scene = ConfigDict()  # digits only, see DigitScenes
    scene.size = 64  # side of a scene, in pixels
    scene.digits = (1, 2)  # (least, greatest) number of digits in a scene
    scene.digit_size = (28, 44)  # (least, greatest) side of a digit, in pixels
    scene.background_brightness = 0.55  # factor on the background photograph, at least 0
    data.workers = 0  # processes that decode and augment; 0 uses threads

    config.augment = augment = ConfigDict()
    augment.scale = (0.5, 2.0)  # (low, high) of the random scale of an image, above 0
    augment.flip = True  # mirror half of the images left to right
    augment.contrast = 0.0  # greatest change of an image's contrast, as a logarithm; 0.7 halves or doubles it
    augment.brightness = 0.0  # greatest change of an image's brightness, 0 to 1 of the whole range
    augment.noise = 0.0  # greatest standard deviation of added noise, 0 to 1 of the whole range

    config.model = model = ConfigDict()
    model.variant = "b1"  # backbone, a name in rml_jax.models.BACKBONES: "b0" to "b5" or "mini"
    model.drop_path_rate = 0.1  # greatest rate of stochastic depth, from 0 to below 1
    model.pooling = "max"  # of class scores over the last grid: "max" or "average"
    # The classifier sees features minus their mean over the cells up to this far away; 0 leaves them as they are
    # (docs/method.md, Centred features).
    model.center_radius = 0
    # What convolutions see outside an image: "zeros", or "edge", its last row and column repeated.
    model.padding = "zeros"
    model.context_channels = 15  # K, channels of the fused context R_c
    # Stages, counted from the last, that R_c is fused from: 4 = all, 1 = no fusion.
    model.fused_stages = 4
    # Whether R_a is made from x + x^T or from x alone (docs/method.md, Network).
    model.symmetric_affinity = True
    # Of the backbone's activations: "float32"; "bfloat16" on GPU and TPU; or "mixed", float32 with matrix products of
    # operands rounded to bfloat16 (docs/performance.md, Precision).
    model.dtype = "float32"
    # Weights to start from: a file, or USER/MODEL[@REVISION] on the Hugging Face hub (docs/weights.md); "" = random.
    model.init_from = ""

    config.affine = affine = ConfigDict()  # ranges of the random transform A between the views
    affine.scale = (0.5, 1.0)  # (low, high) size of the content, 1 = unchanged
    affine.rotation = 15.0  # greatest angle either way, in degrees
    affine.translation = 0.1  # greatest shift either way, as a fraction of the side
    affine.flip = 0.5  # probability of a mirror image, 0 to 1

    config.cam = cam = ConfigDict()  # the multi-scale CAM of pseudo labels and of evaluation
    cam.scales = (0.5, 1.0, 1.5)  # scales of the image, each above 0
    cam.flip = True  # whether to include mirrored images
    # Precision of all CAM passes, in training, evaluation and prediction: "model" is that of model.dtype, "mixed" as
    # there, "auto" is "mixed" for float32 models on CPUs with instructions for it, else "model".
    cam.dtype = "auto"

    config.pseudo_label = pseudo = ConfigDict()
    pseudo.high = 0.55  # background score that foreground must exceed, 0 to 1
    pseudo.low = 0.35  # background score that background must stay below, 0 to high
    pseudo.slots = 8  # classes of an image that are refined, at least 1; raised if an image has more tags
    pseudo.dilations = (1, 2, 4, 8, 12, 24)  # of PAR, in pixels of the image at half size
    pseudo.iterations = 10  # of PAR, at least 0
    # Weight of the contrast by which each image's scores are chosen, at least 0; 0 = the same for all images.
    pseudo.region_contrast = 0.0

    # Weights, at least 0 each. `rml_jax.losses.register_term` adds the key of a new term.
    config.loss = loss = ConfigDict()
    loss.ciml = 0.1  # of L_CIML (lambda_1, Eq. 16)
    loss.mfml = 0.1  # of L_MFML (lambda_2)
    loss.apml = 0.1  # of L_APML (lambda_3)
    loss.alpha = 0.1  # of the prototype similarity in L_CIML (Eq. 4)
    loss.affinity = 1.0  # of L_aff in L_APML; 1 in the paper, 0 in its ablation (Eq. 14)
    loss.beta1 = 1.0  # of I(R_c; R'_c) in L_MFML, which is in nats (Eq. 8)
    loss.beta2 = 1.0  # of L_mi in L_APML, which is in nats (Eq. 14)
    loss.self_training = 0.0  # of L_self, not in the paper (docs/method.md, Beyond the paper)
    loss.radius = 8  # largest distance of an affinity pair, in cells of the last grid
    loss.start_step = 2000  # number of first steps, which train classification alone

    config.optimizer = optimizer = ConfigDict()
    optimizer.backbone_lr = 6e-5  # base learning rate of the backbone, at least 0
    optimizer.head_lr = 6e-4  # base learning rate of the heads, at least 0
    optimizer.weight_decay = 0.01  # of AdamW, at least 0
    optimizer.schedule = "warmup_poly"  # name in rml_jax.training.optimizer.SCHEDULES
    optimizer.warmup_steps = 1500  # updates in which the learning rates rise
    optimizer.freeze_norms = "pretrained"  # "pretrained" (where init_from is set), "always" or "never"

    config.train = train = ConfigDict()
    train.steps = 18000  # batches to train on
    train.batch_size = 4  # images of one update, over all devices
    # Number of parts a batch is split into, computed one after the other; losses are means over the parts.
    train.grad_accum_steps = 1
    # Share of the images that are joined with another of the batch while classification alone is trained, below 1
    # (docs/method.md, Joined images).
    train.join = 0.0
    train.shard_optimizer = False  # shard the optimizer's state over the devices rather than replicate it
    train.max_skipped = 20  # steps in a row whose loss or gradient is not finite before training stops
    train.crop_size = 320  # side of a training image, in pixels
    train.seed = 0  # of initial parameters, order of the data and augmentation, 0 to 2**32 - 1

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 1000  # steps between checkpoints
    checkpoint.keep = 3  # newest checkpoints to keep, at least 1
    checkpoint.keep_best = 1  # further ones to keep, with the lowest best_metric; 0 = none
    checkpoint.best_metric = "classification"  # a logged loss: its mean over the last log.every steps

    config.log = log = ConfigDict()
    log.every = 50  # steps between scalars
    log.pictures_every = 1000  # steps between images and measures of localisation on validation; 0 = never

    config.eval = evaluation = ConfigDict()
    # (height, width) that images are padded to, in pixels.
    evaluation.canvases = ((384, 512), (512, 384), (512, 512))
    evaluation.batch_size = 4  # images per device
    evaluation.stages = ("cam", "affinity", "par", "crf")  # chains of rml_jax.stages to score
    evaluation.protocols = ("predicted", "given")  # whose tags: the model's own, the ground truth's
    # Stage -> score of the background in it, at least 0.
    evaluation.background = ConfigDict({"cam": 0.45, "affinity": 0.35, "par": 0.45})
    # Weight of the contrast by which each image's score is chosen near these, at least 0; 0 = the same score for all
    # images (docs/evaluation.md, A score for each image).
    evaluation.region_contrast = 0.0
    evaluation.crf = "afa"  # name of the CRF's settings (rml_jax.ops.SETTINGS)
    evaluation.sweep = sweep = ConfigDict()
    # What the background scores are chosen by: "miou", which needs masks, or the "contrast" of the predicted masks
    # with the images, which needs none (docs/evaluation.md).
    sweep.criterion = "miou"
    sweep.split = ""  # split to choose the background scores on; "" uses eval.background
    sweep.images = 0  # number of its images to use, drawn by data.seed evenly over the classes; 0 = all
    sweep.grid = tuple(round(0.05 * i, 2) for i in range(1, 20))  # background scores to try, at least 0
    evaluation.checkpoint = "newest"  # to score and predict with: "newest", "best" or a step, "6000"
    evaluation.pictures = 8  # images in each part of the report: the first ones, the worst, the best
    for key, value in CONFIG_KEYS.items():
        group, _, name = key.rpartition(".")
        config[group][name] = value
    return config.lock()


def size_for_cpu(config):
    """Changes a configuration in place to a small run for a CPU: MiT-b0 from scratch, 160-pixel crops, 400 steps.

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
    """Writes a config as JSON, with a checksum of it under the key `checksum`.

    Args:
      config: ConfigDict.
      path: pathlib.Path of the file.
    """
    values = json.loads(config.to_json_best_effort())
    # First, so that the line can be removed without a comma being left.
    content = {"checksum": json_checksum(values), **values}
    atomic_write(path, json.dumps(content, indent=2) + "\n")


def load_config(path):
    """Reads a file that `save_config` wrote.

    Args:
      path: the file config.json of a work directory.

    Returns:
      ConfigDict, locked, with tuples where the defaults have tuples.

    Raises:
      UserError: if the file is missing, is not JSON, differs from what was saved, or has keys or types that this
        version does not know.
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
    # Without it, a digit that changed on the disk would change scores and masks in silence. Older files have none.
    saved, found = values.pop("checksum", None), json_checksum(values)
    if saved not in (None, found):
        raise UserError(
            f"{path}: found checksum {found}, expected {saved}: the file was changed since it was written; if "
            'that was on purpose, remove its line "checksum"'
        )
    config = default_config()
    flat = {key: _to_tuple(value) for key, value in flatten(values).items()}
    unknown = sorted(flat.keys() - flatten(config.to_dict()).keys())
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}, expected the keys of this version")
    if flat.get("eval.sweep.criterion") == "agreement":  # Until 0.2.0, what took no masks.
        flat["eval.sweep.criterion"] = "contrast"
    for key, value in flat.items():
        try:
            config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise UserError(f"{path}: {key} is {value!r}, expected a value of another type") from error
    return config


def config_difference(old, new):
    """Returns the keys in which two configs differ.

    Args:
      old, new: ConfigDicts.

    Returns:
      Dict from dotted key to (old value, new value); a missing key is None.
    """
    old, new = (flatten(json.loads(config.to_json_best_effort())) for config in (old, new))
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def flatten(values, prefix=""):
    """Flattens a nested dict into dotted keys."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _to_tuple(value):
    return tuple(_to_tuple(item) for item in value) if isinstance(value, list | tuple) else value
