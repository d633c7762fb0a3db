"""The rows of the paper's ablations (Tables 1 and 2) as changes to a configuration of full RML."""

from rml_jax.utils.errors import UserError

_WITHOUT_TERMS = {"loss.ciml": 0.0, "loss.mfml": 0.0, "loss.apml": 0.0}

CHANGES = {
    "full": {},
    # Table 1, from the bottom up.
    "baseline": _WITHOUT_TERMS,
    "ciml": {"loss.mfml": 0.0, "loss.apml": 0.0},
    "ciml_mfml": {"loss.apml": 0.0},
    # Table 2, (a) to (e).
    "no_ciml": {"loss.ciml": 0.0},
    "no_fusion": {"model.fused_stages": 1},
    "no_mfml": {"loss.mfml": 0.0},
    "no_mi": {"loss.beta2": 0.0},
    "no_affinity": {"loss.affinity": 0.0},
}
"""Name of a variant -> the keys it changes and their values."""

LADDER = ("baseline", "ciml", "ciml_mfml", "full")
REMOVALS = ("no_ciml", "no_fusion", "no_mfml", "no_mi", "no_affinity")


def with_variant(config, name):
    """Changes the configuration of full RML to one of its variants, in place.

    Args:
      config: ConfigDict of a run with all terms (`rml_jax.config`).
      name: key of `CHANGES`.

    Returns:
      The same ConfigDict. A variant without mutual-learning terms trains the same number of steps on classification
      alone.

    Raises:
      UserError: if the name is unknown.
    """
    if name not in CHANGES:
        raise UserError(f"found no variant {name!r}, expected one of {', '.join(CHANGES)}")
    config.update_from_flattened_dict(CHANGES[name])
    if CHANGES[name] == _WITHOUT_TERMS:
        config.loss.start_step = config.train.steps
    return config
