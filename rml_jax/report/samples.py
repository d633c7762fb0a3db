"""Encoding of single images for the page of a report."""

import base64
import io

import numpy as np
from PIL import Image

from rml_jax.evaluation.samples import Sample, sample_images

# Widths of an image on the page, in pixels. Wider images are stored at reduced size, which saves megabytes per image;
# the browser enlarges narrower ones by nearest neighbour.
_MAX_WIDTH = 220
_MIN_WIDTH = 128


def scene(sample: Sample) -> dict:
    """Returns the part of a page that shows one sample, as JSON-like values.

    Args:
      sample: all its arrays have the same H and W.

    Returns:
      Dict of `id`, `tags` and `predicted_tags`, as in the sample; `width`, at which the images are shown, in pixels;
      `pixelated`, whether the browser enlarges them; `pictures`, caption -> data URI.

    Raises:
      ValueError: if the sample's arrays differ in size.
    """
    width = sample.image.shape[1]
    return {
        "id": sample.id,
        "tags": list(sample.tags),
        "predicted_tags": list(sample.predicted_tags),
        "width": min(max(width, _MIN_WIDTH), _MAX_WIDTH),
        "pixelated": width < _MIN_WIDTH,
        "pictures": {
            caption: data_uri(image, _MAX_WIDTH) for caption, image in sample_images(sample).items()
        },
    }


def data_uri(image: np.ndarray, max_width: int) -> str:
    """Encodes an image as a data URI: PNG if it is small, lossy WebP otherwise.

    Args:
      image: uint8 [H, W, 3].
      max_width: in pixels; wider images are reduced to it.

    Returns:
      data:image/...;base64,...
    """
    reduced = Image.fromarray(image)
    reduced.thumbnail((max_width, reduced.height))
    kind, options = ("png", {}) if image.shape[1] < _MIN_WIDTH else ("webp", {"quality": 85})
    file = io.BytesIO()
    reduced.save(file, kind, **options)
    return encoded_uri(file.getvalue(), kind)


def encoded_uri(data: bytes, kind: str) -> str:
    """Encodes the bytes of an image file as a data URI; `kind` is the subtype of its MIME type, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
