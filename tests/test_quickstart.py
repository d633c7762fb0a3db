"""The notebook docs/quickstart.ipynb runs from top to bottom."""

import base64
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

import rml_jax

ROOT = Path(rml_jax.__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_no_outputs_are_committed():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(notebook, timeout=3600, **options).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in images]
    # Six rows of three images, enlarged to 144 pixels with gaps of 4; and the prediction.
    assert sizes == [(3 * 144 + 2 * 4, 6 * 144 + 5 * 4), (192, 192)]
    assert "model.safetensors" in outputs[-1].data["text/plain"]
