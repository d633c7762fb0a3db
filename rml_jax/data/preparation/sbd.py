"""SBD's masks and the usual training set that they extend VOC 2012 to."""

import io

import numpy as np
from scipy.io import loadmat

from rml_jax.data.sources.voc import CLASS_NAMES
from rml_jax.utils.errors import UserError


def usual_list(train, extra, val):
    """Returns the ids of the usual training set, sorted: VOC's train and all of SBD's, without VOC's val."""
    return sorted({*train, *extra} - {*val})


def decode_sbd_mask(data, name):
    """Decodes the class mask of one of SBD's .mat files.

    Args:
      data: the file's bytes.
      name: path of the file, for error messages.

    Returns:
      uint8 [H, W], 0 background, 1..20 VOC's classes. SBD marks no borders.

    Raises:
      UserError: if the file is not one of SBD's class masks.
    """
    try:
        mask = np.asarray(loadmat(io.BytesIO(data), simplify_cells=True)["GTcls"]["Segmentation"])
        if mask.ndim != 2 or not np.isin(mask, range(len(CLASS_NAMES) + 1)).all():
            raise ValueError(f"found {mask.shape} with numbers from {mask.min()} to {mask.max()}")
        return mask.astype(np.uint8)
    # scipy has no common exception for a broken file.
    except Exception as error:
        raise UserError(f"{name}: {type(error).__name__}: {error}, expected SBD's mask") from error
