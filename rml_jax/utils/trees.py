"""Names for the leaves of parameter trees, the same in every file the project writes."""

import hashlib

import jax
import numpy as np


def named_leaves(tree):
    """The leaves of a pytree by path.

    Args:
      tree: for example an nnx.State of parameters, or an optimizer's state.

    Returns:
      Dict from a name such as "backbone/stages/0/embedding/kernel" to the leaf, in the tree's order.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in paths}


def with_leaves(tree, leaves):
    """A tree of the same structure with other leaves.

    Args:
      tree: pytree that gives structure and names.
      leaves: dict as `named_leaves` gives, with at least the tree's names.

    Returns:
      Pytree.
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named_leaves(tree)])


def digest(tree):
    """SHA-256 over the names, types, shapes and bytes of a pytree's arrays, in hexadecimal: equal only where all are.

    Args:
      tree: pytree of arrays, whole on this process.

    Returns:
      str of 64 digits.
    """
    total = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _name(path):
    # flax wraps every parameter in an object with one field; its name says nothing.
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
