"""Memory and time of predicting one large picture in tiles.

    python -m benchmarks.large_picture [--json FILE] [--size 8000,10000] [--tags 3]

A mosaic of scikit-learn's two photographs, from a JPEG file to mask, overlay and record, as `rml-jax predict`
does it. The network is reduced to a few thousand parameters, so that what is measured is the tiling: a real network
adds what it needs for one batch of tiles, whatever the picture's size. Memory is the process's peak of resident
pages, JAX and the writing of the mosaic included.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import measure
from configs import voc
from rml_jax.inference.outputs import OutputFolder
from rml_jax.inference.predictor import as_image, predictor_of
from rml_jax.models import build, mit
from rml_jax.utils.compilation_cache import use_compilation_cache
from tests.references.networks import random_network

_REDUCED = {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 2), "heads": (1, 1, 2, 2)}


def main():
    parser = argparse.ArgumentParser("python -m benchmarks.large_picture")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--size", default="8000,10000", help="height,width")
    parser.add_argument("--tags", type=int, default=3, help="classes that the mask may hold")
    chosen = parser.parse_args()
    use_compilation_cache()
    size = tuple(map(int, chosen.size.split(",")))
    mit.VARIANTS["reduced"] = _REDUCED
    config = voc.get_config()
    config.model.variant = "reduced"
    _, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    predictor = predictor_of(config, params, stage="cam", scales=(1.0,))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_mosaic(folder / "large.jpg", size)
        output = OutputFolder(folder, predictor.classes, (), with_cams=False, with_rle=False)
        begin = time.perf_counter()
        image = as_image(folder / "large.jpg")
        pictures = [("large", image, predictor.classes[: chosen.tags])]
        ((_, prediction),) = predictor.stream(pictures, with_maps=False)
        predicted = time.perf_counter()
        output.save("large", "large.jpg", image, prediction)
        written = time.perf_counter()
    result = {
        "environment": measure.environment(),
        "settings": {"size": size, "tags": chosen.tags, "network": _REDUCED, "canvas": (512, 512)},
        "tiles": prediction.tiles,
        "seconds": {"read and predict": predicted - begin, "write": written - predicted},
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    measure.write_json(result, chosen.json)


def _write_mosaic(path, size):
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    mosaic = Image.new("RGB", size[::-1])
    for row, top in enumerate(range(0, size[0], 427)):
        for column, left in enumerate(range(0, size[1], 640)):
            mosaic.paste(photographs[(row + column) % 2], (left, top))
    mosaic.save(path, quality=90)


if __name__ == "__main__":
    main()
