"""The base class of the stages that refine CAMs."""

from rml_jax.ops.cam import with_background

INPUTS = ("images", "sizes", "affinity")
"""Inputs that a stage can request; see `Stage`."""


class Stage:
    """Refines class probabilities.

    A subclass sets the attributes and implements `apply`; `rml_jax.stages.registry.register` adds it.

    Attributes:
      name: its name in `eval.stages`.
      needs: which of INPUTS `apply` takes by keyword:
        images: uint8 [B, H, W, 3], each image in the top left corner of the canvas,
        sizes: int32 [B, 2], height and width of each image,
        affinity: float32 [B, N, N] in [0, 1], N cells of the network's last grid on the canvas.
      independent_classes: whether `apply` refines each class by itself, whatever their number. The sweep then refines
        the classes of all background scores together. Such a stage keeps `from_cams`.
      own_program: whether it is compiled by itself. Other stages at the start of a chain are compiled into one
        program for all chains, which the sweep of the background scores runs.
    """

    name = ""
    needs = ()
    independent_classes = False
    own_program = False

    def apply(self, probabilities, config, **needs):
        """Refines probabilities; a pure function for jitted code.

        Args:
          probabilities: float32 [B, H, W, 1 + K], background first, summing to 1 up to PAR's growth.
          config: StagesConfig.
          **needs: the inputs in `needs`.

        Returns:
          float32 [B, H, W, 1 + K], undefined outside the images.
        """
        raise NotImplementedError

    def from_cams(self, cams, used, background, config, **needs):
        """Computes the probabilities of a chain that starts with this stage.

        Args:
          cams: float32 [B, H, W, K] in [0, 1].
          used: bool [B, K], the classes that are allowed.
          background: float32 [B, 1, 1, 1] or [1, 1, 1, 1], score of the background in each image.
          config, **needs: see `apply`.

        Returns:
          See `apply`.
        """
        return self.apply(with_background(cams, used, background), config, **needs)

    def select(self, inputs):
        """Returns the entries of a dict of INPUTS that this stage needs."""
        return {name: inputs[name] for name in self.needs}
