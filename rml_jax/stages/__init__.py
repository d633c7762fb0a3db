"""From images to masks on the device: the stages of inference (docs/method.md, Inference and evaluation).

A network gives class activation maps (CAMs) and an affinity map; stages refine them. A stage is named by what refines
the CAMs, in order and joined by "+": `cam` (nothing), `affinity`, `par`, `crf`, `affinity+crf`, `crf+par`, ... Every
chain starts from the CAMs, so `crf` and `cam+crf` are the same, and so are `par` and `cam+par`.

`registry.STAGES` holds what can refine; `stage.Stage` says what a new one must have.

All images are padded: each lies in the top left corner of a canvas, `sizes` [B, 2] says where it ends, and what lies
beyond changes nothing inside (`rml_jax.ops.region`).
"""
