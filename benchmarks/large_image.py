"""Memory and time of predicting one large image in tiles.

    python -m benchmarks.large_image [--json FILE] [--size 8000,10000] [--tags 3]

Predicts a mosaic of scikit-learn's two photographs as `rml-jax predict` does, from a JPEG file to mask, overlay and
record. The network has only a few thousand parameters, so that the tiling is measured; a real network adds the memory
of one batch of tiles, independent of the image's size. Memory is the process's peak resident size, including JAX and
the writing of the mosaic.
"""

import functools
import tempfile
from pathlib import Path

from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import measure
from configs import voc
from rml_jax.inference.outputs import OutputFolder
from rml_jax.inference.predictor import as_image, predictor_of
from rml_jax.models import BACKBONES, MiTConfig, build
from rml_jax.utils.compilation_cache import use_compilation_cache
from tests.references.networks import random_network

_REDUCED = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 2), "num_heads": (1, 1, 2, 2)}


def main():
    chosen, result = measure.start(size="8000,10000", tags=3)
    use_compilation_cache()
    size = tuple(map(int, chosen.size.split(",")))
    BACKBONES["reduced"] = functools.partial(MiTConfig, **_REDUCED)
    config = voc.get_config()
    config.model.variant = "reduced"
    _, params = nnx.split(random_network(lambda: build.build_model(config, seed=0)))
    predictor = predictor_of(config, params, stage="cam", scales=(1.0,))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_mosaic(folder / "large.jpg", size)
        output = OutputFolder(folder, predictor.classes, (), with_cams=False)
        begin = measure.Seconds.now()
        image = as_image(folder / "large.jpg")
        images = [("large", image, predictor.classes[: chosen.tags])]
        ((_, prediction),) = predictor.stream(images, with_maps=False)
        predicted = measure.Seconds.now()
        output.save("large", "large.jpg", image, prediction)
        parts = {"read and predict": predicted.since(begin), "write": measure.Seconds.now().since(predicted)}
    result["settings"] |= {"network": _REDUCED, "canvas": (512, 512)}
    result["tiles"] = prediction.tiles
    result["seconds"] = {name: seconds._asdict() for name, seconds in parts.items()}
    result["peak_bytes"] = measure.peak_resident_bytes()
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
