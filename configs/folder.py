"""RML on photographs of one's own, with tags but no masks.

    python train.py --config=configs/folder.py --config.data.root=PHOTOS --config.data.tags=TAGS.csv --workdir=DIR

Without `data.tags`, the name of each sub-folder of PHOTOS is the tag of the images in it. The classes are the
tags that occur; a tenth of the images is kept for validation. `data.root` may also be what
`rml-jax prepare folder` wrote, without `data.tags`. Not a row of the paper: its method and constants
(METHOD.md section 5: VOC's 18,000 steps) at MiT-B1. Set `model.init_from` to pre-trained weights wherever they
are to be had: from scratch, thousands of photographs are few.

`:small` is for a look on a CPU: the smallest published network (b0) on 160-pixel crops, 400 steps from scratch.
"""

from rml_jax.config import default_config, size_for_cpu
from rml_jax.utils.errors import UserError


def get_config(variant="full"):
    """The configuration of a variant, "full" or "small"."""
    config = default_config()
    config.data.name = "folder"
    config.data.source = "folder"
    config.log.pictures_every = 0  # Pictures need validation masks: switch them on where there are some.
    if variant == "small":
        size_for_cpu(config)
    elif variant != "full":
        raise UserError(f"found no variant {variant!r} of the configuration folder, expected full or small")
    return config
