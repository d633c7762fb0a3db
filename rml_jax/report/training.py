"""Training curves from the TensorBoard files of a run."""

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
from rml_jax.training.runlog import tag_of

_POINTS = 300  # greatest number of points of a curve; longer ones are averaged over neighbours
_INK = "#123456"  # placeholder that is replaced by the page's text colour, light or dark


def read_events(workdir: Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, bytes]]]:
    """Reads the scalars and images of a run.

    If a run was resumed, the later file takes precedence. A file that ends in the middle of an event, such as that of
    a run in progress, is read up to that event.

    Args:
      workdir: the work directory; its TensorBoard files are `events.out.tfevents.TIME.HOST`.

    Returns:
      Tag -> step -> value, and tag -> step -> bytes of a PNG file; steps in order.
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
    # TFRecord: 8 bytes of the length, 4 of its checksum, the content, 4 of its checksum.
    begin = 0
    while begin + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, begin)
        end = begin + 12 + length
        if end + 4 > len(data):
            return
        yield Event.FromString(data[begin + 12 : end])
        begin = end + 4


def _in_order(values):
    return {tag: dict(sorted(steps.items())) for tag, steps in values.items()}


def panels() -> dict[str, tuple[str, ...]]:
    """Returns the title of each panel of the curves -> names of the metrics in it.

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

    A panel is left out if the run logged none of its metrics.

    Args:
      scalars: tag -> step -> value, from `read_events`.
      mutual_from: step after which the mutual-learning terms are trained, marked by a dotted line; None for never.

    Returns:
      `<svg>` elements as strings.
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
            marker = "." if len(values) < 20 else None  # shows curves of a single point
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
    # The metadata has URLs, but the page is self-contained.
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _thinned(values):
    """Reduces a curve to at most `_POINTS` points: their steps and mean values."""
    parts = min(len(values), _POINTS)
    steps = np.array_split(np.array(list(values)), parts)
    numbers = np.array_split(np.array(list(values.values())), parts)
    return [part[-1] for part in steps], [part.mean() for part in numbers]
