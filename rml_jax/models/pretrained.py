"""Weights from and to files: safetensors, one tensor per parameter path. No pickle anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rml_jax.errors import UserError


def save_weights(params, path):
    """Writes parameters as safetensors, under a temporary name first.

    Args:
      params: nnx.State of `RML`.
      path: pathlib.Path of the file.
    """
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: np.asarray(leaf) for name, leaf in _named(params)}, temporary)
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
    named = _named(params)
    kept = [name for name, leaf in named if name not in stored or stored[name].shape != leaf.shape]
    wrong = [name for name in kept if name.startswith("backbone/")]
    if wrong:
        shape = dict(named)[wrong[0]].shape
        found = f"of shape {stored[wrong[0]].shape}" if wrong[0] in stored else "missing"
        raise UserError(
            f"{path}: {wrong[0]} is {found}, expected {shape} ({len(wrong)} backbone parameters don't fit)"
        )
    leaves = [leaf if name in kept else jnp.asarray(stored[name], leaf.dtype) for name, leaf in named]
    return jax.tree.unflatten(jax.tree.structure(params), leaves), kept


def _named(params):
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in paths]
