"""The experiment that trains on masks: how masks follow their image's crop, and its loss."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.supervised import cross_entropy, resample_mask
from rml_jax.data.augment import augment


def test_loss_is_that_of_torch():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 6, 4)).astype(np.float32)
    masks = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 5, 6))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).permute(0, 3, 1, 2),
        torch.from_numpy(masks.astype(np.int64)),
        ignore_index=255,
    )
    assert float(cross_entropy(jnp.asarray(logits), masks)) == pytest.approx(float(expected), rel=1e-5)
    assert float(cross_entropy(jnp.asarray(logits), np.full_like(masks, 255))) == 0


def test_mask_is_in_its_images_place():
    """The image shows the mask's values, in blocks that are larger than the filter of the resampling."""
    values = np.array([[0, 3, 1], [255, 2, 0]], np.uint8)
    mask = np.kron(values, np.ones((16, 16), np.uint8))
    image = np.repeat(mask[..., None], 3, axis=-1)
    for seed in range(6):

        def crop(image, seed=seed):
            rng = np.random.default_rng(seed)
            return augment(image, rng, crop_size=24, scale=(0.5, 1.5), flip=True)

        view = crop(image)
        top, left, bottom, right = view["box"]
        found = resample_mask(mask, 4, lambda planes, crop=crop: crop(planes)["image"])
        inside = found[top:bottom, left:right]
        shown = view["image"][top:bottom, left:right, 0]
        assert np.mean(inside == shown) > 0.75  # But for the blocks' edges, where grey values lie between.
        assert set(np.unique(found)) <= {0, 1, 2, 3, 255}
        outside = np.ones(found.shape, bool)
        outside[top:bottom, left:right] = False
        assert (found[outside] == 255).all()
