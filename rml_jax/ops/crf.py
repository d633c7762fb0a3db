"""Mean field of the dense CRF of Kraehenbuehl and Koltun (2011), on a permutohedral lattice built on the device.

marginals = dense_crf(image, probs, settings="afa")                                 # one picture, any size
marginals = dense_crf_padded(image, probs, height, width, "afa")                    # in jitted code
marginals, present = dense_crf_batch(images, probs, sizes, slots=4, settings="afa")  # in jitted code
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

CLIP = 1e-5
"""Probabilities are clipped from below here; a class that nowhere exceeds it is not present."""

_ABSENT_UNARY = 100.0
_CANVAS_STEP = 64
_TABLE_CELLS = 2**25


@dataclasses.dataclass(frozen=True)
class CRFSettings:
    """Standard deviations (pixels; colours of 0..255) and weights of the two kernels."""

    spatial_sxy: float
    spatial_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_weight: float
    iterations: int = 10


SETTINGS = {
    "afa": CRFSettings(3, 3, 64, 5, 4),
    "toco": CRFSettings(1, 1, 121, 5, 4),
    "excel": CRFSettings(1, 3, 67, 3, 4),
    "seam": CRFSettings(3, 3, 80, 13, 10),
}


def dense_crf(image, probs, settings="afa"):
    """Refines class probabilities along the edges of one picture.

    Args:
      image: uint8 [H, W, 3].
      probs: float [H, W, C], each pixel's probabilities. A class that exceeds CLIP nowhere takes no part.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      NumPy float32 [H, W, C], the marginals; 0 for classes that are not present.
    """
    image, probs = np.asarray(image), np.asarray(probs, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 [H, W, 3]")
    if probs.ndim != 3 or probs.shape[:2] != image.shape[:2]:
        raise ValueError(f"probs are {probs.shape}, expected [{image.shape[0]}, {image.shape[1]}, C]")
    present = np.flatnonzero(probs.max(axis=(0, 1)) > CLIP)
    if present.size == 0:
        raise ValueError(f"probs hold no class that exceeds {CLIP} anywhere")
    height, width = image.shape[:2]
    below, right = -height % _CANVAS_STEP, -width % _CANVAS_STEP
    padding = ((0, below), (0, right), (0, 0))
    refined = _jitted_padded(
        np.pad(image, padding), np.pad(probs[:, :, present], padding), height, width, get_settings(settings)
    )
    marginals = np.zeros(probs.shape, np.float32)
    marginals[:, :, present] = refined[:height, :width]
    return marginals


def get_settings(settings):
    """CRFSettings by name, or those given; ValueError for an unknown name."""
    if isinstance(settings, CRFSettings):
        return settings
    if settings not in SETTINGS:
        raise ValueError(f"CRF settings {settings!r}, expected one of {', '.join(SETTINGS)} or CRFSettings")
    return SETTINGS[settings]


def dense_crf_batch(images, probs, sizes, *, slots, settings="afa"):
    """dense_crf of padded pictures, for jitted code; one picture after the other.

    Args:
      images: uint8 [B, H, W, 3], each picture in the upper left corner of the canvas.
      probs: float [B, H, W, C], beyond the pictures anything finite.
      sizes: integers [B, 2], true height and width.
      slots: how many classes to compute with, at most C: those with the greatest probabilities.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      float32 [B, H, W, C], 0 for classes that take no part and beyond the pictures; int32 [B], how many classes are
      present. Where that exceeds `slots`, classes were left out: call again with more.
    """

    def one(inputs):
        image, prob, size = inputs
        inside = _inside(image.shape, size[0], size[1])
        peaks = jnp.where(inside[:, :, None], prob, 0).max(axis=(0, 1))
        present = jnp.sum(peaks > CLIP)
        # In the classes' own order, so that spare slots change no sum.
        chosen = jnp.sort(jax.lax.top_k(peaks, slots)[1])
        marginals = dense_crf_padded(image, prob[:, :, chosen], size[0], size[1], settings)
        return jnp.zeros(prob.shape, jnp.float32).at[:, :, chosen].set(marginals), present

    return jax.lax.map(one, (images, probs, sizes))


def dense_crf_padded(image, probs, height, width, settings="afa"):
    """dense_crf of one padded picture, for jitted code. Not for vmap (see dense_crf_batch).

    Args:
      image: uint8 [H, W, 3], the picture in the upper left corner of the canvas.
      probs: float [H, W, C], beyond the picture anything finite.
      height, width: integers, may be traced: the picture's true size.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      float32 [H, W, C], 0 for classes that are not present and beyond the picture.
    """
    settings = get_settings(settings)
    canvas = image.shape[:2]
    inside = _inside(image.shape, height, width).reshape(-1)
    unary = _unary(probs.reshape(inside.size, -1), inside)
    positions = [(np.arange(s), i) for s, i in zip(canvas[::-1], _row_and_column(canvas)[::-1], strict=True)]
    colours = [(np.arange(256), image[:, :, c].reshape(-1)) for c in range(3)]
    spatial = [(v, i, settings.spatial_sxy) for v, i in positions]
    bilateral = [(v, i, settings.bilateral_sxy) for v, i in positions]
    bilateral += [(v, i, settings.bilateral_srgb) for v, i in colours]
    s = _build(spatial, inside)
    b = _build(bilateral, inside)

    def infer(capacity_s, capacity_b):
        ls, lb = _finish(s, capacity_s), _finish(b, capacity_b)
        fs = _kernel(ls, settings.spatial_weight, inside)
        fb = _kernel(lb, settings.bilateral_weight, inside)

        def step(_, q):
            return jax.nn.softmax(fs(q) + fb(q) - unary, axis=-1)

        return jax.lax.fori_loop(0, settings.iterations, step, jax.nn.softmax(-unary, axis=-1))

    most = min(inside.size * 6, b["cells"])
    tiers = sorted(
        {min(most, t) for t in (inside.size // 3, inside.size * 2 // 3, inside.size * 4 // 3, most)}
    )
    tier = jnp.searchsorted(jnp.asarray(tiers), b["count"])
    capacity_s = min(inside.size * 3, s["cells"])
    q = jax.lax.switch(tier, [functools.partial(infer, capacity_s, t) for t in tiers])
    return jnp.where(inside[:, None], q, 0).reshape(probs.shape)


def _inside(shape, height, width):
    return (jnp.arange(shape[0]) < height)[:, None] & (jnp.arange(shape[1]) < width)


def _row_and_column(canvas):
    return [jnp.asarray(i, jnp.int32).reshape(-1) for i in np.indices(canvas)]


def _unary(probs, inside):
    probs = jnp.where(inside[:, None], probs.astype(jnp.float32), 0)
    present = probs.max(axis=0) > CLIP
    return jnp.where(present, -jnp.log(jnp.clip(probs, CLIP, 1)), _ABSENT_UNARY)


def _build(features, inside):
    d = len(features)
    degree = d + 1
    inv = np.float32(math.sqrt(2 / 3) * degree)
    steps, times, bins = [], [], []
    for j, (values, index, deviation) in enumerate(features, start=1):
        scale = np.float32(1 / math.sqrt(j * (j + 1)) * float(inv))
        table = values.astype(np.float32) / np.float32(deviation) * scale
        steps.append(jnp.asarray(table)[index])
        times.append(jnp.asarray(np.float32(j) * table)[index])
        bins.append(1 + math.ceil(j * float(table[-1]) / degree + j / (j + 1) + 1e-3))
    cells = math.prod(bins) * degree
    if cells >= 2**31:
        raise ValueError(
            f"{cells} lattice cells, at most {2**31 - 1} can be addressed: larger deviations are needed"
        )
    total = jnp.zeros(inside.shape, jnp.float32)
    elevated = [None] * degree
    for j in range(d, 0, -1):
        elevated[j] = total - times[j - 1]
        total = total + steps[j - 1]
    elevated[0] = total
    nearest = [jnp.round(e * np.float32(1 / degree)) for e in elevated]
    residual = [e - n * degree for e, n in zip(elevated, nearest, strict=True)]
    nearest = [n.astype(jnp.int32) for n in nearest]
    rank = [sum(nearest)] * degree
    for i in range(degree):
        for j in range(i + 1, degree):
            below = (residual[i] < residual[j]).astype(jnp.int32)
            rank[i] = rank[i] + below
            rank[j] = rank[j] + 1 - below
    wrap = [(r < 0).astype(jnp.int32) - (r >= degree).astype(jnp.int32) for r in rank]
    rank = [r + w * degree for r, w in zip(rank, wrap, strict=True)]
    nearest = [n + w for n, w in zip(nearest, wrap, strict=True)]
    fraction = [
        (e - (n * degree).astype(jnp.float32)) / degree for e, n in zip(elevated, nearest, strict=True)
    ]
    ordered = [
        sum(jnp.where(r == m, f, 0) for r, f in zip(rank, fraction, strict=True)) for m in range(degree)
    ]
    weights = [ordered[d] + (1 - ordered[0])]
    weights += [ordered[d - p] - ordered[d - p + 1] for p in range(1, degree)]
    base = [(i + 1) * nearest[i] + sum(nearest[i + 1 :]) for i in range(1, degree)]
    addresses = []
    for r in range(degree):
        moved = [(rank[i] > d - r).astype(jnp.int32) for i in range(degree)]
        places = [base[i - 1] + sum(moved[:i]) - i * moved[i] for i in range(1, degree)]
        addresses.append(jnp.where(inside, _address(places, bins, r)[0], cells))
    addresses = jnp.stack(addresses)
    entries = jnp.arange(addresses.size, dtype=jnp.int32)
    first = _find(addresses.reshape(-1), addresses.reshape(-1), cells)
    new = first == entries
    ids = jnp.cumsum(new) - 1
    return {
        "bins": bins,
        "cells": cells,
        "count": ids[-1] + 1,
        "weights": jnp.where(inside, jnp.stack(weights), 0),
        "vertices": jnp.where(inside, ids.at[first.reshape(degree, -1)].get(mode="clip"), -1),
        "addresses": addresses.reshape(-1),
        "slots": jnp.where(new, ids, entries.size),
    }


def _address(places, bins, remainder):
    address, known = 0, True
    for i, (place, n) in enumerate(zip(places, bins, strict=True), start=1):
        digit = place // (i + 1) + (n - 1)
        known = known & (digit >= 0) & (digit < n)
        address = address * n + digit
    return address * (len(bins) + 1) + remainder, known


def _places(addresses, bins):
    d = len(bins)
    digits, rest = [], addresses
    remainder, rest = rest % (d + 1), rest // (d + 1)
    for n in reversed(bins):
        digits.append(rest % n - (n - 1))
        rest = rest // n
    places, above = [], remainder
    for i, a in zip(range(d, 0, -1), digits, strict=True):
        places.append((i + 1) * a + above % (i + 1))
        above = above + a - above // (i + 1)
    return places[::-1]


def _find(keys, queries, cells):
    size = min(cells, _TABLE_CELLS)
    numbers = jnp.arange(keys.size, dtype=jnp.int32)

    def look(part, found):
        low = part * size
        here = (keys >= low) & (keys < low + size) & (keys < cells)
        table = (
            jnp.full(size, keys.size, jnp.int32)
            .at[jnp.where(here, keys - low, size)]
            .min(numbers, mode="drop")
        )
        asked = (queries >= low) & (queries < low + size) & (queries < cells)
        return jnp.where(asked, table.at[queries - low].get(mode="clip"), found)

    found = jnp.full(queries.shape, keys.size, jnp.int32)
    return jax.lax.fori_loop(0, -(-cells // size), look, found)


def _finish(lattice, capacity):
    bins, cells = lattice["bins"], lattice["cells"]
    d = len(bins)
    vertices = jnp.where(lattice["vertices"] < 0, capacity, lattice["vertices"])
    keys = jnp.full(capacity, cells, jnp.int32).at[lattice["slots"]].set(lattice["addresses"], mode="drop")
    places = _places(keys, bins)
    queries = []
    for j in range(d + 1):
        for sign in (1, -1):
            moved = [p + sign * (i if i == j else -1 if j < i else 0) for i, p in enumerate(places, start=1)]
            address, known = _address(moved, bins, moved[-1] % (d + 1))
            queries.append(jnp.where(known & (keys < cells), address, cells))
    neighbours = _find(keys, jnp.stack(queries), cells).reshape(d + 1, 2, capacity)
    neighbours = jnp.pad(neighbours, ((0, 0), (0, 0), (0, 1)), constant_values=capacity)
    return {
        "vertices": vertices,
        "weights": lattice["weights"],
        "neighbours": neighbours,
        "capacity": capacity,
    }


def _filter(lattice, splat_weights, slice_weights, q):
    vertices, capacity = lattice["vertices"], lattice["capacity"]
    spread = (splat_weights[:, :, None] * q).reshape(-1, q.shape[1])
    values = jnp.zeros((capacity + 1, q.shape[1]), jnp.float32).at[vertices.reshape(-1)].add(spread)

    def blur(values, pair):
        return values + 0.5 * (values[pair[0]] + values[pair[1]]), None

    values, _ = jax.lax.scan(blur, values, lattice["neighbours"])

    def gather(total, inputs):
        vertex, weight = inputs
        return total + weight[:, None] * values[vertex], None

    return jax.lax.scan(gather, jnp.zeros(q.shape, jnp.float32), (vertices, slice_weights))[0]


def _kernel(lattice, weight, inside):
    w = lattice["weights"]
    mass = _filter(lattice, w, w, jnp.ones((inside.size, 1), jnp.float32))[:, 0]
    n = jnp.where(inside, 1 / jnp.sqrt(mass + 1e-20), 0)
    return lambda q: _filter(lattice, w * n, w * (n * weight), q)


_jitted_padded = jax.jit(dense_crf_padded, static_argnames="settings")
