"""What the training loop logged, read back from its TensorBoard files."""

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

# A panel of the curves and what it shows; a run without mutual learning has only some of them.
_PANELS = {
    "loss": ("loss", "classification"),
    "mutual-learning terms": ("ciml", "mfml", "apml", "self_training"),
    "parts of ciml and mfml": ("equivariance", "prototype_similarity", "alignment", "information_context"),
    "parts of apml": ("affinity", "information_affinity_label", "information_affinity_pair"),
    "share of pixels with a pseudo label": ("labelled_foreground", "labelled_background"),
    "effective rank of the context": ("context_rank",),
    "on validation images": tuple(f"validation/{name}" for name in SHARES),
    "gradient norm": ("gradient_norm", "gradient_norm/backbone", "gradient_norm/heads"),
}
_POINTS = 300  # most points of a curve: more, and neighbours are averaged
_INK = "#123456"  # replaced by the page's own text colour, light or dark


def read_events(workdir: Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, bytes]]]:
    """Scalars and pictures of a run.

    Where a run was resumed, the later file counts. A file that ends in the middle of an event, such as that of a
    run in progress, is read up to there.

    Args:
      workdir: the work directory; its TensorBoard files are `events.out.tfevents.TIME.HOST`.

    Returns:
      Tag to step to value, and tag to step to a PNG file's bytes; steps in order.
    """
    scalars, pictures = {}, {}
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda path: int(path.name.split(".")[3])):
        for event in _events(path.read_bytes()):
            for value in event.summary.value:
                if value.HasField("image"):
                    image = value.image.encoded_image_string
                    pictures.setdefault(value.tag, {})[event.step] = image
                elif value.HasField("simple_value"):
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return _in_order(scalars), _in_order(pictures)


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
    """The TensorBoard tag of a metric of the train step, or of a name that is one."""
    return name if "/" in name else f"train/{name}"


def _in_order(values):
    return {tag: dict(sorted(steps.items())) for tag, steps in values.items()}


def curves(scalars: Mapping[str, Mapping[int, float]], mutual_from: int | None = None) -> list[str]:
    """The training curves as inline SVGs in the page's text colour, one for each panel.

    Args:
      scalars: tag to step to value, from `read_events`.
      mutual_from: step after which the mutual-learning terms take part, marked by a dotted line; None for never.

    Returns:
      The texts of `<svg>` elements.
    """
    panels = {title: [name for name in names if tag_of(name) in scalars] for title, names in _PANELS.items()}
    return [_panel(title, names, scalars, mutual_from) for title, names in panels.items() if names]


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
    # Without the description of the file, which names addresses.
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _thinned(values):
    """Steps and values of a curve of at most `_POINTS` points."""
    parts = min(len(values), _POINTS)
    steps = np.array_split(np.array(list(values)), parts)
    numbers = np.array_split(np.array(list(values.values())), parts)
    return [part[-1] for part in steps], [part.mean() for part in numbers]
