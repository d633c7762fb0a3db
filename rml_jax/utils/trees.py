"""Names of the leaves of parameter trees, the same in all files that are written."""

import hashlib

import jax
import numpy as np


def named_leaves(tree):
    """Returns the leaves of a pytree by path.

    Args:
      tree: for example an nnx.State of parameters, or an optimizer's state.

    Returns:
      Dict from a name such as "backbone/stages/0/embedding/kernel" to the leaf, in the tree's order.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in paths}


def with_leaves(tree, leaves):
    """Returns a tree of the same structure with other leaves.

    Args:
      tree: pytree that gives structure and names.
      leaves: dict as `named_leaves` gives, with at least the tree's names.

    Returns:
      Pytree.
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named_leaves(tree)])


def digest(tree):
    """Returns the SHA-256 of the names, types, shapes and bytes of a pytree's arrays.

    Args:
      tree: pytree of arrays that this process can address.

    Returns:
      str of 64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _name(path):
    # flax wraps every parameter in an object with the field `value`.
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
