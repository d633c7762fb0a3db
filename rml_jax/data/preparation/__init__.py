"""TFDS builders of the data sets that `rml-jax prepare` makes; they need no TensorFlow."""
