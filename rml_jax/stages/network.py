"""Functions from images to the maps that the stages refine."""

import functools

import jax
from flax import nnx

from rml_jax.models.build import use_chunked_attention, use_mixed_precision
from rml_jax.ops.cam import cam_sum, map_extremes, min_max_normalize
from rml_jax.ops.normalize import normalize


def make_network(graphdef, config):
    """Builds the pure function from images to maps.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, images uint8 [B, H, W, 3] and sizes int32 [B, 2], to be jitted. It gives a dict of
        probabilities: float32 [B, C], sigmoid of the class logits,
        cams: float32 [B, H, W, C] in [0, 1], of all classes, 0 outside the images,
        affinity: float32 [B, N, N] in [0, 1], N cells of the canvas's last grid.
    """

    def network(params, images, sizes):
        logits, maps, affinity_logits = _forward(graphdef, params, images, sizes, config, chunked=True)
        return {
            "probabilities": jax.nn.sigmoid(logits),
            "cams": min_max_normalize(maps, sizes),
            "affinity": jax.nn.sigmoid(affinity_logits),
        }

    return network


def make_tile_network(graphdef, config):
    """Builds the pure function from the tiles of larger images to maps.

    A CAM is scaled by its least and greatest values in the whole image. A first pass over the tiles finds them, a
    second one scales by them.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, tiles uint8 [B, H, W, 3], sizes int32 [B, 2] and the images' least and greatest values
      of every class's map, float32 [B, C] each, to be jitted. It gives the dict of `make_network`'s function, with
      the CAMs scaled by those values, and
        least, greatest: float32 [B, C], the tile's own.
    """

    def network(params, tiles, sizes, least, greatest):
        logits, maps, affinity_logits = _forward(graphdef, params, tiles, sizes, config, chunked=True)
        own_least, own_greatest = map_extremes(maps, sizes)
        return {
            "probabilities": jax.nn.sigmoid(logits),
            "cams": min_max_normalize(maps, sizes, (least, greatest)),
            "affinity": jax.nn.sigmoid(affinity_logits),
            "least": own_least,
            "greatest": own_greatest,
        }

    return network


def make_scores(graphdef, config):
    """Builds the pure function from images to class logits and CAMs, without the inputs of later stages.

    Args:
      graphdef: nnx.GraphDef of `RML`.
      config: StagesConfig.

    Returns:
      Function of parameters, images uint8 [B, H, W, 3] and sizes int32 [B, 2]. H and W may be symbolic (`jax.export`)
      if they are multiples of `rml_jax.ops.cam.symbolic_step`. It gives
        logits: float32 [B, C],
        cams: float32 [B, H, W, C], as `make_network`'s.
    """

    def scores(params, images, sizes):
        logits, maps, _ = _forward(graphdef, params, images, sizes, config)
        return logits, min_max_normalize(maps, sizes)

    return scores


def _forward(graphdef, params, images, sizes, config, chunked=False):
    """Computes class logits [B, C], CAMs before scaling [B, H, W, C] and affinity logits [B, N, N]."""
    model = nnx.merge(graphdef, params)
    if chunked:
        use_chunked_attention(model)
    if config.mixed:
        use_mixed_precision(model)

    def classify(views, view_sizes):
        outputs = model(views, sizes=view_sizes, with_context=False)
        return (outputs.logits, outputs.affinity_logits), outputs.cam_logits

    passes = functools.partial(cam_sum, classify, normalize(images), stride=config.stride, sizes=sizes)
    # XLA removes unused outputs, so only the pass at scale 1 computes the affinity.
    outputs, maps = passes(scales=config.scales, flip=config.flip)
    if 1.0 not in outputs:
        outputs |= passes(scales=(1.0,), flip=False)[0]
    logits, affinity_logits = outputs[1.0]
    return logits, maps, affinity_logits
