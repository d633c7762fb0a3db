"""The stages of inference, from images to masks on the device (docs/method.md, Inference and evaluation).

The network gives class activation maps (CAMs) and an affinity map; stages refine the CAMs. A chain of stages is named
by its stages in order, joined by "+": `cam` (no refinement), `affinity`, `par`, `crf`, `affinity+crf`, `crf+par`, ...
Every chain starts from the CAMs, so `crf` and `cam+crf` are the same, and so are `par` and `cam+par`.

`registry.STAGES` holds the stages; `stage.Stage` is the base class of a new one.

All images are padded: each lies in the top left corner of a canvas, `sizes` [B, 2] holds its height and width, and
pixels outside do not affect the result inside (`rml_jax.ops.region`).
"""
