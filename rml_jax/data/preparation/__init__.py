"""TFDS builders of the data sets that `rml-jax prepare` makes. They don't need TensorFlow."""
