"""Weights from and to files: safetensors, one tensor per parameter path. No pickle anywhere."""

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rml_jax.errors import UserError
from rml_jax.trees import named_leaves, with_leaves


def save_weights(params, path):
    """Writes parameters as safetensors, under a temporary name first.

    Args:
      params: nnx.State of `RML`.
      path: pathlib.Path of the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    # safetensors writes the bytes of an array as they lie in memory and takes them for C order.
    save_file({name: np.asarray(leaf, order="C") for name, leaf in named_leaves(params).items()}, temporary)
    temporary.replace(path)


def load_weights(params, path):
    """Takes over the weights that a file holds for a network.

    The backbone must be complete. Heads are taken where name and shape fit: the classifier of another data set
    has other classes and starts afresh.

    Args:
      params: nnx.State of `RML`, freshly initialised.
      path: safetensors file written by `save_weights`.

    Returns:
      nnx.State, and the names of the parameters that were left as they were.

    Raises:
      UserError: if the file can't be read, or lacks backbone parameters or has them in other shapes.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: {error}, expected a safetensors file of weights") from error
    named = named_leaves(params)
    kept = [name for name, leaf in named.items() if name not in stored or stored[name].shape != leaf.shape]
    wrong = [name for name in kept if name.startswith("backbone/")]
    if wrong:
        shape = named[wrong[0]].shape
        found = f"of shape {stored[wrong[0]].shape}" if wrong[0] in stored else "missing"
        raise UserError(
            f"{path}: {wrong[0]} is {found}, expected {shape} ({len(wrong)} backbone parameters don't fit)"
        )
    loaded = {name: jnp.asarray(stored[name], named[name].dtype) for name in named if name not in kept}
    return with_leaves(params, named | loaded), kept
