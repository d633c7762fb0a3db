"""Exports: read back by others, compared with the live model, refused where they were changed."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import rml_jax
from rml_jax.commands import export as command
from rml_jax.inference.export import verify, weights
from rml_jax.inference.export.card import model_card
from rml_jax.inference.export.checksums import write_sums
from rml_jax.utils.errors import UserError
from rml_jax.utils.trees import named_leaves
from tests.conftest import INSECTS as CLASSES


@pytest.fixture(scope="module")
def stablehlo(model_folder, tmp_path_factory):
    """The exported folder and its differences from the live model."""
    out = tmp_path_factory.mktemp("export") / "stablehlo"
    return out, command.export(model_folder, out, "stablehlo")


# --- safetensors ---


def test_weights_come_back_to_the_bit(network, model_folder, tmp_path):
    differences = command.export(model_folder, tmp_path / "again", "safetensors")
    assert differences == {"scores": 0, "cams": 0, "mask": 0}
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {"model.safetensors", "config.json", "SHA256SUMS", "MODEL_CARD.md"}
    from rml_jax.inference.predictor import load_model

    config, params, step = load_model(tmp_path / "again" / "model.safetensors")
    assert step == 7
    assert config.to_dict() == network[0].to_dict()
    for name, leaf in named_leaves(network[1]).items():
        np.testing.assert_array_equal(named_leaves(params)[name], leaf)


def test_exported_weights_are_read_without_orbax(model_folder):
    program = (
        "import sys; sys.modules['orbax'] = sys.modules['orbax.checkpoint'] = None\n"
        f"import rml_jax; print(rml_jax.load({str(model_folder)!r}).classes)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == f"{CLASSES}\n", done.stderr


def copy(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("model.safetensors", flip_a_bit, "changed or cut short"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9]), "changed or cut short"),
        ("config.json", lambda path: path.write_text(path.read_text() + " "), "changed or cut short"),
        ("config.json", lambda path: path.unlink(), "No such file"),
        ("SHA256SUMS", lambda path: path.unlink(), "No such file"),
        ("SHA256SUMS", lambda path: path.write_text(""), "no line for model.safetensors"),
    ],
)
def test_a_damaged_export_is_refused(model_folder, tmp_path, name, spoil, words):
    folder = copy(model_folder, tmp_path / "damaged")
    spoil(folder / name)
    with pytest.raises(UserError, match=words) as caught:
        rml_jax.load(folder)
    assert str(folder) in str(caught.value)


# --- StableHLO ---

PROGRAM = """
import sys
for name in ("flax", "rml_jax", "orbax", "optax"):
    sys.modules[name] = None
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1] + "/model.stablehlo", "rb").read()))
for number in range(2):
    images = np.load(f"{sys.argv[2]}/{number}.npy")
    np.savez(f"{sys.argv[2]}/{number}.npz", **program.call(images))
print(program.platforms)
"""


def test_program_runs_with_jax_alone(stablehlo, model_folder, noise, tmp_path):
    """Two batches and sizes, neither a multiple of anything, beside the predictor."""
    batches = [np.stack([noise(31, 45)]), np.stack([noise(29, 32, 1), noise(29, 32, 2)])]
    for number, images in enumerate(batches):
        np.save(tmp_path / f"{number}.npy", images)
    command = [sys.executable, "-c", f"import jax.export\n{PROGRAM}", str(stablehlo[0]), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "('cpu', 'cuda', 'tpu')"
    live = rml_jax.load(model_folder, stage="cam")
    for number, images in enumerate(batches):
        found = np.load(tmp_path / f"{number}.npz")
        for image, logits, cams, mask in zip(
            images, found["logits"], found["cams"], found["mask"], strict=True
        ):
            everything = live(image, tags=CLASSES)
            np.testing.assert_allclose(jax.nn.sigmoid(logits), everything.scores, atol=1e-5)
            np.testing.assert_allclose(cams, everything.cams, atol=1e-4)
            assert np.mean(mask != live(image).mask) < 0.002


def test_what_is_in_the_folder(stablehlo):
    out, differences = stablehlo
    assert {path.name for path in out.iterdir()} == {
        "model.stablehlo",
        "model.json",
        "SHA256SUMS",
        "MODEL_CARD.md",
    }
    assert differences.keys() == {"scores", "cams", "mask"}
    assert max(differences.values()) < 1e-3
    description = json.loads((out / "model.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["input"]["shape"] == ["batch", "height", "width", 3]
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_changed_program_is_refused(stablehlo, tmp_path):
    from rml_jax.inference.export.stablehlo import read_program

    folder = copy(stablehlo[0], tmp_path / "damaged")
    flip_a_bit(folder / "model.stablehlo")
    with pytest.raises(UserError, match="changed or cut short"):
        read_program(folder)


# --- ONNX ---


@pytest.mark.filterwarnings("ignore:'.value' access is now deprecated:DeprecationWarning")  # In jax2onnx.
@pytest.mark.parametrize("settings", [{}, {"pooling": "average"}, {"center_radius": 2}], ids=str)
def test_onnx(network, noise, tmp_path, settings):
    """Any number of pictures in onnxruntime; needs jax2onnx, see docs/inference.md."""
    pytest.importorskip("jax2onnx")
    from rml_jax.inference.export.onnx import read_program

    config = network[0].copy_and_resolve_references()
    config.model.update(settings)
    folder, out = tmp_path / "model", tmp_path / "onnx"
    folder.mkdir()
    weights.write_model(folder, config, network[1], step=7)
    write_sums(folder, weights.FILES)
    assert max(command.export(folder, out, "onnx").values()) < 1e-3
    run = read_program(out)
    live = rml_jax.load(folder, stage="cam")
    for count in (1, 3):
        images = np.stack([noise(32, 48, seed) for seed in range(count)])
        for image, cams in zip(images, run(images)["cams"], strict=True):
            np.testing.assert_allclose(cams, live(image, tags=CLASSES).cams, atol=1e-4)


def test_onnx_without_jax2onnx(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs jax2onnx and onnxruntime .*docs/inference\.md"):
        command.export(model_folder, tmp_path / "onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


# --- All ---


def test_an_export_that_differs_leaves_nothing(model_folder, tmp_path, monkeypatch):
    def other(predictor, pictures):
        outputs = _predict_all(predictor, pictures)
        return outputs | {"scores": np.asarray(outputs["scores"]) + 0.01}

    _predict_all = command._predict_all
    monkeypatch.setattr(command, "_predict_all", other)
    with pytest.raises(UserError, match=r"scores differ from the live model's by 0\.01"):
        command.export(model_folder, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_a_difference(model_folder):
    live = rml_jax.load(model_folder, stage="cam")

    def broken(pictures):
        batch = len(pictures)
        cams = np.full((batch, 32, 32, 3), np.nan)
        return {"scores": np.full((batch, 3), np.nan), "cams": cams, "mask": np.zeros((batch, 32, 32))}

    with pytest.raises(UserError, match="scores differ from the live model's by nan"):
        verify.verify(live, broken, [(32, 32)])


@pytest.mark.parametrize("number", range(8))
def test_an_export_that_is_wrong_in_one_kind_of_image_is_noticed(live_outputs, number):
    """Noise, photographs, all 0, all 255, single pixels and a border: each is compared, and so is each output."""
    live, right = live_outputs
    assert max(verify.verify(live, lambda _: right, [(32, 48)]).values()) == 0
    for name, change in (("scores", 0.01), ("cams", 0.01), ("mask", 1)):
        wrong = {key: value.copy() for key, value in right.items()}
        wrong[name][number] += np.asarray(change, wrong[name].dtype)
        if name == "mask":
            wrong[name] %= 1 + len(CLASSES)
        with pytest.raises(UserError, match=f"{name} differ"):
            verify.verify(live, lambda _, wrong=wrong: wrong, [(32, 48)])


@pytest.fixture(scope="module")
def live_outputs(model_folder):
    """The live model, each of its answers computed once, and its outputs for the images of `verify`."""
    live = rml_jax.load(model_folder, stage="cam")
    known = {}

    def remembered(image, tags=None):
        key = image.tobytes(), tags if tags is None else tuple(tags)
        if key not in known:
            known[key] = live(image, tags=tags)
        return known[key]

    remembered.classes, remembered.settings = live.classes, live.settings
    outputs = command._predict_all(remembered, verify.sample_images((32, 48)))
    return remembered, {name: np.stack(values) for name, values in outputs.items()}


def test_pixels_whose_scores_tie_may_get_either_label():
    cams = np.float32([[[0.9, 0.9, 0.0], [0.9, 0.5, 0.0], [0.4, 0.4, 0.0]]])
    expected = np.uint8([[1, 1, 0]])
    np.testing.assert_array_equal(verify._differs(np.uint8([[2, 2, 1]]), expected, cams, 0.4), [[0, 1, 0]])


def test_command_line(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    command.main([f"--workdir={model_folder}", f"--out={out}", "--format=safetensors"])
    printed = capsys.readouterr().out
    assert "largest differences from the live model:" in printed
    assert printed.endswith(f"written: {out}\n")
    with pytest.raises(SystemExit) as left:
        command.main([f"--workdir={model_folder}", f"--out={out}", "--format=safetensors"])
    assert left.value.code == 2
    assert "expected the name of a new folder" in capsys.readouterr().err


def card_licence(card):
    return card.partition("## Licence of the training data\n\n")[2].strip()


def test_card(network):
    config = network[0]
    metrics = {
        "dataset": "insects",
        "split": "val",
        "images": 12,
        "step": 7,
        "miou": {"predicted": {"cam": 0.5, "par": 0.625}, "given": {"cam": 0.55, "par": 0.75}},
    }
    differences = {"scores": 1e-6, "cams": 2e-6, "mask": 0.0}
    card = model_card(config, 7, metrics, differences, "A program.")
    assert "| stage | predicted tags | given tags |\n|---|---|---|\n| cam | 50.0 | 55.0 |\n" in card
    assert "| par | 62.5 | 75.0 |" in card
    assert "12 images, step 7." in card
    assert "ant, bee, cow" in card
    assert "To be filled in" in card, "terms of one's own photographs are not known"
    config = config.copy_and_resolve_references()
    config.data.source = "registered elsewhere"
    assert card_licence(model_card(config, 7, None, differences, "")) == "None stated."
    assert "not the exported step 8" in model_card(config, 8, metrics, differences, "")
    assert "Not scored" in model_card(config, 7, None, differences, "")
