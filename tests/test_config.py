"""Configurations: files round trip, checks name the key, sizes that the network cannot take are refused."""

import inspect
import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from ml_collections import ConfigDict

import rml_jax
from rml_jax.config import config_difference, default_config, flatten, load_config, save_config
from rml_jax.losses import term_weights
from rml_jax.models import BACKBONES
from rml_jax.utils.errors import UserError
from rml_jax.validate import check_config
from rml_jax.variants import CHANGES

FOLDER = Path(rml_jax.__file__).parents[1] / "configs"
FILES = sorted(path.name for path in FOLDER.glob("*.py"))
CASES = [*FILES, "digits.py:baseline", "folder.py:small", "folder.py:surface"]
# The rows of the paper's ablations.
VARIANT_CASES = [
    f"{file}:{variant}"
    for file in (
        "digits.py",
        "digits_small.py",
        "voc_animals.py",
        "voc_animals_pretrained.py",
        "voc.py",
        "coco.py",
    )
    for variant in CHANGES
]


def config_of(name):
    """The configuration of FILE or FILE:VARIANT, as on the command line."""
    file, _, variant = name.partition(":")
    get_config = runpy.run_path(FOLDER / file)["get_config"]
    return get_config(variant) if variant else get_config()


@pytest.fixture
def config():
    return config_of("digits.py")


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Files ---


def test_there_are_configs():
    assert {"digits.py", "voc_animals.py"} <= set(FILES)


@pytest.mark.parametrize("name", [*CASES, *VARIANT_CASES])
def test_config_passes_the_checks(name):
    check_config(config_of(name))


def test_a_folder_has_three_variants():
    assert config_of("folder.py:small").model.variant == "b0"
    surface, steel = config_of("folder.py:surface"), config_of("neu_seg.py")
    assert (surface.data.source, surface.data.class_names) == ("folder", ())
    for group in ("augment", "loss", "model", "optimizer", "train"):
        assert surface[group].to_dict() == steel[group].to_dict()
    with pytest.raises(
        UserError, match="'tiny' of the configuration folder, expected full, small or surface"
    ):
        config_of("folder.py:tiny")


def test_an_unknown_variant_is_named():
    assert "'half'" in error_of(config_of, "voc.py:half")


def test_the_baseline_is_classification_alone():
    for file in ("digits.py", "coco.py"):
        config = config_of(f"{file}:baseline")
        assert config.loss.ciml == config.loss.mfml == config.loss.apml == 0
        assert config.loss.start_step == config.train.steps


@pytest.mark.parametrize("name", CASES)
def test_config_comes_back_from_its_file(name, tmp_path):
    config = config_of(name)
    save_config(config, tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    loaded = load_config(tmp_path / "config.json")
    expected, found = flatten(config.to_dict()), flatten(loaded.to_dict())
    assert found == expected
    assert {key: type(value) for key, value in found.items()} == {key: type(v) for key, v in expected.items()}
    assert all(type(canvas) is tuple for canvas in loaded.eval.canvases)
    assert config_difference(config, loaded) == {}
    check_config(loaded)
    with pytest.raises(AttributeError):
        loaded.train.stepz = 5


def test_defaults_are_the_papers_for_voc():
    config = default_config()
    assert (config.train.steps, config.loss.start_step, config.train.crop_size) == (18000, 2000, 320)
    assert (config.optimizer.backbone_lr, config.optimizer.head_lr) == (6e-5, 6e-4)
    assert (config.optimizer.warmup_steps, config.optimizer.weight_decay) == (1500, 0.01)
    assert (config.loss.ciml, config.loss.mfml, config.loss.apml, config.loss.alpha) == (0.1, 0.1, 0.1, 0.1)
    assert (config.pseudo_label.high, config.pseudo_label.low) == (0.55, 0.35)
    assert tuple(config.cam.scales) == (0.5, 1.0, 1.5)


def test_weights_of_the_terms_are_the_papers():
    assert term_weights(default_config().loss) == {
        "classification": 1.0,
        "ciml": 0.1,
        "mfml": 0.1,
        "apml": 0.1,
        "self_training": 0.0,  # not in the paper
    }
    loss = default_config().loss
    assert (loss.alpha, loss.affinity, loss.beta1, loss.beta2) == (0.1, 1.0, 1.0, 1.0)


def test_every_key_has_a_comment():
    lines = inspect.getsource(default_config).splitlines()
    above = ["", *lines[:-1]]
    for line, before in zip(lines, above, strict=True):
        if re.match(r"    \w+\.\w+ = (?!\w+ = ConfigDict)", line):
            assert "  # " in line or before.strip().startswith("# "), line


def test_file_without_a_newer_key_gets_its_default(tmp_path, config):
    path = tmp_path / "config.json"
    save_config(config, path)
    values = json.loads(path.read_text())
    del values["eval"]["pictures"], values["cam"], values["checksum"]
    path.write_text(json.dumps(values))
    loaded = load_config(path)
    assert loaded.eval.pictures == 8
    assert loaded.cam.scales == (0.5, 1.0, 1.5)
    assert loaded.train.steps == config.train.steps


def test_a_changed_byte_in_the_file_changes_no_value(tmp_path, config):
    path = tmp_path / "config.json"
    save_config(config, path)
    sound, expected = path.read_bytes(), config.to_dict()
    refused = []
    for place in range(0, len(sound), 5):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        try:
            assert load_config(path).to_dict() == expected, place
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 500
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in refused)


def test_a_digit_that_changed_is_found(tmp_path, config):
    path = tmp_path / "config.json"
    save_config(config, path)
    text = path.read_text()
    assert '"pictures": 8' in text
    path.write_text(text.replace('"pictures": 8', '"pictures": 9'))
    assert re.fullmatch(
        rf"{re.escape(str(path))}: found checksum \d+, expected \d+: the file was changed .* its line \"checksum\"",
        error_of(load_config, path),
    )
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"checksum"' not in line))
    assert load_config(path).eval.pictures == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": {"stepz": 3}}', "unknown key 'train.stepz'"),
        ('{"train": 3}', "unknown key 'train'"),
        ('{"train": {"steps": {"first": 3}}}', "unknown key 'train.steps.first'"),
        ('{"train": {"steps": 3', "no valid JSON"),
        ("", "no valid JSON"),
        ('\ufeff{"train": {"steps": 3}}', "no valid JSON"),
        ("[1, 2]", "no JSON object"),
        ("3", "no JSON object"),
        ('{"train": {"steps": "many"}}', "train.steps is 'many', expected a value of another type"),
        ('{"cam": {"scales": 1.0}}', "cam.scales is 1.0, expected a value of another type"),
    ],
)
def test_file_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    found = error_of(load_config, path)
    assert found.startswith(f"{path}: ")
    assert message in found


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert error_of(load_config, path).startswith(f"{path}: no valid JSON")


def test_missing_file(tmp_path):
    path = tmp_path / "config.json"
    assert error_of(load_config, path).startswith(f"{path}: No such file")


def test_difference_names_the_keys(config):
    other = config_of("digits.py")
    assert config_difference(config, other) == {}
    config.train.steps, other.train.steps = 700, 5
    config.eval.background.cam, other.eval.background.cam = 0.25, 0.5
    config.eval.canvases, other.eval.canvases = ((64, 64),), ((64, 64), (32, 64))
    with other.unlocked():
        other.train.momentum = 0.9
    assert config_difference(config, other) == {
        "train.steps": (700, 5),
        "eval.background.cam": (0.25, 0.5),
        "eval.canvases": ([[64, 64]], [[64, 64], [32, 64]]),
        "train.momentum": (None, 0.9),
    }


# --- Checks ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "cityscapes"),
        ("data.class_names", ()),
        ("data.class_names", ("0", "1")),
        ("data.seed", -1),
        ("data.workers", -1),
        ("data.scene.digits", (0, 1)),
        ("data.scene.digits", (2, 1)),
        ("data.scene.digits", (1, 2, 3)),
        ("data.scene.digits", (1, 1.5)),
        ("data.scene.digit_size", (30, 20)),
        ("data.scene.digit_size", (0, 20)),
        ("data.scene.digit_size", (20,)),
        ("data.scene.background_brightness", -0.1),
        ("augment.scale", (0.0, 1.0)),
        ("augment.scale", (2.0, 1.0)),
        ("augment.scale", (1.0,)),
        ("augment.scale", (1.0, float("inf"))),
        ("augment.scale", ("a", "b")),
        ("model.variant", "b6"),
        ("model.pooling", "sum"),
        ("model.dtype", "float16"),
        ("model.drop_path_rate", 1.0),
        ("model.drop_path_rate", -0.1),
        ("model.context_channels", 0),
        ("model.center_radius", -1),
        ("affine.scale", (1.0, 0.5)),
        ("affine.scale", (0.0, 0.5)),
        ("affine.rotation", -1.0),
        ("affine.rotation", float("nan")),
        ("affine.translation", -0.1),
        ("affine.flip", 1.1),
        ("cam.scales", ()),
        ("cam.scales", (1.0, 0.0)),
        ("cam.scales", (float("inf"),)),
        ("cam.scales", ("1",)),
        ("pseudo_label.low", 0.9),
        ("pseudo_label.low", float("nan")),
        ("pseudo_label.slots", 0),
        ("pseudo_label.iterations", -1),
        ("pseudo_label.dilations", ()),
        ("pseudo_label.dilations", (1, 0)),
        ("pseudo_label.dilations", (1, 2.5)),
        ("loss.ciml", -0.1),
        ("loss.mfml", -0.1),
        ("loss.apml", -0.1),
        ("loss.alpha", -0.1),
        ("loss.beta1", -0.1),
        ("loss.beta2", -0.1),
        ("loss.self_training", -0.1),
        ("loss.radius", -1),
        ("loss.start_step", -1),
        ("optimizer.backbone_lr", -1e-3),
        ("optimizer.head_lr", float("nan")),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.warmup_steps", -1),
        ("optimizer.freeze_norms", "sometimes"),
        ("train.steps", 0),
        ("train.batch_size", 0),
        ("train.crop_size", 0),
        ("train.join", -0.1),
        ("train.join", 1.0),
        ("train.seed", -1),
        ("train.seed", 2**32),
        ("checkpoint.every", 0),
        ("checkpoint.keep", 0),
        ("checkpoint.best_metric", "equivariance"),
        ("log.every", 0),
        ("log.pictures_every", -1),
        ("eval.canvases", ()),
        ("eval.canvases", ((64,),)),
        ("eval.canvases", (64, 64)),
        ("eval.canvases", ((64, 0),)),
        ("eval.canvases", ((64, 64.5),)),
        ("eval.batch_size", 0),
        ("eval.stages", ()),
        ("eval.stages", ("cam", "crt")),
        ("eval.stages", ("crf+crf",)),
        ("eval.stages", ("crf", "cam+crf")),
        ("eval.protocols", ()),
        ("eval.protocols", ("given", "ours")),
        ("eval.crf", "mine"),
        ("eval.checkpoint", "latest"),
        ("eval.sweep.grid", ()),
        ("eval.sweep.images", -1),
        ("eval.background.par", -0.1),
        ("eval.pictures", -1),
    ],
)
def test_bad_value_is_named(config, key, value):
    check_config(config)
    config.update_from_flattened_dict({key: value})
    message = error_of(check_config, config)
    assert message.startswith(f"config.{key} is {value!r}: expected ")


@pytest.mark.parametrize(("share", "parts", "least"), [(0.5, 4, 8), (0.1, 1, 10)])
def test_a_batch_too_small_for_a_joined_image_is_refused(config, share, parts, least):
    config.update_from_flattened_dict(
        {"train.join": share, "train.batch_size": 4, "train.grad_accum_steps": parts}
    )
    expected = f"expected at least {least}, one joined image in each part, with train.join {share}"
    assert error_of(check_config, config) == f"config.train.batch_size is 4: {expected}"
    config.train.batch_size = least
    check_config(config)


def test_average_of_centred_features_is_refused(config):
    config.model.center_radius = 4
    check_config(config)
    config.model.pooling = "average"
    message = error_of(check_config, config)
    assert message == "config.model.pooling is 'average': expected max with model.center_radius"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.start_step", 0),
        ("loss.radius", 0),
        ("optimizer.warmup_steps", 0),
        ("optimizer.backbone_lr", 0.0),
        ("log.pictures_every", 0),
        ("eval.pictures", 0),
        ("eval.stages", ("par",)),
        ("eval.stages", ("cam+crf", "affinity+par+crf", "crf+par")),
        ("eval.protocols", ("given",)),
        ("pseudo_label.iterations", 0),
        ("train.seed", 2**32 - 1),
        ("data.scene.digits", (1, 1)),
        ("augment.scale", (1.0, 1.0)),
    ],
)
def test_value_at_the_edge_passes(config, key, value):
    config.update_from_flattened_dict({key: value})
    check_config(config)


def test_equal_thresholds_pass(config):
    config.pseudo_label.low = config.pseudo_label.high
    check_config(config)


@pytest.mark.parametrize("names", [(), ("cat", "dog", "cat"), ("cat", "Background"), (1, 2)])
def test_class_names(names):
    config = config_of("voc_animals.py")
    config.data.class_names = names
    assert error_of(check_config, config).startswith("config.data.class_names")


def test_stage_without_a_background_score(config):
    config.eval.background = ConfigDict({"cam": 0.3, "affinity": 0.2})
    check_config(config)  # `par` uses the score of `cam`.
    config.eval.background = ConfigDict({"affinity": 0.2, "par": 0.3})
    assert error_of(check_config, config).startswith("config.eval.background.cam is None: expected ")
    config.eval.stages = ("par", "affinity")
    check_config(config)


# --- Smallest images ---


def keys_per_stage(variant, side):
    """How many keys the attention of each stage has on an image of that height, by the network itself."""
    backbone = BACKBONES[variant](depths=(1, 1, 1, 2))
    graph, state = nnx.split(nnx.eval_shape(lambda: backbone.build(rngs=nnx.Rngs(0))))
    counts = []

    def call(state, x):
        for stage in nnx.merge(graph, state).stages:
            x, logits = stage(x, [None] * len(stage.blocks))
            counts.append(logits[0].shape[-1])

    jax.eval_shape(call, state, jax.ShapeDtypeStruct((1, side, 96, 3), jnp.float32))
    return counts


@pytest.mark.parametrize(("variant", "smallest"), [("mini", 7), ("b0", 29)])
def test_smallest_side_leaves_every_attention_a_key(variant, smallest):
    assert BACKBONES[variant]().smallest_side == smallest
    assert min(keys_per_stage(variant, smallest)) > 0
    assert min(keys_per_stage(variant, smallest - 1)) == 0


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5", "mini"])
def test_smallest_side_does_not_depend_on_width_and_depth(variant):
    assert BACKBONES[variant]().smallest_side == (7 if variant == "mini" else 29)


@pytest.mark.parametrize(
    ("variant", "scales", "smallest"),
    [("mini", (1.0,), 7), ("mini", (0.5, 1.0), 14), ("mini", (2.0,), 7), ("b1", (0.5, 1.0, 1.5), 58)],
)
def test_smallest_crop_and_canvas(config, variant, scales, smallest):
    config.model.variant, config.cam.scales = variant, scales
    for key, good, bad in (
        ("train.crop_size", smallest, smallest - 1),
        ("eval.canvases", ((96, 96), (96, smallest)), ((96, 96), (96, smallest - 1))),
    ):
        config.update_from_flattened_dict({key: good})
        check_config(config)
        wrong = config.copy_and_resolve_references()
        wrong.update_from_flattened_dict({key: bad})
        message = error_of(check_config, wrong)
        assert message.startswith(
            f"config.{key} is {bad!r}: expected sides of {7 if variant == 'mini' else 29}"
        )
        assert variant in message
