"""Images joined of two of a batch."""

import jax
import numpy as np
import pytest

from rml_jax.ops.join import enlarge, join, sample_parts


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 3), (0.5, 6), (0.9, 10)])
def test_the_share_is_that_of_every_batch(share, count):
    kept, joined = sample_parts(jax.random.key(0), 12, (4, 6), share)
    assert joined.sum() == count
    assert np.asarray(kept)[~joined].all()


def test_a_cut_leaves_both_images_a_third_or_more():
    kept, joined = sample_parts(jax.random.key(0), 400, (10, 10), 0.9)
    kept = np.asarray(kept)[joined]
    rows, columns = kept[:, :, 0], kept[:, 0, :]
    along_rows = rows.all(axis=1)
    # A part is a whole block of rows or of columns that starts at the top or left.
    np.testing.assert_array_equal(
        kept, np.where(along_rows[:, None, None], columns[:, None], rows[:, :, None])
    )
    widths = np.where(along_rows, columns.sum(axis=1), rows.sum(axis=1))
    assert set(widths.tolist()) == {3, 4, 5, 6, 7}
    assert 0.4 < along_rows.mean() < 0.6


def test_the_smallest_grid_keeps_a_cell_for_each_image():
    kept, joined = sample_parts(jax.random.key(0), 40, (2, 2), 0.9)
    assert (np.asarray(kept)[joined].sum(axis=(1, 2)) == 2).all()


def test_join_by_hand():
    images = np.arange(3)[:, None, None, None] + np.zeros((3, 2, 3, 1), int)
    kept = np.zeros((3, 1, 2), bool)
    kept[:, :, 0] = True
    # A cell covers two pixels; the last one lies partly outside.
    joined = join(images, enlarge(kept, 2, (2, 3)))
    expected = [[[0, 0, 2]] * 2, [[1, 1, 0]] * 2, [[2, 2, 1]] * 2]
    np.testing.assert_array_equal(joined[..., 0], expected)
