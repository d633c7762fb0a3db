"""Representation Mutual Learning: weakly supervised semantic segmentation from image-level tags, in JAX.

predictor = rml_jax.load(DIR_or_file)
result = predictor(image)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rml_jax.inference.predictor import load

__version__ = "0.2.0"

__all__ = ["load"]


def __getattr__(name):
    # Imported on first use, so that `import rml_jax.ops` does not import what only a predictor needs.
    if name == "load":
        from rml_jax.inference.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
