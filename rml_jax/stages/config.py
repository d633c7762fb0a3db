"""The settings of the stages."""

import dataclasses

from rml_jax.models import build
from rml_jax.ops.pseudo_label import PseudoLabelConfig
from rml_jax.stages.registry import base_stage


@dataclasses.dataclass(frozen=True)
class StagesConfig:
    """Settings of the stages.

    Attributes:
      stages: names of the chains.
      scales, flip: of the multi-scale CAM (`rml_jax.ops.multi_scale_cam`).
      stride: pixels per cell of the network's last grid.
      radius: greatest step of the random walk, in cells.
      pseudo_label: settings of pseudo labels; `par` uses the same refinement.
      crf: name of the CRF's settings (`rml_jax.ops.crf.SETTINGS`).
      region_contrast: weight of the contrast by which the background's score of each image is chosen
        (`rml_jax.ops.contrast`); 0 for the same score in all images.
      mixed: whether the network's precision is mixed whatever the model's (`rml_jax.models.build.has_mixed_cams`).
      probabilities_of: the chains whose probabilities are returned besides their masks.
    """

    stages: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    stride: int
    radius: int
    pseudo_label: PseudoLabelConfig
    crf: str
    region_contrast: float = 0.0
    mixed: bool = False
    probabilities_of: tuple[str, ...] = ()

    @property
    def bases(self):
        """The bases of all chains (`rml_jax.stages.registry.split_stage`), in the order of the chains."""
        return tuple(dict.fromkeys(map(base_stage, self.stages)))


def stages_config(config, probabilities_of=()):
    """Returns the StagesConfig of a run (ConfigDict)."""
    return StagesConfig(
        stages=tuple(config.eval.stages),
        scales=config.cam.scales,
        flip=config.cam.flip,
        mixed=build.has_mixed_cams(config),
        stride=build.stride(config),
        radius=config.loss.radius,
        pseudo_label=PseudoLabelConfig(**config.pseudo_label),
        crf=config.eval.crf,
        region_contrast=config.eval.region_contrast,
        probabilities_of=probabilities_of,
    )
