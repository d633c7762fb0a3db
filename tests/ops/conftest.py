"""References shared by the tests of the operations, written as loops over pixels."""

import math

import numpy as np
import pytest


def _bilinear(x, size):
    """[B, H, W, C] -> [B, height, width, C], half-pixel centres, edges replicated."""
    _, height_in, width_in, _ = x.shape
    out = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = (i + 0.5) * height_in / size[0] - 0.5
            z = (j + 0.5) * width_in / size[1] - 0.5
            top, left = math.floor(y), math.floor(z)
            for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
                for column, column_weight in ((left, left + 1 - z), (left + 1, z - left)):
                    row_held = min(max(row, 0), height_in - 1)
                    column_held = min(max(column, 0), width_in - 1)
                    out[:, i, j] += row_weight * column_weight * x[:, row_held, column_held]
    return out


@pytest.fixture(scope="session")
def numpy_bilinear():
    """Function (x, size) -> float64 array: bilinear resize by loops."""
    return _bilinear
