"""SBD's .mat files as its authors made them. What is made of them: tests/commands/test_prepare.py."""

import io

import numpy as np
import pytest
from scipy.io import savemat

from rml_jax.data.preparation.sbd import decode_sbd_mask
from rml_jax.utils.errors import UserError


def mat(content):
    file = io.BytesIO()
    savemat(file, content)
    return file.getvalue()


def test_a_mask_comes_out_as_it_is_stored():
    mask = np.arange(21, dtype=np.uint8).reshape(3, 7)
    decoded = decode_sbd_mask(mat({"GTcls": {"Segmentation": mask}}), "a.mat")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    "data",
    [
        b"no mat",
        mat({"GTinst": {"Segmentation": np.ones((2, 2))}}),
        mat({"GTcls": {"Segmentation": np.full((2, 2), 21)}}),
        mat({"GTcls": {"Segmentation": np.full((2, 2), 256)}}),
        mat({"GTcls": {"Segmentation": np.full((2, 2), -1)}}),
        mat({"GTcls": {"Segmentation": np.full((2, 2), 1.5)}}),
        mat({"GTcls": {"Segmentation": np.ones((2, 2, 3))}}),
    ],
    ids=["no mat", "instances", "class 21", "256 wraps to 0", "-1 wraps to 255", "1.5", "colours"],
)
def test_files_that_hold_no_mask(data):
    with pytest.raises(UserError, match=r"^PATH/a\.mat: .*, expected SBD's mask$"):
        decode_sbd_mask(data, "PATH/a.mat")
