"""The configuration of a train step for small networks and images."""

from rml_jax.config import default_config
from rml_jax.ops import AffineRange, PseudoLabelConfig
from rml_jax.training.step import StepConfig

CONFIG = StepConfig(
    loss=default_config().loss.to_dict() | {"radius": 3},
    affine=AffineRange(),
    pseudo_label=PseudoLabelConfig(high=0.4, low=0.3, slots=2, dilations=(1, 2), iterations=2),
    cam_scales=(1.0,),
    cam_flip=False,
    stride=4,
)
