"""The records that the teacher writes and the student reads: a view of a photograph with the teacher's outputs."""

import io

import numpy as np
from PIL import Image

_QUALITY = 95


def encode_image(image):
    """Returns an image, uint8 [S, S, 3], as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def decode_image(data):
    """Returns the image of `encode_image`, uint8 [S, S, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def encode(image, logits, features):
    """Returns a record.

    Args:
      image: bytes of `encode_image`.
      logits: float [1000], the teacher's class scores before softmax.
      features: float [h, w, D], its feature map.
    """
    stream = io.BytesIO()
    np.savez(
        stream,
        image=np.frombuffer(image, np.uint8),
        logits=logits.astype(np.float16),
        features=features.astype(np.float16),
    )
    return stream.getvalue()


def decode(record):
    """Returns a record's `image` (uint8 [S, S, 3]), `logits` (float32 [1000]) and `features` (float32 [h, w, D])."""
    with np.load(io.BytesIO(record)) as arrays:
        return {
            "image": decode_image(arrays["image"].tobytes()),
            "logits": arrays["logits"].astype(np.float32),
            "features": arrays["features"].astype(np.float32),
        }
