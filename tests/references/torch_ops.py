"""Tensor functions of RML in PyTorch: the transform A, PAR, CAMs and pseudo labels.

They are an independent counterpart of `rml_jax.ops`, after docs/method.md. Maps are [batch, channels, height, width].
"""

import torch
import torch.nn.functional as F
from torch import nn

IGNORE = 255


# --- The transform A: docs/method.md, The pair of views ---


def sampling_grid(theta, size):
    """Computes the source position of each pixel of a transformed map.

    Args:
      theta: float32 [B, 2, 3].
      size: (height, width) of the map.

    Returns:
      float32 [B, height, width, 2], for `F.grid_sample`.
    """
    # In double precision: products in TF32 or bfloat16 would misplace pixels.
    grid = F.affine_grid(theta.double(), (len(theta), 1, *size), align_corners=False)
    return grid.float()


def warp(maps, grid, mode="bilinear"):
    """Applies A to maps [B, K, H, W] by their `sampling_grid`; 0 for pixels from outside."""
    return F.grid_sample(maps, grid, mode=mode, padding_mode="zeros", align_corners=False)


def warp_labels(labels, grid):
    """Applies A to label maps, integers [B, H, W]: the nearest pixel, `IGNORE` for pixels from outside."""
    shifted = (labels - IGNORE)[:, None].float()
    return warp(shifted, grid, mode="nearest")[:, 0].long() + IGNORE


def warp_pairs(pairs, grid):
    """Applies A to both axes of a matrix over pairs of cells: W R W^T.

    Args:
      pairs: float [B, N, N], N = h w.
      grid: [B, h, w, 2].

    Returns:
      float [B, N, N].
    """
    size = grid.shape[1:3]
    for _ in range(2):
        pairs = warp(pairs.unflatten(2, size), grid).flatten(2).transpose(1, 2)
    return pairs


def box_mask(box, size, canvas):
    """Computes which cells of a map lie on real pixels of a padded crop.

    Args:
      box: int [B, 4], top, left, bottom, right of the real pixels, half-open.
      size: (height, width) of the map.
      canvas: (height, width) of the crop in pixels.

    Returns:
      bool [B, height, width], true where the centre of the cell lies in the box.
    """
    top, left, bottom, right = box[:, :, None].unbind(1)
    y, x = (
        (torch.arange(cells, device=box.device) + 0.5) * (pixels / cells)
        for cells, pixels in zip(size, canvas, strict=True)
    )
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return rows[:, :, None] & columns[:, None, :]


def validity(real, grid):
    """Computes where a transformed map interpolates real pixels only: bool [B, H, W] from bool [B, H, W]."""
    return warp(real[:, None].float(), grid)[:, 0] > 1 - 1e-4


# --- Pseudo labels: docs/method.md, Pseudo labels ---


class PAR(nn.Module):
    """Pixel-adaptive refinement of soft masks by the colours of an image, from AFA (Ru et al. 2022).

    Args:
      dilations: distances to the rings of eight neighbours, in pixels.
      iterations: number of iterations.
    """

    def __init__(self, dilations, iterations):
        super().__init__()
        directions = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
        self.margin = max(dilations)
        self.offsets = [(d * i, d * j) for d in dilations for i, j in directions]
        self.iterations = iterations
        distances = torch.tensor(self.offsets, dtype=torch.float64).norm(dim=1)
        nearness = self._likeness(distances, distances.std())
        self.register_buffer("position", 0.01 * nearness.softmax(dim=0).float()[:, None, None])

    def forward(self, images, masks):
        """Refines masks [B, K, H, W] by images [B, 3, H, W] with colours in 0..255."""
        weights = self.weights(images).unsqueeze(2).unbind(1)
        for _ in range(self.iterations):
            neighbours = self._neighbours(masks)
            masks = weights[0] * neighbours[0]
            for weight, neighbour in zip(weights[1:], neighbours[1:], strict=True):
                masks.addcmul_(weight, neighbour)
        return masks

    def weights(self, images):
        """Computes the weight of each neighbour, float [B, neighbours, H, W], summing to 1.01."""
        neighbours = torch.stack(self._neighbours(images), dim=1)
        deviation = neighbours.std(dim=1, keepdim=True)
        likeness = self._likeness(neighbours - images[:, None], deviation).mean(dim=2)
        return likeness.softmax(dim=1) + self.position

    @staticmethod
    def _likeness(differences, deviation):
        return -((differences / (deviation + 1e-8) / 0.3) ** 2)

    def _neighbours(self, maps):
        """Shifts maps [B, K, H, W] to each neighbour, with replicated edges: a list of views."""
        height, width = maps.shape[2:]
        padded = F.pad(maps, (self.margin,) * 4, mode="replicate")
        starts = [(self.margin + i, self.margin + j) for i, j in self.offsets]
        return [padded[:, :, top : top + height, left : left + width] for top, left in starts]


def min_max_normalize(maps):
    """Scales every map of [B, K, H, W] to [0, 1]: subtracts its minimum, divides by its maximum + 1e-5 (Eq. 1)."""
    maps = maps - maps.amin(dim=(2, 3), keepdim=True)
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + 1e-5)


def multi_scale_cam(model, images, classes, scales, flip, stride):
    """Computes multi-scale, flipped CAMs of chosen classes at the images' resolution.

    Args:
      model: TorchRML in evaluation mode.
      images: float [B, 3, H, W], normalised.
      classes: int64 [B, K], the chosen classes of each image; only these are enlarged.
      scales: factors on the image's size.
      flip: whether to include mirrored images.
      stride: pixels per cell of stage 4's grid, the smallest size at any scale.

    Returns:
      float32 [B, K, H, W] in [0, 1].
    """
    size = images.shape[2:]
    total = 0
    for scale in scales:
        scaled_size = [max(stride, round(side * scale)) for side in size]
        scaled = resize(images, scaled_size)
        if flip:
            maps, mirrored = model.cam_logits(torch.cat([scaled, scaled.flip(3)])).chunk(2)
            maps = torch.maximum(maps, mirrored.flip(3))
        else:
            maps = model.cam_logits(scaled)
        chosen = maps.take_along_dim(classes[:, :, None, None], dim=1)
        total = total + resize(chosen.relu(), size)
    return min_max_normalize(total)


def resize(maps, size):
    """Resizes [B, K, H, W] bilinearly with half-pixel centres."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def make_pseudo_labels(model, refine, batch, config):
    """Computes pseudo labels of the original view: a label per pixel where the CAMs are confident, 255 elsewhere.

    Args:
      model: TorchRML in evaluation mode.
      refine: PAR.
      batch, config: see `make_train_step`.

    Returns:
      int64 [B, S, S]: 0 background, 1..C classes, 255 ignore.
    """
    settings, size = config.pseudo_label, batch["image"].shape[1:3]
    real = box_mask(batch["box"], size, size)
    # Stable, so that images with more tags than slots keep their first ones.
    tagged, classes = batch["tags"].sort(dim=1, descending=True, stable=True)
    used, classes = tagged[:, : settings.slots] > 0, classes[:, : settings.slots]
    images = model.normalize(batch["image"], real)
    cams = multi_scale_cam(model, images, classes, config.cam_scales, config.cam_flip, config.stride)

    half = [max(1, side // 2) for side in size]
    scores = resize(cams, half).masked_fill(~used[:, :, None, None], -torch.inf)
    # Both background scores as channels, so that one pass of PAR refines them.
    probabilities = torch.cat(
        [
            F.pad(scores, (0, 0, 0, 0, 1, 0), value=background).softmax(dim=1)
            for background in (settings.high, settings.low)
        ],
        dim=1,
    )
    colours = resize(batch["image"].permute(0, 3, 1, 2).float(), half)
    refined = resize(refine(colours, probabilities), size)
    # 14 times faster than argmax on a CPU.
    against_high, against_low = refined.unflatten(1, (2, -1)).max(dim=2).indices.unbind(1)

    slot_labels = F.pad(classes + 1, (1, 0))
    foreground = slot_labels.gather(1, against_high.flatten(1)).view_as(against_high)
    unsure = (against_high == 0) & (against_low > 0)
    return foreground.masked_fill(unsure | ~real, IGNORE)
