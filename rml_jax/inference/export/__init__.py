"""Export of a trained network to a folder, in one of three formats:

  safetensors  model.safetensors, config.json    weights and the run's configuration, for `rml_jax.load`
  stablehlo    model.stablehlo, model.json       a program for jax alone, images of any size
  onnx         model.onnx, model.json            a program for ONNX runtimes, images of one size

Each folder also has SHA256SUMS of the two files (`sha256sum -c`) and MODEL_CARD.md. The run's scores, metrics.json,
are copied with the weights, so that the card of a program exported from these has them as well.
"""
