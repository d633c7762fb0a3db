"""Reads the TensorBoard files of a run and draws its training curves."""

import io
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event

from rml_jax.evaluation.localization import SHARES
from rml_jax.losses import TERMS

_POINTS = 300  # most points of a curve; of more, neighbours are averaged
_INK = "#123456"  # replaced by the page's own text colour, light or dark


def read_events(workdir: Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, bytes]]]:
    """Reads the scalars and images of a run.

    Where a run was resumed, the later file counts. A file that ends in the middle of an event, such as that of a run
    in progress, is read up to there.

    Args:
      workdir: the work directory; its TensorBoard files are `events.out.tfevents.TIME.HOST`.

    Returns:
      Tag to step to value, and tag to step to a PNG file's bytes; steps in order.
    """
    scalars, images = {}, {}
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: int(path.name.split(".")[3])):
        for event in _events(path.read_bytes()):
            for value in event.summary.value:
                if value.HasField("image"):
                    png = value.image.encoded_image_string
                    images.setdefault(value.tag, {})[event.step] = png
                elif value.HasField("simple_value"):
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return _in_order(scalars), _in_order(images)


def _events(data):
    # TFRecord: the length in 8 bytes, 4 of its checksum, the content, 4 of its checksum.
    begin = 0
    while begin + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, begin)
        end = begin + 12 + length
        if end + 4 > len(data):
            return
        yield Event.FromString(data[begin + 12 : end])
        begin = end + 4


def tag_of(name):
    """Returns the TensorBoard tag of a metric of the train step; a name with a slash is a tag already."""
    return name if "/" in name else f"train/{name}"


def _in_order(values):
    return {tag: dict(sorted(steps.items())) for tag, steps in values.items()}


def panels() -> dict[str, tuple[str, ...]]:
    """Returns title -> names of the metrics that it shows, for each panel of the curves.

    The losses are those of `rml_jax.losses.TERMS`.
    """
    classification, *mutual = TERMS
    shown = {"loss": ("loss", classification), "mutual-learning terms": tuple(mutual)}
    for term in TERMS.values():
        shown |= term.panels
    return shown | {
        "fraction of pixels with a pseudo label": ("labelled_foreground", "labelled_background"),
        "on validation images": tuple(f"validation/{name}" for name in SHARES),
        "gradient norm": ("gradient_norm", "gradient_norm/backbone", "gradient_norm/heads"),
    }


def curves(scalars: Mapping[str, Mapping[int, float]], mutual_from: int | None = None) -> list[str]:
    """Draws the training curves as inline SVGs in the page's text colour, one for each panel.

    A panel is left out where the run logged none of its metrics.

    Args:
      scalars: tag to step to value, from `read_events`.
      mutual_from: step after which the mutual-learning terms take part, marked by a dotted line; None for never.

    Returns:
      The texts of `<svg>` elements.
    """
    logged = {title: [name for name in names if tag_of(name) in scalars] for title, names in panels().items()}
    return [_panel(title, names, scalars, mutual_from) for title, names in logged.items() if names]


def _panel(title, names, scalars, mutual_from):
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with rc_context({"svg.fonttype": "none", "font.size": 10} | dict.fromkeys(inks, _INK)):
        figure = Figure(figsize=(5.5, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for name in names:
            label = name.rpartition("/")[2].replace("_", " ")
            values = scalars[tag_of(name)]
            marker = "." if len(values) < 20 else None  # a curve of one point is no line
            axes.plot(*_thinned(values), label=label, linewidth=1.5, marker=marker)
        if mutual_from is not None:
            axes.axvline(mutual_from, color=_INK, linestyle=":", linewidth=1)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # The metadata holds URLs, and the page refers to nothing outside of it.
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _thinned(values):
    """Steps and values of a curve of at most `_POINTS` points."""
    parts = min(len(values), _POINTS)
    steps = np.array_split(np.array(list(values)), parts)
    numbers = np.array_split(np.array(list(values.values())), parts)
    return [part[-1] for part in steps], [part.mean() for part in numbers]
