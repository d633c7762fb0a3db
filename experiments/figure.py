"""Draws a figure of images in the report of a run's last evaluation, with their maps and masks.

    python -m experiments.figure --workdir=runs/demo --ids=ID,ID,... --out=docs/digits.png

Without --ids, it shows the first images.
"""

import argparse
import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from rml_jax import visualize
from rml_jax.utils.files import atomic_write

_ROWS = 3
_COLUMNS = ("image", "CAM", "pseudo label", "prediction: crf", "ground truth")


def main():
    parser = argparse.ArgumentParser("python -m experiments.figure")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--ids", default="", help="images among those that the report shows")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    evaluation = json.loads((chosen.workdir / "eval" / "report.json").read_text(encoding="utf-8"))
    shown = {scene["id"]: scene for part in evaluation["parts"].values() for scene in part}
    ids = chosen.ids.split(",") if chosen.ids else list(shown)[:_ROWS]
    scenes = [shown[name] for name in ids]
    rows = [[_decode(scene["pictures"][column]) for column in _COLUMNS] for scene in scenes]
    names = evaluation["class_names"]
    labels = [1 + names.index(name) for name in sorted({tag for scene in scenes for tag in scene["tags"]})]
    scenes = visualize.grid(rows, [_COLUMNS, *[[""] * len(_COLUMNS)] * (len(rows) - 1)])
    legend = visualize.legend(
        [names[label - 1] for label in labels], visualize.palette()[labels], width=scenes.shape[1]
    )
    file = io.BytesIO()
    Image.fromarray(visualize.grid([[scenes], [legend]], min_side=1)).save(file, "PNG", optimize=True)
    atomic_write(chosen.out, file.getvalue())
    print(f"{chosen.out}: {len(file.getvalue()) / 1024:.0f} KiB")


def _decode(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


if __name__ == "__main__":
    main()
