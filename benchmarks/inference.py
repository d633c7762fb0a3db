"""Pictures a second from photograph to mask: multi-scale flipped CAM alone, with PAR, and with the dense CRF.

    python -m benchmarks.inference [--json FILE] [--variant b1] [--batch 4] [--contestants ours,peer]

Sizes are those of VOC's photographs. Ours pads them to the canvas that holds them, so that few programs are compiled;
the peer, PyTorch run eagerly, computes at the pictures' own sizes. Both look at the tagged classes alone. The peer's
CRF is pydensecrf, one picture after the other on the CPU. Compilation and other first-time work are not counted.
Ours needs jax and flax, the peer torch, transformers and, for the CRF, pydensecrf2.
"""

import argparse
import functools
import os
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.contestants import settings

SIZES = ((375, 500), (500, 375), (333, 500))
_CANVASES = ((384, 512), (512, 384))
_STAGES = ("cam", "par", "crf")
_BACKGROUND = 0.45
_SLOTS = 4
_CRF = "afa"


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.inference")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", default="b1")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--shrink", type=int, default=1, help="divides the sizes, for a trial")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contestants", default="ours,peer")
    parser.add_argument("--stages", default=",".join(_STAGES))
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    # On a GPU, ours may not take all of the memory beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = {name: value for name, value in vars(chosen).items() if name != "json"}
    result = {"environment": measure.environment(), "settings": options, "sizes": {}}
    makers = {"ours": _ours, "peer": _peer}
    contestants = {name: makers[name](chosen.variant, chosen.dtype) for name in chosen.contestants.split(",")}
    for size in SIZES:
        size = tuple(side // chosen.shrink for side in size)
        pictures, tags = _pictures(chosen.batch, size)
        rows = result["sizes"][f"{size[0]}x{size[1]}"] = {}
        for stage in chosen.stages.split(","):
            runs = {name: make(pictures, tags, stage) for name, make in contestants.items()}
            runs = {name: run for name, run in runs.items() if run}
            for run in runs.values():
                run()
            seconds = measure.interleave(
                {name: functools.partial(_seconds, run) for name, run in runs.items()}, chosen.repeats
            )
            rows[stage] = _row(seconds, chosen.batch)
    measure.write_json(result, chosen.json)


def _row(seconds, batch):
    summaries = {name: measure.summary(times) for name, times in seconds.items()}
    row = {
        name: {"seconds_per_batch": one, "images_per_second": batch / one["median"]}
        for name, one in summaries.items()
    }
    if "peer" in row and "ours" in row:
        row["ratio"] = summaries["peer"]["median"] / summaries["ours"]["median"]
    return row


def _seconds(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _pictures(count, size):
    """Pictures of smooth colours with a little noise, uint8 [B, H, W, 3], and two tags each, float32 [B, C]."""
    from rml_jax.ops.resize import bilinear_matrix

    rng = np.random.default_rng(0)
    rows, columns = (bilinear_matrix(side, 8) for side in size)
    smooth = np.einsum("ih,bhwc,jw->bijc", rows, rng.normal(size=(count, 8, 8, 3)), columns)
    noisy = 128 + 90 * smooth + 2 * rng.normal(size=smooth.shape)
    tags = np.zeros((count, settings.CLASSES), np.float32)
    for one in tags:
        one[rng.choice(settings.CLASSES, settings.TAGS_PER_PICTURE, replace=False)] = 1
    return np.clip(noisy, 0, 255).astype(np.uint8), tags


def _ours(variant, dtype):
    """Function (pictures, tags, stage) -> function without arguments that makes the masks, on the device."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from rml_jax.models import RML

    network = settings.network_config(variant)
    graphdef, params = jax.jit(
        lambda: nnx.split(RML(network, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    segment = jax.jit(functools.partial(_segment, graphdef), static_argnames="stage")

    def make(pictures, tags, stage):
        height, width = pictures.shape[1:3]
        # Canvases have the largest VOC picture's proportions; a trial with small pictures pads to multiples of 32.
        fitting = [c for c in _CANVASES if c[0] >= height and c[1] >= width]
        canvas = fitting[0] if height > 128 else (-(-height // 32) * 32, -(-width // 32) * 32)
        padding = ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width), (0, 0))
        padded, size = np.pad(pictures, padding), np.tile(np.array([height, width], np.int32), (len(tags), 1))
        return lambda: jax.device_get(segment(params, padded, size, tags, stage=stage))

    return make


def _segment(graphdef, params, images, sizes, tags, stage):
    """Masks uint8 [B, H, W] of pictures in the upper left corners of their canvases."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from rml_jax.ops import multi_scale_cam, normalize
    from rml_jax.ops.crf import dense_crf_batch
    from rml_jax.ops.pseudo_label import gather_classes, refine_with_background, tagged_slots

    model, config = nnx.merge(graphdef, params), settings.step_config()
    classes, used = tagged_slots(tags, _SLOTS)

    def classify(scaled):
        logits, maps = model.classify(scaled)
        return logits, gather_classes(maps, jnp.repeat(classes, len(scaled) // len(classes), axis=0))

    box = jnp.concatenate([jnp.zeros_like(sizes), sizes], axis=-1)
    cams = multi_scale_cam(
        classify, normalize(images, box), scales=config.cam_scales, flip=config.cam_flip, stride=config.stride
    )
    if stage == "par":
        scores = refine_with_background(
            cams,
            used,
            images.astype(jnp.float32),
            (_BACKGROUND,),
            dilations=config.pseudo_label.dilations,
            iterations=config.pseudo_label.iterations,
        )[:, :, :, 0]
    else:
        allowed = jnp.where(used[:, None, None, :], cams, -jnp.inf)
        scores = jnp.concatenate([jnp.full_like(cams[..., :1], _BACKGROUND), allowed], axis=-1)
    if stage == "crf":
        scores, _ = dense_crf_batch(
            images, jax.nn.softmax(scores, axis=-1), sizes, slots=settings.TAGS_PER_PICTURE + 1, settings=_CRF
        )
    numbers = jnp.pad(classes + 1, ((0, 0), (1, 0)))
    labels = jnp.take_along_axis(numbers[:, None, None, :], scores.argmax(axis=-1)[..., None], axis=-1)
    return labels[..., 0].astype(jnp.uint8)


def _peer(variant, dtype):
    """Function (pictures, tags, stage) -> function that makes the same masks; None for a CRF without pydensecrf."""
    import jax
    import torch
    import torch.nn.functional as F
    import transformers
    from flax import nnx

    from rml_jax.models import RML
    from tests.references import torch_ops
    from tests.references.torch_model import from_flax

    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it; full float32 on a CPU.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, config = settings.network_config(variant), settings.step_config()
    params = jax.jit(lambda: nnx.split(RML(network, rngs=nnx.Rngs(0)))[1])()
    model = from_flax(params, network, getattr(torch, dtype)).to(device).eval()
    refine = torch_ops.PAR(config.pseudo_label.dilations, config.pseudo_label.iterations).to(device)

    @torch.no_grad()
    def segment(pictures, tags, stage):
        images, tags = torch.from_numpy(pictures).to(device), torch.from_numpy(tags).to(device)
        tagged, classes = tags.sort(dim=1, descending=True, stable=True)
        used, classes = tagged[:, :_SLOTS] > 0, classes[:, :_SLOTS]
        real = torch.ones(images.shape[:3], dtype=torch.bool, device=device)
        cams = torch_ops.multi_scale_cam(
            model,
            model.normalize(images, real),
            classes,
            config.cam_scales,
            config.cam_flip,
            config.stride,
        )
        scores = cams.masked_fill(~used[:, :, None, None], -torch.inf)
        scores = F.pad(scores, (0, 0, 0, 0, 1, 0), value=_BACKGROUND)
        if stage == "par":
            scores = refine(images.permute(0, 3, 1, 2).float(), scores.softmax(dim=1))
        if stage == "crf":
            scores = torch.from_numpy(_pydensecrf(pictures, scores.softmax(dim=1).cpu().numpy())).to(device)
        numbers = F.pad(classes + 1, (1, 0))
        best = scores.max(dim=1).indices
        return numbers.gather(1, best.flatten(1)).view_as(best).byte().cpu().numpy()

    def make(pictures, tags, stage):
        if stage == "crf" and not _has_pydensecrf():
            return None
        return lambda: segment(pictures, tags, stage)

    return make


def _has_pydensecrf():
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True


def _pydensecrf(pictures, probabilities):
    """Marginals [B, K, H, W] of pictures uint8 [B, H, W, 3] and probabilities; 0 for classes nowhere likely."""
    from rml_jax.ops.crf import CLIP, SETTINGS
    from tests.references.pydensecrf import by_pydensecrf

    refined = np.zeros_like(probabilities)
    for picture, given, result in zip(pictures, probabilities, refined, strict=True):
        present = np.flatnonzero(given.max(axis=(1, 2)) > CLIP)
        marginals = by_pydensecrf(picture, np.moveaxis(given[present], 0, -1), SETTINGS[_CRF])
        result[present] = np.moveaxis(marginals, -1, 0)
    return refined


if __name__ == "__main__":
    main()
