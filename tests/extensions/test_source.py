"""A data layout from outside the package: trained on, scored and exported."""

import json

import jax
import numpy as np
import pytest

import rml_jax
from rml_jax.commands.export import export
from rml_jax.config import default_config
from rml_jax.data.sources import SOURCES, DataLayout
from rml_jax.report.evaluation import evaluate_run
from rml_jax.training.loop import train
from rml_jax.utils.errors import UserError


class Squares(list):
    class_names = ("red", "green")

    def __init__(self, split, with_masks):
        rng = np.random.default_rng(len(split))
        for number in range(4):
            item = {"id": f"{split}{number}", "image": rng.integers(0, 90, (40, 40, 3)).astype(np.uint8)}
            item["image"][8:32, 8:32, number % 2] = 255
            item["tags"] = np.eye(2, dtype=np.float32)[number % 2]
            mask = np.pad(np.full((24, 24), number % 2 + 1, np.uint8), 8)
            self.append(item | ({"mask": mask} if with_masks else {}))


LAYOUT = DataLayout(
    make=lambda data, split, with_masks: Squares(split, with_masks),
    find_classes=lambda data: Squares.class_names,
    licence="Drawn for this test: CC0.",
)


def test_a_layout_from_outside_is_trained_on_scored_and_exported(tmp_path, monkeypatch):
    config = default_config()
    config.data.name = config.data.source = "squares"
    config.model.variant = "mini"
    config.cam.scales, config.cam.flip = (1.0,), False
    config.train.steps, config.train.batch_size, config.train.crop_size = 2, 2, 32
    config.loss.start_step, config.log.pictures_every, config.eval.canvases = 1, 0, ((40, 40),)
    config.eval.stages = ("cam",)
    config.pseudo_label.slots, config.pseudo_label.dilations = 2, (1, 2)
    with pytest.raises(UserError, match=r"^config\.data\.source is 'squares': expected one of digits, "):
        train(config, tmp_path / "refused")  # Before anything is trained.
    monkeypatch.setitem(SOURCES, "squares", LAYOUT)
    state = train(config, tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    config.data.class_names = Squares.class_names
    metrics, _ = evaluate_run(config, tmp_path / "run", "val")
    assert set(metrics["iou"]["given"]["cam"]) == {"background", "red", "green"}
    for name, licence in (("known", LAYOUT.licence), ("unknown", "None stated.")):
        export(tmp_path / "run", tmp_path / name, "safetensors")
        assert (tmp_path / name / "MODEL_CARD.md").read_text().endswith(f"training data\n\n{licence}\n")
        assert json.loads((tmp_path / name / "config.json").read_text())["data"]["source"] == "squares"
        assert rml_jax.load(tmp_path / name).classes == Squares.class_names
        monkeypatch.delitem(SOURCES, "squares", raising=False)
