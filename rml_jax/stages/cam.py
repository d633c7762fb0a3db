"""Stage `cam`: the CAMs and the background's score, without refinement."""

from rml_jax.stages.stage import Stage


class Cam(Stage):
    """Returns the probabilities unchanged."""

    name = "cam"

    def apply(self, probabilities, config):
        return probabilities
