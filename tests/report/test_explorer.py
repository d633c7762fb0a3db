"""The page on which the background score is chosen, in headless Chromium where there is one."""

import base64
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from rml_jax.report.explorer import MAX_IMAGES, explorer_scene, explorer_section, quantise
from rml_jax.report.page import page

CLASSES = ("cat", "</script>", "dog")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def smooth(rng, height, width):
    """A random CAM, float64 [H, W], its least value 0 and its greatest 1."""
    noise = Image.fromarray(rng.random((5, 7), np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(noise, np.float64)
    return (values - values.min()) / (values.max() - values.min())


@pytest.fixture
def scenes():
    rng = np.random.default_rng(0)
    return [
        explorer_scene(
            f"<image {number}>",
            rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
            {label: smooth(rng, height, width) for label in labels},
            cell=10.7,
        )
        for number, (height, width, labels) in enumerate([(120, 93, (1, 3)), (400, 640, (2,)), (50, 60, ())])
    ]


def write(folder, scenes, after=""):
    """Writes a page, with a script at its end that does what a user would do."""
    section = explorer_section(scenes, CLASSES, 0.35, "--stage=cam --background=SCORE")
    path = folder / "page.html"
    text = page("A page", {"images": "3"}, [section])
    path.write_text(text.replace("</body>", f"<script>{after}</script></body>"), encoding="utf-8")
    return path


def areas_by_numpy(scene, score, off=()):
    """The number of pixels of each label in the mask, from the stored CAMs."""
    (height, width), (rows, columns) = scene["size"], scene["grid"]
    stored = np.frombuffer(base64.b64decode(scene["cams"]), np.uint8)
    maps = stored.reshape(-1, rows, columns).astype(np.float64)

    def enlarge(values, length):  # along the last axis, half-pixel centres
        cells = values.shape[-1]
        place = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
        first = np.floor(place).astype(int)
        share = place - first
        return values[..., first] * (1 - share) + values[..., np.minimum(first + 1, cells - 1)] * share

    full = enlarge(maps, width).swapaxes(1, 2)
    full = enlarge(full, height).swapaxes(1, 2)
    on = [number for number, label in enumerate(scene["labels"]) if label not in off]
    if not on:
        return {}
    best = full[on].argmax(axis=0)
    mask = np.where(full[on].max(axis=0) > score * 255, np.array(scene["labels"])[on][best], 0)
    return {
        str(label): int(count) for label, count in enumerate(np.bincount(mask.ravel())) if label and count
    }


def dump(path, size="1200,3000"):
    """The page's elements after its scripts, as Chromium writes them."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", path.as_uri()]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        # Masks are drawn with the first frame. On a busy machine, the virtual time can end before it.
        if "data-areas" in done.stdout:
            break
    return done.stdout


def shown_areas(dom):
    return [json.loads(html.unescape(text)) for text in re.findall(r'data-areas="([^"]*)"', dom)]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_moving_the_slider_changes_the_masks_to_what_numpy_computes(scenes, tmp_path):
    assert shown_areas(dump(write(tmp_path, scenes))) == [areas_by_numpy(scene, 0.35) for scene in scenes]
    moved = """
    const slider = document.getElementById("explorer-score");
    slider.value = "0.62";
    slider.dispatchEvent(new Event("input"));
    """
    dom = dump(write(tmp_path, scenes, moved))
    expected = [areas_by_numpy(scene, 0.62) for scene in scenes]
    assert shown_areas(dom) == expected
    assert expected != [areas_by_numpy(scene, 0.35) for scene in scenes]
    assert expected[0].keys() == {"1", "3"}
    assert '<code id="explorer-command">--stage=cam --background=0.62</code>' in dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_class_that_is_switched_off_leaves_its_pixels_to_the_others(scenes, tmp_path):
    click = "document.querySelector('.explorer-class[value=\"3\"]').click();"
    dom = dump(write(tmp_path, scenes, click))
    assert shown_areas(dom) == [areas_by_numpy(scene, 0.35, off=(3,)) for scene in scenes]


def test_the_page_needs_nothing_from_outside_and_no_name_ends_its_script(scenes, tmp_path):
    text = write(tmp_path, scenes).read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|<link|src=\"(?!data:)", text)
    data = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', text, re.DOTALL)[1]
    assert json.loads(data)["names"]["2"] == "</script>"
    assert text.count("</script>") == 3, "the data, the program and the test's own"


def test_quantised_cams_are_those_of_the_grid_they_were_enlarged_from():
    grid = np.random.default_rng(1).random((4, 6), np.float32)
    enlarged = Image.fromarray(grid).resize((96, 64), Image.Resampling.BILINEAR)
    # At half-pixel places within the image, two neighbours' mean: off by at most a slope's share of a pixel.
    np.testing.assert_allclose(quantise(np.asarray(enlarged), (4, 6)) / 255, grid, atol=0.04)


def test_two_hundred_photographs_stay_below_30_megabytes():
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC))
    scene = explorer_scene("2007_000032", photo, {1: smooth(rng, 375, 500), 2: smooth(rng, 375, 500)}, 10.7)
    text = explorer_section([scene] * MAX_IMAGES, CLASSES, 0.4, "")
    assert len(text) < 30e6
