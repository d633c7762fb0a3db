"""Stage `crf`: the dense CRF."""

import jax.numpy as jnp

from rml_jax.ops.crf import dense_crf_batch
from rml_jax.stages.stage import Stage


class Crf(Stage):
    """Refines along the edges of the image (`rml_jax.ops.crf`)."""

    name = "crf"
    needs = ("images", "sizes")
    own_program = True

    def apply(self, probabilities, config, images, sizes):
        # Values after PAR sum to more than 1; the CRF requires probabilities.
        probabilities = probabilities / jnp.maximum(probabilities.sum(axis=-1, keepdims=True), 1e-8)
        marginals, _ = dense_crf_batch(
            images, probabilities, sizes, slots=probabilities.shape[-1], settings=config.crf
        )
        return marginals
