"""The report: self-contained, escaped, complete, written in one step; and the table for a terminal."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tensorboardX import SummaryWriter

from configs import digits
from rml_jax import report
from rml_jax.commands.report import main, write_run_report
from rml_jax.config import save_config
from rml_jax.report import training
from rml_jax.report.scores import background_flags

CLASS_NAMES = ("cat", "<b>", "dog")
METRICS = {
    "dataset": "pets & co",
    "split": "val",
    "images": 12,
    "step": 300,
    "classification": {"f1": 0.9312, "map": 0.9567},
    "miou": {"predicted": {"cam": 0.4111, "par": 0.5222}, "given": {"cam": 0.6333, "par": 0.6044}},
    "iou": {
        "predicted": {
            "cam": {"background": 0.101, "cat": 0.102, "<b>": None, "dog": 0.103},
            "par": {"background": 0.771, "cat": 0.622, "<b>": None, "dog": 0.173},
        },
        "given": {
            "cam": {"background": 0.104, "cat": 0.105, "<b>": None, "dog": 0.106},
            "par": {"background": 0.107, "cat": 0.108, "<b>": None, "dog": 0.109},
        },
    },
    "background": {
        "predicted": {
            "cam": {"score": 0.25, "chosen_on": "fixed"},
            "par": {"score": 0.2, "chosen_on": "chosen on train (9 images)"},
        },
        "given": {
            "cam": {"score": 0.25, "chosen_on": "fixed"},
            "par": {"score": 0.3, "chosen_on": "chosen on train (9 images)"},
        },
    },
}


FIGURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def _sample(height=20, width=30, **changes):
    mask = np.zeros((height, width), np.uint8)
    mask[5:10, 5:10] = 1
    sample = report.Sample(
        id="scene <1>",
        image=np.full((height, width, 3), 90, np.uint8),
        tags=("cat", "<b>"),
        predicted_tags=("cat", "dog"),
        cam=np.full((height, width), 0.5),
        pseudo_label=mask,
        predictions={"cam": mask, "par": mask},
        ground_truth=mask,
        affinity=np.full((2, 3), 0.5),
        pixel=(4, 7),
    )
    return dataclasses.replace(sample, **changes)


@pytest.fixture
def page(tmp_path):
    return _write(tmp_path, [_sample()])


def _write(folder, samples):
    path = folder / "report.html"
    report.write_report(
        path,
        title="Pets <from> tags",
        facts={"backbone starts from": "scratch & noise"},
        metrics=METRICS,
        parts={"First <ones>": samples},
        figures={"a <chart>": FIGURE},
        class_names=CLASS_NAMES,
    )
    return path.read_text(encoding="utf-8")


def _pictures(page):
    uris = re.findall(r'src="data:image/(?:png|webp);base64,([^"]+)"', page)
    uris.remove(base64.b64encode(FIGURE).decode())
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def test_page_needs_nothing_from_outside(page):
    assert not re.search(r"https?://|url\(|@import|<link|<script", page)
    # Image, CAM, affinity, pseudo label, 2 stages, ground truth; and the chart.
    assert page.count("src=") - 1 == len(_pictures(page)) == 7


def test_every_element_is_closed_in_order(page):
    class Checker(HTMLParser):
        open_tags = ()

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                self.open_tags += (tag,)

        def handle_endtag(self, tag):
            assert self.open_tags[-1] == tag
            self.open_tags = self.open_tags[:-1]

    checker = Checker()
    checker.feed(page)
    assert not checker.open_tags


def test_foreign_text_is_escaped(page):
    assert "<b>" not in page
    assert "&lt;b&gt; (missed)" in page
    for text in ("Pets &lt;from&gt; tags", "scene &lt;1&gt;", "scratch &amp; noise", "pets &amp; co val"):
        assert text in page
    assert "First &lt;ones&gt;" in page
    assert "a &lt;chart&gt;" in page


def test_scores_stand_in_their_columns(page):
    assert '<th scope="row">cam</th><td>41.1</td><td>63.3</td><td>0.25, fixed</td>' in page
    best = '<th scope="row">par</th><td class="best">52.2</td><td>60.4</td>'
    assert f"{best}<td>0.2 and 0.3, chosen on train (9 images)</td>" in page
    assert "93.1" in page
    assert "95.7" in page


def test_class_scores_are_those_of_the_best_stage_with_predicted_tags(page):
    bars = re.findall(r'<td>([\d.]+)</td><td><div class="bar" style="width: ([\d.]+)%">', page)
    assert bars == [("77.1", "77.1"), ("62.2", "62.2"), ("17.3", "17.3")]
    assert page.count("not in the ground truth") == 1


def test_wrong_and_missed_tags_are_marked(page):
    given, predicted = re.search(r"tags given: (.*)<br>tags predicted: (.*)</p>", page).groups()
    assert given == 'cat, <span class="error">&lt;b&gt; (missed)</span>'
    assert predicted == 'cat, <span class="error">dog (wrong)</span>'


def test_tiny_pictures_stay_as_they_are_and_large_ones_are_reduced(tmp_path, page):
    assert {picture.size for picture in _pictures(page)} == {(30, 20)}
    assert page.count('class="pixelated"') == 7
    large = _write(tmp_path, [_sample(height=330, width=440)])
    assert {picture.size for picture in _pictures(large)} == {(220, 165)}
    assert 'class="pixelated"' not in large


def test_sample_without_tags_and_without_ground_truth(tmp_path):
    page = _write(tmp_path, [_sample(tags=(), predicted_tags=(), ground_truth=None)])
    assert "tags given: none<br>tags predicted: none" in page
    assert len(_pictures(page)) == 6


def test_sample_of_a_foreign_mask(tmp_path):
    page = _write(
        tmp_path,
        [
            _sample(
                cam=None,
                affinity=None,
                pseudo_label=None,
                predictions={"masks": np.zeros((20, 30), np.uint8)},
            )
        ],
    )
    assert len(_pictures(page)) == 3  # image, mask, ground truth


def test_page_replaces_the_old_one_and_leaves_no_temporary_file(tmp_path):
    (tmp_path / "report.html").write_text("old")
    assert _write(tmp_path, []) != "old"
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


def test_failed_report_leaves_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ValueError, match="shape"):
        _write(tmp_path, [_sample(cam=np.zeros((3, 3)))])
    assert (tmp_path / "report.html").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_score_table():
    lines = report.score_table(METRICS).splitlines()
    assert lines == [
        "pets & co val, 12 images, step 300 (scores in %)",
        "stage       mIoU predicted tags      mIoU given tags   background score",
        "cam                        41.1                 63.3   0.25, fixed",
        "par                        52.2                 60.4   0.2 and 0.3, chosen on train (9 images)",
        "classification F1 93.1, mAP 95.7",
    ]


def test_score_table_says_what_a_crf_adds():
    scores = {"cam": 0.41, "crf": 0.42, "par+crf": 0.6, "affinity": 0.5, "affinity+crf": 0.494}
    metrics = {**METRICS, "miou": {"given": scores}}
    metrics["background"] = {"given": {stage: {"score": 0.3, "chosen_on": "fixed"} for stage in scores}}
    found = {
        line.split("   ")[0].strip(): line.split("   0.3")[0].split()[1:]
        for line in report.score_table(metrics).splitlines()[2:-1]
    }
    assert found == {
        "cam": ["41.0"],
        "crf": ["42.0", "(+1.0)"],
        "par+crf": ["60.0"],
        "affinity": ["50.0"],
        "affinity+crf": ["49.4", "(-0.6)"],
    }


def test_flags_give_predict_the_chosen_scores():
    chosen = "chosen on train (9 images, by contrast)"
    scores = {"cam": 0.8, "par+crf": 0.75}
    metrics = METRICS | {
        "background": {
            "predicted": {stage: {"score": score, "chosen_on": chosen} for stage, score in scores.items()},
            "given": {stage: {"score": 0.1, "chosen_on": chosen} for stage in scores},
        },
    }
    flags = "--stage=cam --background=0.8, or --stage=par+crf --background=0.75"
    assert background_flags(metrics) == f"to predict with the chosen scores: {flags}"
    for stage in metrics["background"]["predicted"].values():
        stage["region_contrast"] = 10.0
    flags = flags.replace(",", " --region_contrast=10,") + " --region_contrast=10"
    assert background_flags(metrics) == f"to predict with the chosen scores: {flags}"
    for stage in metrics["background"]["predicted"].values():
        stage["chosen_on"] = "fixed"
    assert background_flags(metrics) == background_flags({"miou": {}}) == ""


def test_score_table_of_a_folder_of_masks():
    metrics = {
        "dataset": "pets",
        "split": "val",
        "images": 2,
        "masks": "theirs",
        "miou": {"files": {"masks": 0.5}},
    }
    assert report.score_table(metrics).splitlines() == [
        "pets val, 2 images, masks theirs (scores in %)",
        "stage         mIoU of the files",
        "masks                      50.0",
    ]


def test_class_table():
    lines = report.class_table(METRICS).splitlines()
    assert lines[0] == "pets & co val, 12 images, step 300"
    assert (
        lines[2]
        == "| IoU, % | predicted tags: cam | predicted tags: par | given tags: cam | given tags: par |"
    )
    swept = "{}, chosen on train (9 images)".format
    assert f"| background score | 0.25, fixed | {swept(0.2)} | 0.25, fixed | {swept(0.3)} |" in lines
    assert "| cat | 10.2 | 62.2 | 10.5 | 10.8 |" in lines
    assert "| <b> | absent | absent | absent | absent |" in lines
    assert lines[-1] == "| **mean** | **41.1** | **52.2** | **63.3** | **60.4** |"


# --- The page of a whole run ---


def _log(folder, steps, value, name="host"):
    """Writes TensorBoard files as the loop does: scalars and a row of two CAMs at every step."""
    with SummaryWriter(str(folder), filename_suffix=name) as writer:
        for step in steps:
            writer.add_scalar("train/loss", value + step, step)
            writer.add_scalar("train/gradient_norm", 1.0, step)
            row = np.full((130, 264, 3), step % 256, np.uint8)
            writer.add_image("cams", row, step, dataformats="HWC")
            writer.add_image("images", row, step, dataformats="HWC")


@pytest.fixture
def run(tmp_path):
    """Work directory of a run that has left everything."""
    save_config(digits.get_config(), tmp_path / "config.json")
    _log(tmp_path, range(10, 210, 10), 0.5)
    (tmp_path / "eval").mkdir()
    _write(tmp_path / "eval", [_sample()])
    return tmp_path


def test_run_s_page_has_every_part_and_needs_nothing_from_outside(run, capsys):
    main([f"--workdir={run}"])
    assert capsys.readouterr().out.startswith(f"report: {run / 'report.html'} (0.")
    page = (run / "report.html").read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Scores",
        "IoU by class",
        "Training",
        "The CAMs over training",
        "How to read the images",
        "First &lt;ones&gt;",
        "Configuration",
    ]
    assert not re.search(r"src=\"(?!data:)|@import|<link|<script|url\((?!#)", page)
    # Addresses only as names of XML vocabularies, which no browser opens.
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert re.findall(r"<figcaption>CAMs at step (\d+)", page) == ["10", "50", "90", "120", "160", "200"]
    assert '<th scope="row">model.variant</th><td class="changed">&#x27;mini&#x27;</td>' in page
    assert '<th scope="row">loss.ciml</th><td>0.1</td>' in page


def test_run_s_page_says_what_is_missing(tmp_path):
    save_config(digits.get_config(), tmp_path / "config.json")
    write_run_report(tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in (f"rml-jax eval --workdir={tmp_path}", "no TensorBoard files", "config.log.pictures_every"):
        assert text in page


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (lambda run: (run / "eval" / "report.json").write_text("{"), "report.json"),
        (lambda run: (run / "report.html").mkdir(), "--out="),
    ],
)
def test_run_s_page_that_cannot_be_made(run, spoil, words, capsys):
    spoil(run)
    with pytest.raises(SystemExit) as stopped:
        main([f"--workdir={run}"])
    assert stopped.value.code == 2
    assert re.fullmatch(rf"error: .*{words}.*\n", capsys.readouterr().err)


def test_events_of_a_resumed_run(tmp_path):
    _log(tmp_path, [10, 20, 30], 0.5)
    first = next(tmp_path.iterdir())
    first.rename(tmp_path / "events.out.tfevents.5.host")
    _log(tmp_path, [20, 40], 100.0)
    scalars, pictures = training.read_events(tmp_path)
    assert scalars["train/loss"] == {10: 10.5, 20: 120.0, 30: 30.5, 40: 140.0}
    assert list(pictures["cams"]) == [10, 20, 30, 40]
    assert np.asarray(Image.open(io.BytesIO(pictures["cams"][40]))).max() == 40


def test_events_of_a_run_in_progress_are_read_up_to_the_last_whole_one(tmp_path):
    _log(tmp_path, [10, 20], 0.0)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-7])
    scalars, pictures = training.read_events(tmp_path)
    assert scalars["train/loss"] == {10: 10.0, 20: 20.0}
    assert list(pictures["images"]) == [10]


def test_long_curves_are_thinned_by_means():
    steps, values = training._thinned({step: float(step % 2) for step in range(1, 1201)})
    assert len(steps) == len(values) == 300
    assert steps[-1] == 1200
    np.testing.assert_allclose(values, 0.5)
