"""The train step that tests take for small networks and pictures."""

from rml_jax import losses
from rml_jax.ops import AffineRange, PseudoLabelConfig
from rml_jax.training.step import StepConfig

CONFIG = StepConfig(
    weights=losses.LossWeights(),
    affine=AffineRange(),
    pseudo_label=PseudoLabelConfig(high=0.4, low=0.3, slots=2, dilations=(1, 2), iterations=2),
    cam_scales=(1.0,),
    cam_flip=False,
    radius=3,
    stride=4,
)
