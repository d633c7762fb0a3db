"""A trained network as files for others. Every export is a folder:

  safetensors  model.safetensors, config.json    weights and the run's configuration, for `rml_jax.load`
  stablehlo    model.stablehlo, model.json       a program for jax alone, pictures of any size
  onnx         model.onnx, model.json            a program for ONNX runtimes, pictures of one size

with SHA256SUMS of these two files (`sha256sum -c`) and MODEL_CARD.md. The run's scores, metrics.json, go with the
weights, so that a program exported from these has them on its card, too.
"""
