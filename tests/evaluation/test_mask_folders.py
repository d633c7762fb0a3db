"""Predicted masks as files."""

import numpy as np

from rml_jax.evaluation.masks import MaskFolder, MaskWriter, voc_folder


def test_masks_of_images_in_sub_folders(tmp_path):
    """`eval --save_masks` ended in FileNotFoundError."""
    mask = np.random.default_rng(0).integers(0, 3, (12, 17)).astype(np.uint8)
    write = MaskWriter(tmp_path, "val", (8, 12))
    for image_id in ("flat", "cat/1", "cat/more/1", "dog/1"):
        write("predicted", "cam", image_id, mask)
    folder = MaskFolder(voc_folder(tmp_path / "predicted" / "cam", "val"), (8, 12), 2)
    for image_id in ("flat", "cat/1", "cat/more/1", "dog/1"):
        np.testing.assert_array_equal(folder.read(image_id, mask.shape), mask)
