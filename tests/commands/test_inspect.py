"""The contact sheet shows the pairs that training would see."""

import numpy as np
import pytest
from PIL import Image

from configs import digits
from rml_jax.commands.inspect import inspect
from rml_jax.utils.errors import UserError


@pytest.fixture
def config():
    config = digits.get_config()
    config.data.num_train = 5
    config.data.scene.size, config.data.scene.digit_size = 32, (14, 20)
    config.train.crop_size, config.train.batch_size = 32, 2
    config.affine.update({"scale": (1.0, 1.0), "rotation": 0.0, "translation": 0.0, "flip": 1.0})
    return config


def first_row(path, rows):
    """The first example's three pictures, 128 pixels each, without the captions above them and the gaps of 4."""
    sheet = np.asarray(Image.open(path))
    top = (sheet.shape[0] + 4) // rows - 4 - 128
    assert (sheet[:top] < 128).any(), "captions"
    return [sheet[top : top + 128, left : left + 128] for left in (0, 132, 264)]


def test_sheet_shows_view_warped_and_validity(config, tmp_path):
    path = tmp_path / "sheet.png"
    lines = inspect(config, path, 3, seconds=0.01)
    assert lines[0] == "data: digits, 10 classes"
    assert "images/s in batches of 2, 0 workers" in lines[-1]
    view, warped, compared = first_row(path, rows=3)
    # A is a mere mirror here: the warped view is the view mirrored, all of it valid, and the box the view's border.
    inner = slice(4, -4)
    np.testing.assert_allclose(warped[inner, inner], view[inner, ::-1][:, inner].astype(int), atol=1)
    np.testing.assert_array_equal(warped, compared)
    assert (view[0] == (255, 0, 255)).all()
    assert list(tmp_path.iterdir()) == [path]


def test_pixels_from_outside_are_left_out(config, tmp_path):
    config.affine.scale = (0.5, 0.5)
    inspect(config, tmp_path / "sheet.png", 1, seconds=0.01)
    _, _, compared = first_row(tmp_path / "sheet.png", rows=1)
    white = (compared == 255).all(axis=-1)
    assert white[:28].all()
    assert not white[40:88, 40:88].all()
    assert 0.7 < white.mean() < 0.85


def test_path_that_cannot_be_written(config, tmp_path):
    with pytest.raises(UserError, match=f"--out={tmp_path / 'none' / 'sheet.png'}: No such file"):
        inspect(config, tmp_path / "none" / "sheet.png", 1, seconds=0.01)
