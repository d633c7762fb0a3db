"""A section of a page on which the background score is chosen by eye.

Each image carries its CAMs, in 8 bits at the resolution of the network's grid. The browser enlarges them (bilinear)
and thresholds them at the slider's score, so that the page needs no server.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

import numpy as np
from PIL import Image

from rml_jax import visualize
from rml_jax.ops.grid import ceil_div
from rml_jax.report.samples import data_uri

MAX_IMAGES = 200
"""Images that one page shows at most, so that it stays small enough to open."""
_MAX_SIDE = 320  # of an image on the page, pixels


def explorer_scene(
    name: str, image: np.ndarray, class_cams: Mapping[int, np.ndarray], cell: float
) -> dict[str, object]:
    """Returns what a page stores of one image, as JSON-like values.

    Args:
      name: shown above the image.
      image: uint8 [H, W, 3].
      class_cams: label 1..C -> its CAM, float [H, W] in 0..1.
      cell: pixels of the image per cell of the stored CAMs (`cell_size`).

    Returns:
      Dict of `name`; `image`, a data URI; `size`, [height, width] on the page; `grid`, [rows, columns] of the stored
      CAMs; `labels`; `cams`, base64 of uint8 [K, rows, columns], CAM times 255.
    """
    height, width = image.shape[:2]
    factor = min(1.0, _MAX_SIDE / max(height, width))
    size = [max(1, round(side * factor)) for side in (height, width)]
    grid = [min(ceil_div(side, max(1, round(cell))), side) for side in (height, width)]
    maps = [quantise(cam, grid) for cam in class_cams.values()]
    stored = np.stack(maps) if maps else np.zeros((0, *grid), np.uint8)
    return {
        "name": name,
        "image": data_uri(np.asarray(Image.fromarray(image).resize(size[::-1])), _MAX_SIDE),
        "size": size,
        "grid": grid,
        "labels": [int(label) for label in class_cams],
        "cams": base64.b64encode(stored.tobytes()).decode(),
    }


def cell_size(stride: int, scales: Sequence[float]) -> float:
    """Returns the pixels per cell of the finest grid that a multi-scale CAM is made from."""
    return stride / max(1.0, *scales)


def quantise(cam: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Reduces a CAM to a grid and to 8 bits.

    Args:
      cam: float [H, W] in 0..1.
      grid: (rows, columns), at most H and W.

    Returns:
      uint8 [rows, columns], the CAM at the cells' centres, bilinear, times 255.
    """
    rows, columns = (
        (np.arange(cells) + 0.5) * side / cells - 0.5 for cells, side in zip(grid, cam.shape, strict=True)
    )
    values = _interpolate(_interpolate(np.asarray(cam, np.float64), rows, axis=0), columns, axis=1)
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _interpolate(values, places, axis):
    below = np.floor(places).astype(int)
    share = np.expand_dims(places - below, 1 - axis)
    last = values.shape[axis] - 1
    first, second = (values.take(np.clip(index, 0, last), axis) for index in (below, below + 1))
    return first * (1 - share) + second * share


def explorer_section(
    scenes: Sequence[Mapping], class_names: Sequence[str], background: float, command: str
) -> str:
    """Returns the HTML of the section, with its style and its program.

    Args:
      scenes: of `explorer_scene`.
      class_names: the C names.
      background: the score that the slider begins with.
      command: template of the flags that choose a score, in which SCORE stands for it.
    """
    used = sorted({label for scene in scenes for label in scene["labels"]})
    colors = visualize.palette()
    switches = "\n".join(
        f'<label><input type="checkbox" class="explorer-class" value="{label}" checked> '
        f'<span class="swatch" style="background: rgb{tuple(colors[label].tolist())}"></span>'
        f"{escape(class_names[label - 1])}</label>"
        for label in used
    )
    data = {
        "scenes": list(scenes),
        "names": {label: class_names[label - 1] for label in used},
        "colors": {label: colors[label].tolist() for label in used},
        "heat": visualize.HEAT_COLORS.tolist(),
        "command": command,
    }
    # "<" would end the element in the middle of a text.
    return Template(_read("explorer.html")).substitute(
        switches=switches,
        background=f"{background:g}",
        data=json.dumps(data).replace("<", "\\u003c"),
        program=_read("explorer.js"),
    )


def _read(name):
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
