"""Maps of an image that the logs and the report show besides its masks."""

import jax.numpy as jnp

from rml_jax.ops.grid import ceil_div
from rml_jax.ops.pseudo_label import pseudo_labels
from rml_jax.ops.region import box_of_sizes


def make_sample_maps(config):
    """Builds the pure function that computes the maps shown in the report.

    Args:
      config: StagesConfig.

    Returns:
      Function of cams and affinity (see `make_network`), images, sizes and ground-truth tags [B, C], to be jitted. It
      gives a dict of
        cam: float32 [B, H, W] in [0, 1], the maximum over the tagged classes,
        pixel: int32 [B, 2], row and column of its maximum,
        affinity: float32 [B, h, w] in [0, 1], on the network's last grid: the affinity to the cell of that pixel,
        pseudo_label: uint8 [B, H, W], the pseudo label as in training, where PAR and resizing see the padding.
    """

    def sample_maps(cams, affinity, images, sizes, tags):
        canvas = images.shape[1:3]
        colours = images.astype(jnp.float32)
        labels = pseudo_labels(cams, colours, tags, box_of_sizes(sizes), config.pseudo_label)
        cam = jnp.max(cams * tags[:, None, None, :], axis=-1)
        row, column = jnp.divmod(cam.reshape(len(cam), -1).argmax(axis=1), canvas[1])
        grid = tuple(ceil_div(side, config.stride) for side in canvas)
        cell = row // config.stride * grid[1] + column // config.stride
        return {
            "cam": cam,
            "pixel": jnp.stack([row, column], axis=1),
            "affinity": affinity[jnp.arange(len(cell)), cell].reshape(-1, *grid),
            "pseudo_label": labels.astype(jnp.uint8),
        }

    return sample_maps
