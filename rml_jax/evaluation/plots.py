"""Figures of an evaluation as PNG files, by matplotlib."""

import io

import numpy as np
from matplotlib.figure import Figure

_DPI = 100  # pixels per inch; figure sizes are in inches


def confusion_figure(matrix, names, title):
    """Draws a confusion matrix, each row in percent of the annotated class.

    Args:
      matrix: integers [K, K], rows the annotated class, columns the predicted one.
      names: the K class names.
      title: of the figure.

    Returns:
      bytes of a PNG. Cells are labelled with their values for up to 25 classes.
    """
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.42 * min(len(names), 40)
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=_DPI)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    size = 9 if len(names) <= 40 else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="annotated", title=title)
    figure.colorbar(image, label="% of the annotated pixels of the class", shrink=0.7)
    if len(names) <= 25:
        for row, column in np.ndindex(share.shape):
            value = share[row, column]
            colour = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return _png(figure)


def sweep_figure(sweep):
    """Draws what background scores are chosen by as a function of the score.

    Args:
      sweep: dict with `split`, `images`, `grid`, `criterion` and, under the criterion's name, protocol -> stage ->
        list of its values.

    Returns:
      bytes of a PNG, one panel per protocol.
    """
    curves = sweep[sweep["criterion"]]
    figure = Figure(figsize=(5 * len(curves), 3.6), layout="constrained", dpi=_DPI)
    panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
    for axes, (protocol, stages) in zip(panels, curves.items(), strict=True):
        for stage, scores in stages.items():
            (line,) = axes.plot(sweep["grid"], 100 * np.array(scores), label=stage)
            best = int(np.argmax(scores))
            axes.plot(sweep["grid"][best], 100 * scores[best], "o", color=line.get_color())
        axes.set(
            xlabel="background score", title=f"{protocol} tags, {sweep['split']}, {sweep['images']} images"
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mIoU, %" if sweep["criterion"] == "miou" else "contrast with the image, %")
    panels[0].legend()
    return _png(figure)


def _png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
