"""Stage `cam`: the CAMs against the background's score."""

from rml_jax.stages.stage import Stage


class Cam(Stage):
    """Leaves the probabilities as they are."""

    name = "cam"

    def apply(self, probabilities, config):
        return probabilities
