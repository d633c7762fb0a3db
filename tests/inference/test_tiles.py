"""Tiles cover the image, and what they agree on comes out unchanged."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rml_jax.inference.tiles import OVERLAP, RowBlender, tile_starts, tile_weights


@given(st.integers(1, 5000), st.integers(4, 600))
def test_tiles_cover_the_length_and_overlap(length, tile):
    starts = tile_starts(length, tile)
    assert starts[0] == 0
    if length <= tile:
        assert starts == [0]
        return
    assert starts[-1] + tile == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert steps.max() <= tile - round(OVERLAP * tile) + 1
    assert steps.max() - steps.min() <= 1


def blend(maps, tile, change=lambda top, left, part: part):
    """`maps` cut into tiles, each changed, and joined again."""
    height, width, channels = maps.shape
    tops, lefts = (tile_starts(length, side) for length, side in zip((height, width), tile, strict=True))
    blender, result = RowBlender(height, width, tile, channels), np.full(maps.shape, np.nan, np.float32)
    for row, top in enumerate(tops):
        for left in lefts:
            part = maps[top : top + tile[0], left : left + tile[1]]
            blender.add(top, left, change(top, left, part))
        first, done = blender.finish_rows(tops[row + 1] if row + 1 < len(tops) else height)
        result[first : first + len(done)] = done
    return result


@settings(max_examples=40)
@given(st.integers(8, 70), st.integers(8, 70), st.integers(8, 30), st.integers(8, 30))
def test_tiles_of_one_map_give_that_map(height, width, tile_height, tile_width):
    maps = np.random.default_rng(0).random((height, width, 2), np.float32)
    tile = min(height, tile_height), min(width, tile_width)
    np.testing.assert_allclose(blend(maps, tile), maps, rtol=1e-5)


def test_no_seam_where_tiles_differ():
    """Every tile finds another value; the result runs from one to the next without a step."""
    maps = np.zeros((64, 80, 1), np.float32)
    joined = blend(maps, (32, 32), lambda top, left, part: part + (top + left) / 80)
    # Neighbours differ by at most 24 / 80, and half of that is no step of one pixel but a ramp of 8.
    for axis in (0, 1):
        assert np.abs(np.diff(joined, axis=axis)).max() < 24 / 80 / 5
    assert joined[0, 0] == 0
    assert joined[-1, -1] == (32 + 48) / 80


def test_weights_by_hand():
    np.testing.assert_allclose(tile_weights(0, 6, 12, 2), [1, 1, 1, 1, 0.75, 0.25])
    np.testing.assert_allclose(tile_weights(6, 6, 12, 2), [0.25, 0.75, 1, 1, 1, 1])
    np.testing.assert_allclose(tile_weights(0, 6, 6, 2), np.ones(6))
