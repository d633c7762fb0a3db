"""Mean-field inference in the dense CRF of Kraehenbuehl and Koltun (2011), on a permutohedral lattice.

marginals = dense_crf(image, probs, settings="afa")                                 # one image, any size
marginals = dense_crf_padded(image, probs, height, width, "afa")                    # in jitted code
marginals, present = dense_crf_batch(images, probs, sizes, slots=4, settings="afa")  # in jitted code
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rml_jax.ops import region

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, UInt8

CLIP = 1e-5
"""Lower bound on probabilities; a class that exceeds it at no pixel counts as absent."""

_ABSENT_UNARY = 100.0
_CANVAS_STEP = 64
_TABLE_CELLS = 2**25  # 128 MiB of int32
_CAPACITIES_PER_PIXEL = (0.3, 0.7, 1.5)
_LEAST_CAPACITY = 2**14


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


def dense_crf(
    image: UInt8[np.ndarray, "h w 3"],
    probs: Float[np.ndarray, "h w c"],
    settings: str | CRFSettings = "afa",
) -> Float[np.ndarray, "h w c"]:
    """Refines class probabilities along the edges of one image (docs/method.md, Inference and evaluation).

    Args:
      image: uint8 [H, W, 3].
      probs: float [H, W, C], each pixel's probabilities. Classes that exceed CLIP at no pixel are left out.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      NumPy float32 [H, W, C], the marginals; 0 for classes that are not present.

    Raises:
      ValueError: other types or shapes, no class present, unknown settings, or deviations too small for the size.
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
    refined = _jitted(
        np.pad(image, padding), np.pad(probs[:, :, present], padding), height, width, _named(settings)
    )
    marginals = np.zeros(probs.shape, np.float32)
    marginals[:, :, present] = refined[:height, :width]
    return marginals


def dense_crf_batch(
    images: UInt8[Array, "b h w 3"],
    probs: Float[Array, "b h w c"],
    sizes: Int[Array, "b 2"],
    *,
    slots: int,
    settings: str | CRFSettings = "afa",
) -> tuple[Float[Array, "b h w c"], Int[Array, " b"]]:
    """Refines padded images as `dense_crf` does, one after the other, for jitted code.

    Args:
      images: uint8 [B, H, W, 3], each image in the top left corner of the canvas.
      probs: float [B, H, W, C], any finite values outside the images.
      sizes: integers [B, 2], true height and width.
      slots: number of classes to compute with, at most C: those with the greatest probabilities.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      float32 [B, H, W, C], 0 for classes that were left out and outside the images; int32 [B], the number of classes
      present. If it exceeds `slots`, classes were left out: call again with more slots.
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


def dense_crf_padded(
    image: UInt8[Array, "h w 3"],
    probs: Float[Array, "h w c"],
    height: int | Int[Array, ""],
    width: int | Int[Array, ""],
    settings: str | CRFSettings = "afa",
) -> Float[Array, "h w c"]:
    """Refines one padded image as `dense_crf` does, for jitted code.

    The amount of work depends on the number of lattice vertices, which selects a branch of a lax.switch. Under vmap
    every branch would run; use lax.map, as dense_crf_batch does.

    Args:
      image: uint8 [H, W, 3], the image in the top left corner of the canvas.
      probs: float [H, W, C], any finite values outside the image.
      height, width: integers, may be traced: the image's true size.
      settings: a name in SETTINGS, or CRFSettings.

    Returns:
      float32 [H, W, C], 0 for absent classes and outside the image.

    Raises:
      ValueError: unknown settings, or deviations so small for this canvas that the lattice has 2^31 cells.
    """
    settings = _named(settings)
    inside = _inside(image.shape, height, width).reshape(-1)
    unary = _unary(probs.reshape(inside.size, -1), inside)
    if unary.shape[1] == 1:
        return inside.astype(jnp.float32).reshape(probs.shape)
    pixels = jnp.arange(inside.size, dtype=jnp.int32)
    x = (np.arange(image.shape[1]), pixels % image.shape[1])
    y = (np.arange(image.shape[0]), pixels // image.shape[1])
    red, green, blue = ((np.arange(256), image[:, :, i].reshape(-1).astype(jnp.int32)) for i in range(3))

    grid, points = _embed([x, y], [settings.spatial_sxy] * 2, inside)
    spatial_kernel = _kernel(_lattice(grid, points, grid.most_vertices), settings.spatial_weight, inside)
    deviations = [settings.bilateral_sxy] * 2 + [settings.bilateral_srgb] * 3
    grid, points = _embed([x, y, red, green, blue], deviations, inside)

    def infer(capacity):
        bilateral_kernel = _kernel(_lattice(grid, points, capacity), settings.bilateral_weight, inside)

        def messages(q):
            return spatial_kernel(q) + bilateral_kernel(q)

        # Marginals sum to 1, so the first class's message is the message of all ones minus those of the others.
        total = messages(jnp.ones((inside.size, 1), jnp.float32))

        def iterate(_, q):
            rest = messages(q[:, 1:])
            first = total - rest.sum(axis=1, keepdims=True)
            return jax.nn.softmax(jnp.concatenate([first, rest], axis=1) - unary, axis=-1)

        return jax.lax.fori_loop(0, settings.iterations, iterate, jax.nn.softmax(-unary, axis=-1))

    # The last capacity holds any image. VOC's photographs have 0.1 to 1.5 vertices per pixel.
    capacities = [int(share * inside.size) for share in _CAPACITIES_PER_PIXEL]
    capacities = [c for c in capacities if _LEAST_CAPACITY <= c < grid.most_vertices] + [grid.most_vertices]
    branch = jnp.searchsorted(np.array(capacities), points.count)
    q = jax.lax.switch(branch, [functools.partial(infer, capacity) for capacity in capacities])
    return jnp.where(inside[:, None], q, 0).reshape(probs.shape)


_jitted = jax.jit(dense_crf_padded, static_argnames="settings")


def _named(settings):
    if isinstance(settings, CRFSettings):
        return settings
    if settings not in SETTINGS:
        raise ValueError(f"CRF settings {settings!r}, expected one of {', '.join(SETTINGS)} or CRFSettings")
    return SETTINGS[settings]


def _inside(shape, height, width):
    """Returns which pixels of the canvas lie in the image, bool [H, W]."""
    return region.inside(jnp.stack([height, width])[None], shape[:2])[0]


def _unary(probs, inside):
    """Computes -log of the probabilities [N, C]; for absent classes a value so large that their marginals stay 0."""
    probs = jnp.where(inside[:, None], probs.astype(jnp.float32), 0)
    present = probs.max(axis=0) > CLIP
    return jnp.where(present, -jnp.log(jnp.clip(probs, CLIP, 1)), _ABSENT_UNARY)


# The lattice A*_d in the d + 1 elevated coordinates, scaled to integers (Adams, Baek and Davis 2010). All
# coordinates k_0..k_d of a vertex leave the same remainder r when divided by D = d + 1, and they sum to 0. With
# q_i = (k_i - r) / D, a vertex is described by its places
#
#     p_i = (i + 1) q_i + q_(i+1) + ... + q_d + r,    i = 1..d,
#
# since those depend on one feature each: a point of feature i has p_i = -i (i + 1) c_i / D, where c_i is the feature
# times its scale. Hence floor(p_i / (i + 1)) cuts the features' box into bins, every bin holds exactly one vertex of
# each remainder, and (bins, r) in mixed radix is a perfect hash: an address in a table hardly larger than the number
# of vertices that could exist. A step along axis j (k_j + d, all others - 1) changes p_i by
# -1 for j < i, i for j = i, 0 for j > i.


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Static bounds: bins per feature, and the greatest number of vertices that a canvas's pixels can use."""

    bins: tuple
    most_vertices: int

    @property
    def degree(self):
        return len(self.bins) + 1

    @property
    def cells(self):
        """Number of addresses, which also serves as the address of a vertex that does not exist."""
        return math.prod(self.bins) * self.degree


class _Points(NamedTuple):
    """Pixels in their simplices: entry (r, n) is the vertex of remainder r around pixel n."""

    weights: jax.Array  # float32 [D, N], barycentric coordinates; 0 outside the image
    addresses: jax.Array  # int32 [D * N]
    # int32 [D * N], the vertex of each entry, numbered by first appearance; -1 outside the image
    numbers: jax.Array
    new: jax.Array  # bool [D * N], whether an entry is the first of its vertex
    count: jax.Array  # int32, number of vertices


class _Lattice(NamedTuple):
    """Vertices are rows 0..capacity-1; row `capacity` stands for all absent vertices and holds 0."""

    weights: jax.Array  # float32 [D, N]
    rows: jax.Array  # int32 [D, N]
    neighbours: jax.Array  # int32 [D, 2, capacity + 1]


def _embed(features, deviations, inside):
    """Embeds pixels in the lattice.

    NumPy computes every floating-point product, once for each value a feature can have, so that no compiler contracts
    or reorders it. A coordinate that is off by one bit can move a pixel on the face of a simplex to the other side,
    where it creates an additional vertex (of weight 0) that changes the blur.

    Args:
      features: d pairs of the values a feature can have (NumPy, ascending from 0) and their index [N] per pixel.
      deviations: d standard deviations.
      inside: bool [N], false for pixels of padding.

    Returns:
      _Grid, _Points.
    """
    d = len(features)
    degree = d + 1
    tables, bins = [], []
    for i, ((values, _), deviation) in enumerate(zip(features, deviations, strict=True), start=1):
        scale = np.float32(float(np.float32(math.sqrt(2 / 3) * degree)) / math.sqrt(i * (i + 1)))
        tables.append(values.astype(np.float32) / np.float32(deviation) * scale)
        # A vertex lies less than i / (i + 1) bins from any point of its simplices.
        bins.append(1 + math.ceil(i * float(tables[-1][-1]) / degree + i / (i + 1) + 1e-3))
    grid = _Grid(tuple(bins), min(math.prod(bins), inside.size) * degree)
    if grid.cells >= 2**31:
        raise ValueError(
            f"standard deviations {deviations} need {grid.cells} lattice cells for {inside.size} pixels, "
            f"at most {2**31 - 1} can be addressed"
        )

    indices = [index for _, index in features]
    once = jnp.stack([jnp.asarray(t)[i] for t, i in zip(tables, indices, strict=True)])
    times = [np.float32(i) * t for i, t in enumerate(tables, start=1)]
    times = jnp.stack([jnp.asarray(t)[i] for t, i in zip(times, indices, strict=True)])
    elevated_0, elevated = jax.lax.scan(
        lambda total, step: (total + step[0], total - step[1]),
        jnp.zeros(inside.shape, jnp.float32),
        (once, times),
        reverse=True,
    )
    elevated = jnp.concatenate([elevated_0[None], elevated])
    nearest, ranks = _nearest(elevated)
    weights = jnp.where(inside, _barycentric(elevated, nearest, ranks), 0)
    addresses = jnp.where(inside, _simplex_addresses(grid, nearest, ranks), grid.cells).reshape(-1)

    first = _find(grid, addresses, addresses)
    new = first == jnp.arange(first.size, dtype=jnp.int32)
    running = _running_count(new)
    numbers = jnp.where(addresses < grid.cells, running.at[first].get(mode="clip") - 1, -1)
    return grid, _Points(weights, addresses, numbers, new, running[-1])


def _nearest(elevated):
    """Returns the vertex of remainder 0 of each point's simplex, in units of D, and the ranks of the rest.

    Both are int32 [D, N].
    """
    degree = elevated.shape[0]
    nearest = jnp.round(elevated * np.float32(1 / degree))
    rest = elevated - nearest * degree

    # Scans and unrolled sums, here and below: when XLA's CPU compiler fuses, it recomputes shared terms for each use,
    # and sums over a leading axis of 6 take ten times as long.
    def rank(_, inputs):
        i, own = inputs
        return None, sum((rest[j] > own) | ((rest[j] == own) & (j < i)) for j in range(degree)).astype(
            jnp.int32
        )

    _, ranks = jax.lax.scan(rank, None, (jnp.arange(degree), rest))
    nearest = nearest.astype(jnp.int32)
    ranks = ranks + sum(nearest[i] for i in range(degree))
    wrap = (ranks < 0).astype(jnp.int32) - (ranks >= degree).astype(jnp.int32)
    return nearest + wrap, ranks + wrap * degree


def _barycentric(elevated, nearest, ranks):
    """Computes the weights of the vertices of each point's simplex, by remainder: float32 [D, N]."""
    degree = elevated.shape[0]
    rest = (elevated - (nearest * degree).astype(jnp.float32)) * np.float32(1 / degree)
    by_rank = [sum(jnp.where(ranks[i] == r, rest[i], 0) for i in range(degree)) for r in range(degree)]
    differences = [by_rank[r - 1] - by_rank[r] for r in range(degree - 1, 0, -1)]
    return jnp.stack([by_rank[-1] + (1 - by_rank[0]), *differences])


def _simplex_addresses(grid, nearest, ranks):
    """Computes the addresses of the vertices of each point's simplex, by remainder: int32 [D, N]."""
    degree = grid.degree
    places = [(i + 1) * nearest[i] + sum(nearest[j] for j in range(i + 1, degree)) for i in range(1, degree)]

    def address(_, remainder):
        # From remainder 0 to r: r steps back along the axes of the r highest ranks.
        back = (ranks >= degree - remainder).astype(jnp.int32)
        moved = [p + sum(back[j] for j in range(i)) - i * back[i] for i, p in enumerate(places, start=1)]
        return None, _address(grid, moved, remainder)

    return jax.lax.scan(address, None, jnp.arange(degree, dtype=jnp.int32))[1]


def _address(grid, places, remainder):
    """Computes the addresses of vertices; `grid.cells` for those outside the bins."""
    address, known = jnp.zeros_like(places[0]), True
    for i, (place, bins) in enumerate(zip(places, grid.bins, strict=True), start=1):
        digit = place // (i + 1) + (bins - 1)
        known &= (digit >= 0) & (digit < bins)
        address = address * bins + digit
    return jnp.where(known, address * grid.degree + remainder, grid.cells)


def _places(grid, addresses):
    """Computes the inverse of `_address`: a list of d arrays."""
    remainder, rest = addresses % grid.degree, addresses // grid.degree
    places, above = [], remainder  # above = q_(i+1) + ... + q_d + r
    for i, bins in reversed(list(enumerate(grid.bins, start=1))):
        digit = rest % bins - (bins - 1)
        rest = rest // bins
        places.append((i + 1) * digit + above % (i + 1))
        above = above + digit - above // (i + 1)
    return places[::-1]


def _find(grid, keys, queries):
    """Returns the index of the first key that equals each query, keys.size if there is none.

    Uses a table of all addresses. A large table is built in parts, to bound its memory.
    """
    size = min(grid.cells, _TABLE_CELLS)
    order = jnp.arange(keys.size, dtype=jnp.int32)

    def look(part, found):
        offset = part * size
        # Out of this part's range: negative becomes large, so that it is dropped.
        slots = (keys - offset).astype(jnp.uint32)
        slots = jnp.where(keys < grid.cells, slots, size)
        table = jnp.full(size, keys.size, jnp.int32).at[slots].min(order, mode="drop")
        asked = (queries - offset).astype(jnp.uint32)
        return jnp.where((asked < size) & (queries < grid.cells), table.at[asked].get(mode="clip"), found)

    found = jnp.full(queries.shape, keys.size, jnp.int32)
    parts = -(-grid.cells // size)
    return look(0, found) if parts == 1 else jax.lax.fori_loop(0, parts, look, found)


def _running_count(flags):
    """Computes the cumulative sum of flags [N]: int32.

    For 1.2 million flags on two CPU cores this takes 3 ms, jnp.cumsum 17 ms.
    """
    rows = jnp.pad(flags, (0, -flags.size % 64)).reshape(-1, 64).T.astype(jnp.int32)
    total, within = jax.lax.scan(lambda total, row: (total + row,) * 2, jnp.zeros_like(rows[0]), rows)
    return (within + (jnp.cumsum(total) - total)).T.reshape(-1)[: flags.size]


def _lattice(grid, points, capacity):
    """Builds the lattice of points whose number of vertices is at most the capacity."""
    slots = jnp.where(points.new, points.numbers, capacity)
    keys = jnp.full(capacity, grid.cells, jnp.int32).at[slots].set(points.addresses, mode="drop")
    places = _places(grid, keys)
    queries = []
    for j in range(grid.degree):
        step = [i if i == j else -1 if j < i else 0 for i in range(1, grid.degree)]
        for sign in (1, -1):
            moved = [place + sign * s for place, s in zip(places, step, strict=True)]
            # The last place is k_d itself.
            queries.append(_address(grid, moved, moved[-1] % grid.degree))
    queries = jnp.where(keys < grid.cells, jnp.stack(queries), grid.cells)
    neighbours = _find(grid, keys, queries).reshape(grid.degree, 2, capacity)
    neighbours = jnp.pad(neighbours, ((0, 0), (0, 0), (0, 1)), constant_values=capacity)
    rows = jnp.where(points.numbers < 0, capacity, points.numbers).reshape(grid.degree, -1)
    return _Lattice(points.weights, rows, neighbours)


def _kernel(lattice, weight, inside):
    """Returns the function from marginals q [N, C] to weight * n K (n q) with n = 1 / sqrt(K 1)."""
    ones = jnp.ones((inside.size, 1), jnp.float32)
    mass = _filter(lattice, lattice.weights, lattice.weights, ones)[:, 0]
    norm = jnp.where(inside, jax.lax.rsqrt(mass + 1e-20), 0)
    splat_weights, slice_weights = lattice.weights * norm, lattice.weights * (norm * weight)
    return functools.partial(_filter, lattice, splat_weights, slice_weights)


def _filter(lattice, splat_weights, slice_weights, values):
    """Splats values [N, C] to the vertices, blurs along the axes, slices at the pixels: float32 [N, C]."""
    shares = splat_weights[:, :, None] * values
    vertices = jnp.zeros((lattice.neighbours.shape[2], values.shape[1]), jnp.float32)
    vertices = vertices.at[lattice.rows].add(shares)

    def blur(vertices, pair):
        return vertices + 0.5 * (vertices[pair[0]] + vertices[pair[1]]), None

    vertices, _ = jax.lax.scan(blur, vertices, lattice.neighbours)

    def gather(total, inputs):
        rows, weights = inputs
        return total + weights[:, None] * vertices[rows], None

    return jax.lax.scan(gather, jnp.zeros(values.shape, jnp.float32), (lattice.rows, slice_weights))[0]
