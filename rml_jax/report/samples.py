"""What a report shows of single images."""

import base64
import io

import numpy as np
from PIL import Image

from rml_jax.evaluation.samples import Sample, sample_images

# Widths of a picture on the page. Wider ones are stored reduced, or the page would grow by megabytes per
# photograph; narrower ones are enlarged by the browser, each pixel to a square.
_MAX_WIDTH = 220
_MIN_WIDTH = 128


def scene(sample: Sample) -> dict:
    """All that a page needs of a sample, as JSON-like values.

    Args:
      sample: all its arrays have the same H and W.

    Returns:
      `id`, `tags` and `predicted_tags`, as in the sample; `width`, at which the pictures are shown, in pixels;
      `pixelated`, whether the browser enlarges them; `pictures`, caption to data URI.

    Raises:
      ValueError: the sample's arrays differ in size.
    """
    width = sample.image.shape[1]
    return {
        "id": sample.id,
        "tags": list(sample.tags),
        "predicted_tags": list(sample.predicted_tags),
        "width": min(max(width, _MIN_WIDTH), _MAX_WIDTH),
        "pixelated": width < _MIN_WIDTH,
        "pictures": {
            caption: data_uri(picture, _MAX_WIDTH) for caption, picture in sample_images(sample).items()
        },
    }


def data_uri(picture: np.ndarray, max_width: int) -> str:
    """A picture as a URI that holds it: exact where it is tiny, with WebP's small losses otherwise.

    Args:
      picture: uint8 [H, W, 3].
      max_width: pixels, to which a wider picture is reduced.

    Returns:
      data:image/...;base64,...
    """
    image = Image.fromarray(picture)
    image.thumbnail((max_width, image.height))
    file = io.BytesIO()
    if picture.shape[1] < _MIN_WIDTH:
        return encoded_uri(_saved(image, file, "PNG"), "png")
    return encoded_uri(_saved(image, file, "WEBP", quality=85), "webp")


def encoded_uri(data: bytes, kind: str) -> str:
    """The bytes of an image file as a data URI; `kind` is the subtype of its MIME type, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _saved(image: Image.Image, file: io.BytesIO, kind: str, **options) -> bytes:
    image.save(file, kind, **options)
    return file.getvalue()
