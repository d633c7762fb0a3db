"""Images per second from photograph to mask: multi-scale flipped CAM alone, with PAR, and with the dense CRF.

    python -m benchmarks.inference [--json FILE] [--variant b1] [--batch 4] [--stages cam,par,crf]
        [--contestants ours,peer] [--shrink 1]

Sizes are those of VOC's photographs. Ours pads them to multiples of 128, so that few programs are compiled; the peer,
eager PyTorch, computes at the images' own sizes. Both use the tagged classes only. The peer's CRF is pydensecrf, one
image after the other on the CPU. Compilation and other first-time work are not counted. `--shrink` divides the sizes,
for a quick test. Ours needs jax and flax, the peer torch, transformers and, for the CRF, pydensecrf2.
"""

import functools
import importlib.util
import os

import numpy as np

from benchmarks import measure
from benchmarks.contestants import settings

SIZES = ((375, 500), (500, 375), (333, 500))
_BACKGROUND, _SLOTS, _CRF = 0.45, 4, "afa"


def main():
    # On a GPU, ours must not preallocate the memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    chosen, result = measure.start(
        variant="b1",
        batch=4,
        dtype=measure.STEP["dtype"],
        shrink=1,
        contestants="ours,peer",
        stages="cam,par,crf",
        repeats=5,
    )
    makers = {"ours": _ours, "peer": _peer}
    contestants = {name: makers[name](chosen.variant, chosen.dtype) for name in chosen.contestants.split(",")}
    result["sizes"] = {}
    for size in SIZES:
        size = tuple(side // chosen.shrink for side in size)
        images, tags = settings.make_images(chosen.batch, size, noise=2)
        rows = result["sizes"][f"{size[0]}x{size[1]}"] = {}
        for stage in chosen.stages.split(","):
            runs = {
                name: functools.partial(segment, images, tags, stage)
                for name, segment in contestants.items()
                if not (name == "peer" and stage == "crf" and not importlib.util.find_spec("pydensecrf"))
            }
            seconds = measure.interleave(runs, chosen.repeats, warm_up=1)
            rows[stage] = _row(seconds, chosen.batch)
    measure.write_json(result, chosen.json)


def _row(seconds, batch):
    summaries = {name: measure.summary(times) for name, times in seconds.items()}
    row = {
        name: {"seconds_per_batch": one, "images_per_second": batch / one["median"]}
        for name, one in summaries.items()
    }
    if len(row) == 2:
        row["ratio"] = summaries["peer"]["median"] / summaries["ours"]["median"]
    return row


def _ours(variant, dtype):
    """Builds the function (images, tags, stage) -> masks uint8 [B, height, width], padded."""
    import jax

    from benchmarks.contestants import ours
    from rml_jax.utils.processor import inference_options

    graphdef, params = ours.build(variant, dtype)
    options = inference_options(jax.default_backend())
    segment = jax.jit(
        functools.partial(_segment, graphdef),
        static_argnames="stage",
        compiler_options=options,
    )

    def run(images, tags, stage):
        size = images.shape[1:3]
        padded = np.pad(images, ((0, 0), *((0, -side % 128) for side in size), (0, 0)))
        sizes = np.tile(np.int32(size), (len(tags), 1))
        return jax.device_get(segment(params, padded, sizes, tags, stage=stage))

    return run


def _segment(graphdef, params, images, sizes, tags, stage):
    """Computes masks uint8 [B, H, W] of images in the upper left corners of their canvases."""
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
            images, jax.nn.softmax(scores, axis=-1), sizes, slots=settings.TAGS_PER_IMAGE + 1, settings=_CRF
        )
    numbers = jnp.pad(classes + 1, ((0, 0), (1, 0)))
    labels = jnp.take_along_axis(numbers[:, None, None, :], scores.argmax(axis=-1)[..., None], axis=-1)
    return labels[..., 0].astype(jnp.uint8)


def _peer(variant, dtype):
    """Builds the function (images, tags, stage) -> masks uint8 [B, H, W]."""
    import torch
    import torch.nn.functional as F

    from benchmarks.contestants import peer
    from tests.references import torch_ops

    model, config = peer.build(variant, dtype).eval(), settings.step_config()
    device = next(model.parameters()).device
    refine = torch_ops.PAR(config.pseudo_label.dilations, config.pseudo_label.iterations).to(device)

    @torch.no_grad()
    def run(images, tags, stage):
        pixels, tags = torch.from_numpy(images).to(device), torch.from_numpy(tags).to(device)
        tagged, classes = tags.sort(dim=1, descending=True, stable=True)
        used, classes = tagged[:, :_SLOTS] > 0, classes[:, :_SLOTS]
        normalized = model.normalize(pixels, torch.ones(pixels.shape[:3], dtype=torch.bool, device=device))
        scales, flip, stride = config.cam_scales, config.cam_flip, config.stride
        cams = torch_ops.multi_scale_cam(model, normalized, classes, scales, flip, stride)
        scores = cams.masked_fill(~used[:, :, None, None], -torch.inf)
        scores = F.pad(scores, (0, 0, 0, 0, 1, 0), value=_BACKGROUND)
        if stage == "par":
            scores = refine(pixels.permute(0, 3, 1, 2).float(), scores.softmax(dim=1))
        if stage == "crf":
            scores = torch.from_numpy(_pydensecrf(images, scores.softmax(dim=1).cpu().numpy())).to(device)
        best = scores.max(dim=1).indices
        return F.pad(classes + 1, (1, 0)).gather(1, best.flatten(1)).view_as(best).byte().cpu().numpy()

    return run


def _pydensecrf(images, probabilities):
    """Computes marginals [B, K, H, W] of images and probabilities; 0 for absent classes."""
    from rml_jax.ops.crf import CLIP, SETTINGS
    from tests.references.pydensecrf import by_pydensecrf

    refined = np.zeros_like(probabilities)
    for image, given, result in zip(images, probabilities, refined, strict=True):
        present = np.flatnonzero(given.max(axis=(1, 2)) > CLIP)
        marginals = by_pydensecrf(image, np.moveaxis(given[present], 0, -1), SETTINGS[_CRF])
        result[present] = np.moveaxis(marginals, -1, 0)
    return refined


if __name__ == "__main__":
    main()
