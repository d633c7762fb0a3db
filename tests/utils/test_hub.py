"""Models by name: huggingface_hub's real client against a small server on loopback."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from rml_jax.config import default_config
from rml_jax.training.workdir import record_start
from rml_jax.utils.hub import is_hub_name
from tests.e2e.runs import ROOT
from tests.utils.hub_server import COMMIT, HubServer

pytest.importorskip("huggingface_hub")

CARD = b"---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n"
FILES = {
    "README.md": CARD,
    "config.json": b'{"model_type": "segformer"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "tf_model.h5": b"not wanted",
}

FETCH = """
import json, sys
from rml_jax.utils.errors import UserError
from rml_jax.utils.hub import fetch
try:
    model = fetch(sys.argv[1])
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
print(json.dumps(model.as_json() | {"folder": str(model.folder)}))
"""


@pytest.fixture
def server():
    server = HubServer({"user/model": dict(FILES), "user/secret": dict(FILES)})
    server.private = {"user/secret"}
    yield server
    server.close()


@pytest.fixture
def fetch(server, tmp_path):
    """Returns a function (name, **environment) that fetches a model in a new process, as a command does.

    It gives the exit status, the content of what is printed and the lines on standard error.
    """

    def run(name, **environment):
        done = subprocess.run(
            [sys.executable, "-c", FETCH, name],
            cwd=ROOT,
            env={**client_environment(server, tmp_path), **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        errors = [line for line in done.stderr.splitlines() if line.startswith(f"{name}: ")]
        return done.returncode, json.loads(done.stdout or "null"), errors

    return run


def client_environment(server, folder):
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def test_fetches_what_is_needed_and_names_revision_and_licence(fetch, tmp_path):
    status, model, _ = fetch("user/model")
    assert status == 0
    assert (model["repository"], model["revision"], model["licence"]) == ("user/model", COMMIT, "apache-2.0")
    folder = tmp_path / "hf" / "hub" / "models--user--model" / "snapshots" / COMMIT
    assert model["folder"] == str(folder), "HF_HOME holds"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {name: data for name, data in FILES.items() if name != "tf_model.h5"}


def test_offline_takes_what_is_in_the_cache(fetch, server):
    status, _, errors = fetch("user/model", HF_HUB_OFFLINE="1")
    assert status == 2
    assert errors == [
        "user/model: not (or not whole) in huggingface_hub's cache, and HF_HUB_OFFLINE is set: expected a network "
        "connection"
    ]
    assert fetch("user/model")[0] == 0
    asked = len(server.requests)
    status, model, _ = fetch("user/model", HF_HUB_OFFLINE="1")
    assert (status, model["revision"]) == (0, COMMIT)
    assert len(server.requests) == asked


def test_an_interrupted_download_goes_on(fetch, server):
    server.interrupt = {"model.safetensors"}
    status, _, errors = fetch("user/model")
    assert status == 2
    assert len(errors) == 1
    assert "the same command goes on" in errors[0]
    server.interrupt = set()
    status, model, _ = fetch("user/model")
    assert status == 0
    with open(f"{model['folder']}/model.safetensors", "rb") as file:
        assert file.read() == FILES["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_wrong_hash_is_noticed_and_the_file_fetched_again(fetch, server, file):
    server.falsified = {file}
    status, _, errors = fetch("user/model")
    assert status == 2
    assert len(errors) == 1
    assert f"user/model: {file} has the" in errors[0]
    assert "it was deleted, run the command again" in errors[0]
    server.falsified = set()
    assert fetch("user/model")[0] == 0


def test_what_cannot_be_read_is_one_line(fetch, server):
    for name in ("user/secret", "user/nothing"):
        status, _, errors = fetch(name)
        assert status == 2
        assert len(errors) == 1
        assert "no such repository on the hub that can be read" in errors[0]
    assert fetch("user/secret", HF_TOKEN="hf_anything")[0] == 0
    status, _, errors = fetch("user/model@v9")
    assert status == 2
    assert errors[0].endswith(
        "the repository has no such revision: expected a branch, a tag or a commit behind @"
    )
    status, _, errors = fetch("user/model", HF_ENDPOINT="http://127.0.0.1:1")
    assert status == 2
    assert "the hub can't be reached" in errors[0]


def test_a_missing_extra_is_one_line(fetch, tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError\n")
    status, _, errors = fetch("user/model", PYTHONPATH=str(tmp_path))
    assert status == 2
    assert errors == [
        "user/model: no such file or folder here; a model on the Hugging Face hub needs huggingface_hub: pip install "
        "'rml_jax[hub]'"
    ]


BOTH_WAYS = """
import json, sys
import numpy as np
import rml_jax
from rml_jax.commands import export
from rml_jax.models import build
from rml_jax.models.weights import load_weights

local, out = sys.argv[1:]
image = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
export.main([f"--workdir={local}", f"--out={out}", "--format=safetensors", "--push=user/new", "--licence=mit"])
here, there = (rml_jax.load(name)(image) for name in (local, "user/new@main"))
np.testing.assert_array_equal(here.scores, there.scores)
np.testing.assert_array_equal(here.mask, there.mask)
_, params = build.build_graph(rml_jax.load(local).config)
_, report = load_weights(params, "user/new")
print(json.dumps([report.origin, str(report).splitlines()[0]]))
"""


def test_an_exported_model_goes_to_the_hub_and_comes_back(server, model_folder, tmp_path):
    environment = {**client_environment(server, tmp_path), "HF_TOKEN": "hf_anything"}
    command = [sys.executable, "-c", BOTH_WAYS, str(model_folder), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    files = server.repositories["user/new"]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "SHA256SUMS"}
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    header = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert header["library_name"] == "rml_jax"
    assert header["pipeline_tag"] == "image-segmentation"
    assert (header["license"], header["datasets"]) == ("mit", ["insects"])
    origin, line = json.loads(done.stdout.splitlines()[-1])
    assert origin == {"repository": "user/new", "revision": COMMIT, "licence": "mit"}
    assert line.startswith(f"user/new@{COMMIT} (licence: mit) (rml_jax layout): ")


def test_push_without_a_token_keeps_the_model(server, model_folder, tmp_path):
    code = "import sys, pathlib; from rml_jax.utils.hub import push; push(pathlib.Path(sys.argv[1]), 'user/x', '')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_folder)],
        cwd=ROOT,
        env=client_environment(server, tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stderr.splitlines()[-1].endswith(
        "--push=user/x: refused by the hub (401): expected HF_TOKEN of a user with the right to do this; "
        f"the model is in {model_folder}"
    )


def test_environment_json_names_the_weights(tmp_path):
    origin = {"repository": "user/new", "revision": COMMIT, "licence": "mit"}
    record_start(default_config(), tmp_path, origin)
    (start,) = json.loads((tmp_path / "environment.json").read_text())
    assert start["weights"] == origin


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("nvidia/mit-b1", True),
        ("nvidia/mit-b1@v1.0", True),
        ("user/model@refs/pr/1", True),
        ("mit-b1", False),
        ("weights/mit_b1.pth", False),
        ("runs/mine/checkpoints", False),
        ("/tmp/model", False),
        ("../model", False),
    ],
)
def test_names_of_the_hub_and_paths(name, is_one):
    assert is_hub_name(name) == is_one


def test_a_folder_that_is_there_is_no_name_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("runs/mine")
