"""RML on `digits` at 48 pixels, in batches of 8: the ablations' setting, a quarter of `configs/digits.py`'s work.

    python -m experiments.ablation --config=configs/digits_small.py --workdir=runs/ablation

Scenes, digits and batches are smaller; thresholds, rates and the 900 steps are those of `configs/digits.py`.
The variants are those of `rml_jax.variants`: `full` and the rows of the paper's Tables 1 and 2.
"""

import runpy
from pathlib import Path

from rml_jax.variants import with_variant


def get_config(variant="full"):
    """Returns the configuration of a variant."""
    # By path, since an installed package has the configurations in another folder.
    config = runpy.run_path(Path(__file__).with_name("digits.py"))["get_config"]()
    config.data.name = "digits_small"
    config.data.scene.size = 48
    config.data.scene.digit_size = (21, 33)
    config.train.batch_size = 8
    config.train.crop_size = 48
    config.eval.canvases = ((48, 48),)
    return with_variant(config, variant)
