"""The dense CRF by pydensecrf, a C++ extension."""

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

from rml_jax.ops.crf import CLIP


def by_pydensecrf(image, probs, settings):
    """Computes marginals float32 [H, W, C] by pydensecrf from uint8 [H, W, 3], float [H, W, C] and CRFSettings."""
    height, width, classes = probs.shape
    field = DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(probs, CLIP, 1)).astype(np.float32)
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, classes).T))
    field.addPairwiseGaussian(sxy=settings.spatial_sxy, compat=settings.spatial_weight)
    field.addPairwiseBilateral(
        sxy=settings.bilateral_sxy,
        srgb=settings.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=settings.bilateral_weight,
    )
    return np.array(field.inference(settings.iterations)).T.reshape(probs.shape)
