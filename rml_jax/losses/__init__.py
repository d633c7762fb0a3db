"""The losses of RML: pure functions of arrays, in float32.

Losses compare two views of an image: the original, and the one warped by the transform A (`Pair`).
`TERMS` lists the terms of the total loss; `register_term` adds one.
"""

from rml_jax.losses.apml import affinity_loss, apml
from rml_jax.losses.ciml import ciml, equivariance_distance, prototype_similarity, prototypes
from rml_jax.losses.classification import joined_soft_margin, multilabel_soft_margin
from rml_jax.losses.common import masked_mean
from rml_jax.losses.mfml import effective_rank, mfml, standardize
from rml_jax.losses.mutual_information import mutual_information
from rml_jax.losses.pair import Pair, make_pair
from rml_jax.losses.self_training import self_training
from rml_jax.losses.terms import TERMS, Term, loss_names, register_term, term_weights, total_loss

__all__ = [
    "TERMS",
    "Pair",
    "Term",
    "affinity_loss",
    "apml",
    "ciml",
    "effective_rank",
    "equivariance_distance",
    "joined_soft_margin",
    "loss_names",
    "make_pair",
    "masked_mean",
    "mfml",
    "multilabel_soft_margin",
    "mutual_information",
    "prototype_similarity",
    "prototypes",
    "register_term",
    "self_training",
    "standardize",
    "term_weights",
    "total_loss",
]
