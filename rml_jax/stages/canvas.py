"""Placement of images of any size on a few canvases, each with one compiled program."""

import numpy as np
from PIL import Image

from rml_jax.ops.cam import scaled_size


def place(size, canvases, smallest):
    """Chooses the canvas that an image is evaluated on, and its size there.

    Images keep their size and are padded. An image that fits on no canvas is reduced to fit, and sides shorter than
    the network accepts are enlarged.

    Args:
      size: (height, width) of the image.
      canvases: (height, width) of each canvas, no side below `smallest`.
      smallest: smallest side that the network accepts.

    Returns:
      size: (height, width) to evaluate at, usually the image's own.
      canvas: the smallest of the canvases that holds it.
    """
    size = tuple(max(side, smallest) for side in size)

    def factor(canvas):
        return min(1.0, canvas[0] / size[0], canvas[1] / size[1])

    best = max(factor(canvas) for canvas in canvases)
    if best < 1:
        size = tuple(max(smallest, int(side * best + 1e-6)) for side in size)
    fitting = [tuple(c) for c in canvases if size[0] <= c[0] and size[1] <= c[1]]
    return size, min(fitting, key=lambda canvas: canvas[0] * canvas[1])


def pad_image(image, size, canvas):
    """Puts an image into the top left corner of a canvas.

    Args:
      image: uint8 [h, w, 3].
      size: (height, width) that the image is resized to if it differs, bilinear with antialiasing.
      canvas: (height, width).

    Returns:
      uint8 [height, width, 3], 0 around the image.
    """
    if image.shape[:2] != size:
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    result = np.zeros((*canvas, 3), np.uint8)
    result[: size[0], : size[1]] = image
    return result


def crop_labels(mask, size, wanted):
    """Crops an image's mask from its canvas and resizes it, nearest neighbour, if the image was resized.

    Args:
      mask: uint8 [H, W] on the canvas.
      size: (height, width) that the image was evaluated at.
      wanted: (height, width) of the image.

    Returns:
      uint8 of size `wanted`.
    """
    mask = mask[: size[0], : size[1]]
    if mask.shape == tuple(wanted):
        return mask
    return np.asarray(Image.fromarray(mask).resize(wanted[::-1], Image.Resampling.NEAREST))


def smallest_side(backbone, scales):
    """Computes the smallest side for which every pass of the multi-scale CAM is large enough for the network.

    Args:
      backbone: BackboneConfig, with `stride` and `smallest_side` in pixels.
      scales: factors on the image's size.

    Returns:
      int, in pixels.
    """

    def is_enough(side):
        passes = (scaled_size((side,), scale, backbone.stride) for scale in (1.0, *scales))
        return all(length >= backbone.smallest_side for (length,) in passes)

    return next(filter(is_enough, range(1, 10**6)))
