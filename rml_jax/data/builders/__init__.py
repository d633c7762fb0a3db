"""TFDS builders of the data sets that `rml_jax.data.prepare` makes; they need no TensorFlow."""
