"""Stage `par`: pixel-adaptive refinement, with the settings of the pseudo labels."""

from rml_jax.ops.par import par
from rml_jax.stages.stage import Stage


class Par(Stage):
    """Refines by the colours of the image (`rml_jax.ops.par`)."""

    name = "par"
    needs = ("images", "sizes")
    independent_classes = True

    def apply(self, probabilities, config, images, sizes):
        pseudo = config.pseudo_label
        return par(
            images, probabilities, dilations=pseudo.dilations, iterations=pseudo.iterations, sizes=sizes
        )
