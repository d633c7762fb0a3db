"""Export of weights as safetensors, with the configuration as JSON."""

from safetensors import SafetensorError, safe_open

from rml_jax.config import load_config, save_config
from rml_jax.inference.export.checksums import check_sums
from rml_jax.models import build
from rml_jax.models.weights import load_weights, save_weights
from rml_jax.utils.errors import UserError

FILES = WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_model(folder, config, params, step):
    """Writes model.safetensors and config.json.

    Args:
      folder: pathlib.Path, an existing folder.
      config: ConfigDict of the run.
      params: nnx.State of `RML`.
      step: training step of the parameters, int.
    """
    save_weights(params, folder / WEIGHTS, metadata={"format": "rml_jax", "step": str(step)})
    save_config(config, folder / CONFIG)


def read_model(folder):
    """Loads the model that `write_model` wrote, without orbax.

    Args:
      folder: pathlib.Path.

    Returns:
      ConfigDict, nnx.State of `RML`, step (int).

    Raises:
      UserError: if a file is missing or was changed (`check_sums`), the backbone is not registered, or a parameter is
        missing.
    """
    check_sums(folder, FILES)
    config = load_config(folder / CONFIG)
    _, abstract = build.build_graph(config)
    params, report = load_weights(abstract, folder / WEIGHTS)
    if report.fresh:
        name, reason = next(iter(report.fresh.items()))
        raise UserError(f"{folder / WEIGHTS}: {name} is {reason}, expected all parameters of the network")
    try:
        with safe_open(folder / WEIGHTS, "numpy") as file:
            step = int(file.metadata()["step"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS}: no step in its metadata, expected an exported model") from error
    return config, params, step
