"""Reference implementations of the operators of rml_jax: loops in double precision, after docs/method.md.

The parity table and the tests compare the operators with them. They are simple rather than fast: they process one
pixel, pair or sample at a time, so that each line can be compared with its formula. They depend on NumPy only.
"""

import math

import numpy as np

IGNORE = 255
DIRECTIONS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]


# --- Resizing ---


def resize_bilinear(x, size, align_corners=False):
    """Resizes maps bilinearly, with replicated edges.

    Args:
      x: float [B, H, W, C].
      size: (height, width) of the result.
      align_corners: whether the centres of the corner pixels coincide, rather than their outer edges.

    Returns:
      float64 [B, height, width, C].
    """
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = _position(i, size[0], x.shape[1], align_corners)
            z = _position(j, size[1], x.shape[2], align_corners)
            top, left = math.floor(y), math.floor(z)
            for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
                for column, column_weight in ((left, left + 1 - z), (left + 1, z - left)):
                    row_held, column_held = _held(row, column, x.shape[1:3])
                    out[:, i, j] += row_weight * column_weight * x[:, row_held, column_held]
    return out


def _position(index, wanted, given, align_corners):
    if align_corners:
        return index * (given - 1) / (wanted - 1) if wanted > 1 else 0.0
    return (index + 0.5) * given / wanted - 0.5


def _held(row, column, size):
    """Returns the nearest pixel of the image."""
    return min(max(row, 0), size[0] - 1), min(max(column, 0), size[1] - 1)


# --- The transform A (docs/method.md, The pair of views) ---


def source_position(theta, i, j, size):
    """Computes the row and column in the original of the transformed image's pixel (i, j).

    Args:
      theta: float [2, 3].
      i, j: row and column.
      size: (height, width).
    """
    x, y = 2 * (j + 0.5) / size[1] - 1, 2 * (i + 0.5) / size[0] - 1
    column = ((theta[0, 0] * x + theta[0, 1] * y + theta[0, 2] + 1) * size[1] - 1) / 2
    row = ((theta[1, 0] * x + theta[1, 1] * y + theta[1, 2] + 1) * size[0] - 1) / 2
    return row, column


def warp(x, thetas):
    """Applies A to maps: bilinear, 0 for pixels from outside.

    Args:
      x: float [B, H, W, C].
      thetas: float [B, 2, 3].

    Returns:
      float64 [B, H, W, C].
    """
    size = x.shape[1:3]
    out = np.zeros(x.shape)
    for b, theta in enumerate(thetas.astype(np.float64)):
        for i in range(size[0]):
            for j in range(size[1]):
                row, column = source_position(theta, i, j, size)
                for p in range(size[0]):
                    for q in range(size[1]):
                        weight = max(0, 1 - abs(row - p)) * max(0, 1 - abs(column - q))
                        out[b, i, j] += weight * x[b, p, q]
    return out


# --- CAMs, PAR and pseudo labels ---


def min_max_normalize(maps):
    """Scales every image's and class's map [B, H, W, C] to [0, 1] (Eq. 1, after the ReLU), in float64."""
    out = np.zeros(maps.shape)
    for b in range(maps.shape[0]):
        for c in range(maps.shape[3]):
            shifted = maps[b, :, :, c].astype(np.float64) - maps[b, :, :, c].min()
            out[b, :, :, c] = shifted / (shifted.max() + 1e-5)
    return out


def cam_to_labels(cams, tags, background):
    """Computes the best tagged class of each pixel, 0 if its score is not above the background's.

    Args:
      cams: float [B, H, W, C] in [0, 1].
      tags: 0/1 [B, C].
      background: score of the background.

    Returns:
      int [B, H, W].
    """
    labels = np.zeros(cams.shape[:3], int)
    for b, i, j in np.ndindex(labels.shape):
        best = background
        for c in range(cams.shape[3]):
            if tags[b][c] and cams[b, i, j, c] > best:
                best, labels[b, i, j] = cams[b, i, j, c], c + 1
    return labels


def par(image, mask, dilations, iterations):
    """Refines the mask of one image by PAR.

    Args:
      image: float [H, W, 3], colours in 0..255.
      mask: float [H, W, K].
      dilations: distances to the neighbours, in pixels.
      iterations: number of iterations.

    Returns:
      float64 [H, W, K].
    """
    steps = [(d * i, d * j) for d in dilations for i, j in DIRECTIONS]
    distances = [math.hypot(*step) for step in steps]
    spread = _sample_deviation(distances)
    position = _softmax([-((d / (spread + 1e-8) / 0.3) ** 2) for d in distances])

    weights = {}
    for row, column in np.ndindex(image.shape[:2]):
        places = [_held(row + i, column + j, image.shape[:2]) for i, j in steps]
        likeness = [0.0] * len(steps)
        for channel in range(3):
            near = [float(image[(*place, channel)]) for place in places]
            sigma = _sample_deviation(near)
            for n, value in enumerate(near):
                difference = value - float(image[row, column, channel])
                likeness[n] -= (difference / (sigma + 1e-8) / 0.3) ** 2 / 3
        total = [c + 0.01 * p for c, p in zip(_softmax(likeness), position, strict=True)]
        weights[row, column] = list(zip(places, total, strict=True))

    for _ in range(iterations):
        refined = np.zeros(mask.shape)
        for place, terms in weights.items():
            for neighbour, weight in terms:
                refined[place] += weight * mask[neighbour]
        mask = refined
    return mask


def _sample_deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [power / sum(powers) for power in powers]


def pseudo_labels(cams, images, tags, box, dilations, iterations, background=(0.55, 0.35)):
    """Computes pseudo labels from CAMs (docs/method.md, Pseudo labels).

    Args:
      cams: float [B, H, W, C] in [0, 1].
      images: float [B, H, W, 3], colours in 0..255.
      tags: 0/1 [B, C].
      box: int [B, 4], top, left, bottom, right of the real pixels, half-open.
      dilations, iterations: see `par`.
      background: the high and the low score of the background.

    Returns:
      int [B, H, W]: 0 background, 1..C classes, 255 ignore.
    """
    size = cams.shape[1:3]
    half = (size[0] // 2, size[1] // 2)
    labels = np.full(cams.shape[:3], IGNORE)
    for b in range(len(cams)):
        present = [c for c in range(cams.shape[3]) if tags[b][c]]
        maps = resize_bilinear(cams[b : b + 1, :, :, present], half)[0]
        image = resize_bilinear(images[b : b + 1], half)[0]
        winners = []
        for score in background:
            chances = np.zeros((*half, 1 + len(present)))
            for i, j in np.ndindex(half):
                chances[i, j] = _softmax([score, *maps[i, j]])
            refined = par(image, chances, dilations, iterations)
            winners.append(resize_bilinear(refined[None], size)[0].argmax(axis=-1))
        for i in range(box[b][0], box[b][2]):
            for j in range(box[b][1], box[b][3]):
                high, low = winners[0][i, j], winners[1][i, j]
                if high > 0:
                    labels[b, i, j] = present[high - 1] + 1
                elif low == 0:
                    labels[b, i, j] = 0
    return labels


# --- Affinity ---


def affinity_labels(labels, radius):
    """Computes affinity labels: 1 for equal labels, 0 for different ones, 255 if too far apart or if one is ignored.

    Args:
      labels: integers [B, h, w], 255 = ignore.
      radius: greatest distance of a pair along either axis.

    Returns:
      int [B, N, N], N = h * w.
    """
    batch, height, width = labels.shape
    out = np.full((batch, height * width, height * width), IGNORE)
    for b, i, j, k, m in np.ndindex(batch, height, width, height, width):
        first, second = labels[b, i, j], labels[b, k, m]
        if IGNORE not in (first, second) and abs(i - k) <= radius and abs(j - m) <= radius:
            out[b, i * width + j, k * width + m] = first == second
    return out


def random_walk(scores, affinity, radius):
    """Computes one step along the squared affinity within the radius, with normalised columns.

    Args:
      scores: float [B, h, w, K].
      affinity: float [B, N, N], from the first cell to the second.
      radius: greatest distance of a step along either axis.

    Returns:
      float64 [B, h, w, K].
    """
    batch, height, width, _ = scores.shape
    out = np.zeros(scores.shape)
    for b, k, m in np.ndindex(batch, height, width):
        total = 0.0
        for i, j in np.ndindex(height, width):
            if abs(i - k) <= radius and abs(j - m) <= radius:
                weight = float(affinity[b, i * width + j, k * width + m]) ** 2
                total += weight
                out[b, k, m] += weight * scores[b, i, j]
        out[b, k, m] /= total
    return out


# --- Losses ---


def mutual_information(first, second, weight):
    """Computes the mutual information by its definition, on the soft joint histogram, in nats.

    Args:
      first: float [..., K], probabilities of every sample.
      second: float [..., L].
      weight: float or bool [...].

    Returns:
      float; 0 if no sample has weight.
    """
    first, second = (a.reshape(-1, a.shape[-1]).astype(float) for a in (first, second))
    weight = np.asarray(weight, float).ravel()
    if weight.sum() == 0:
        return 0.0
    joint = np.zeros((first.shape[1], second.shape[1]))
    for p, q, w in zip(first, second, weight, strict=True):
        for k, chance in enumerate(p):
            joint[k] += w * chance * q
    joint /= weight.sum()
    total = 0.0
    for k, m in np.ndindex(joint.shape):
        if joint[k, m] > 0:
            total += joint[k, m] * math.log(joint[k, m] / (joint[k].sum() * joint[:, m].sum()))
    return total


def ciml(view, warped, tags, matrix, valid, alpha):
    """Computes L_CIML (Eqs. 2 to 4).

    Args:
      view, warped: (CAM logits [B, h, w, C], features [B, h, w, D]) of the original and the transformed image.
      tags: 0/1 [B, C].
      matrix: float [B, N, N], A on the cells.
      valid: bool [B, h, w].
      alpha: weight of the prototype term.

    Returns:
      The loss, D_equ and the prototype term, as floats.
    """
    batch, height, width, classes = view[0].shape
    cells = list(np.ndindex(height, width))
    cams, warped_cams = (min_max_normalize(np.maximum(logits, 0)) for logits, _ in (view, warped))
    differences = []
    for b, c in np.ndindex(batch, classes):
        for number, cell in enumerate(cells):
            if tags[b][c] and valid[b][cell]:
                moved = sum(matrix[b, number, m] * cams[b][other][c] for m, other in enumerate(cells))
                differences.append(abs(moved - warped_cams[b][cell][c]))
    distance = sum(differences) / max(len(differences), 1)

    likeness = 0.0
    for maps, (_, features) in ((cams, view), (warped_cams, warped)):
        vectors = []
        for c in range(classes):
            carriers = [b for b in range(batch) if tags[b][c]]
            if carriers:
                vector = sum(maps[b][cell][c] * features[b][cell] for b in carriers for cell in cells)
                vectors.append(vector / math.sqrt(vector @ vector))
        pairs = [(p, q) for p in range(len(vectors)) for q in range(len(vectors)) if p != q]
        likeness += sum(vectors[p] @ vectors[q] for p, q in pairs) / max(len(pairs), 1)
    return distance + alpha * likeness, distance, likeness


def mfml(context, warped_context, thetas, valid, beta1):
    """Computes L_MFML (Eqs. 6 to 8).

    Args:
      context, warped_context: float [B, H, W, K] of the original and the transformed image.
      thetas: float [B, 2, 3].
      valid: bool [B, H, W].
      beta1: weight of the mutual information.

    Returns:
      The loss, the mean distance and the mutual information, as floats.
    """
    # Lists of the vectors at valid pixels, one image after the other.
    moved, warped = (_standard_vectors(maps, valid) for maps in (warp(context, thetas), warped_context))
    differences = [abs(a - b) for p, q in zip(moved, warped, strict=True) for a, b in zip(p, q, strict=True)]
    distance = sum(differences) / len(differences)
    kinds, warped_kinds = (np.array([_softmax(list(p)) for p in vectors]) for vectors in (moved, warped))
    information = mutual_information(kinds, warped_kinds, np.ones(len(kinds)))
    return distance + beta1 * information, distance, information


def _standard_vectors(maps, valid):
    vectors = []
    for b in range(len(maps)):
        inside = [maps[b, i, j].astype(np.float64) for i, j in zip(*np.nonzero(valid[b]), strict=True)]
        mean = sum(inside) / len(inside)
        variance = sum((vector - mean) ** 2 for vector in inside) / len(inside)
        vectors += [(vector - mean) / np.sqrt(variance) for vector in inside]
    return vectors


def affinity_loss(affinity, labels):
    """Computes L_aff: half the mean error over the positive pairs plus half of it over the negative ones (Eq. 13).

    Args:
      affinity: float [B, N, N] in [0, 1].
      labels: [B, N, N], 1 positive, 0 negative, 255 ignored.

    Returns:
      float.
    """
    total = 0.0
    for side in (1, 0):
        errors = [abs(side - float(affinity[p])) for p in np.ndindex(labels.shape) if labels[p] == side]
        total += 0.5 * sum(errors) / max(len(errors), 1)
    return total


def apml(logits, warped_logits, labels, warped_labels, matrix, valid, beta2):
    """Computes L_APML (Eqs. 9 to 14).

    Args:
      logits, warped_logits: float [B, N, N], whose sigmoids are the affinities of the two views.
      labels, warped_labels: [B, N, N], 1 positive, 0 negative, 255 ignored.
      matrix: float [B, N, N], A on the cells.
      valid: bool [B, N].
      beta2: weight of the mutual information.

    Returns:
      The loss, L_aff of both views, I of affinity and label in both views, and I of the two affinities.
    """
    affinity, warped_affinity = (1 / (1 + np.exp(-a.astype(np.float64))) for a in (logits, warped_logits))
    views = ((affinity, labels), (warped_affinity, warped_labels))
    contrast = sum(affinity_loss(*view) for view in views)
    with_label = sum(
        _binary_information([(a[p], float(y[p])) for p in np.ndindex(y.shape) if y[p] != IGNORE])
        for a, y in views
    )
    compared = []
    cells = range(labels.shape[1])
    for b, i, j in np.ndindex(labels.shape):
        if valid[b][i] and valid[b][j] and warped_labels[b, i, j] != IGNORE:
            moved = sum(matrix[b, i, k] * matrix[b, j, m] * affinity[b, k, m] for k in cells for m in cells)
            compared.append((moved, warped_affinity[b, i, j]))
    shared = _binary_information(compared)
    return contrast + beta2 * -(with_label - 2 * shared), contrast, with_label, shared


def _binary_information(samples):
    """Computes I of two binary variables from the probabilities of their second value in every sample."""
    if not samples:
        return 0.0
    first, second = np.array(samples).T
    return mutual_information(
        np.stack([1 - first, first], axis=-1), np.stack([1 - second, second], axis=-1), np.ones(len(samples))
    )


# --- Training and evaluation ---


def learning_rate(step, warmup_steps, total_steps):
    """Computes the learning rate after `step` updates over the base: warm-up from 1e-6, then linear decay to 0."""
    if step < warmup_steps:
        return 1e-6 + (1 - 1e-6) * step / warmup_steps
    return max(0.0, 1 - step / total_steps)


def mean_average_precision(probabilities, tags):
    """Computes the mean average precision over the classes that occur.

    The average precision of a class is the mean over its positives of the precision at their score.

    Args:
      probabilities: float [N, C].
      tags: bool [N, C].

    Returns:
      float.
    """
    averages = []
    for scores, truth in zip(probabilities.T, tags.T, strict=True):
        precisions = []
        for threshold in scores[truth]:
            found = [bool(t) for score, t in zip(scores, truth, strict=True) if score >= threshold]
            precisions.append(sum(found) / len(found))
        if precisions:
            averages.append(sum(precisions) / len(precisions))
    return sum(averages) / len(averages)


def self_training(logits, labels, tags):
    """Computes L_self: half the mean cross-entropy over cells of a class plus half of it over background cells.

    Args:
      logits: float [B, h, w, C], class scores.
      labels: int [B, h, w], 0 background, 1..C classes, 255 ignored.
      tags: 0/1 [B, C]; a cell's cross-entropy is the mean over its image's tagged classes.

    Returns:
      float.
    """
    sides = {"class": [], "background": []}
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j] == IGNORE:
            continue
        errors = []
        for c in np.flatnonzero(tags[b]):
            chance = 1 / (1 + np.exp(-float(logits[b, i, j, c])))
            errors.append(-np.log(chance if labels[b, i, j] == c + 1 else 1 - chance))
        side = "class" if labels[b, i, j] else "background"
        sides[side].append(sum(errors) / len(errors))
    return sum(0.5 * sum(errors) / max(len(errors), 1) for errors in sides.values())


def local_mean(x, radius, cells):
    """Mean of maps [B, H, W, C] over the chosen cells, bool [B, H, W], of the square around each cell."""
    mean = np.zeros_like(x)
    for b, i, j in np.ndindex(x.shape[:3]):
        square = slice(max(0, i - radius), i + radius + 1), slice(max(0, j - radius), j + radius + 1)
        chosen = x[b][square][cells[b][square]]
        if len(chosen):
            mean[b, i, j] = chosen.mean(axis=0)
    return mean
