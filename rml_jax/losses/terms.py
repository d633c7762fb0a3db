"""The registry of the terms of the total loss (Eq. 16), which training, logging, checks and reports read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rml_jax.losses.apml import apml
from rml_jax.losses.ciml import ciml
from rml_jax.losses.classification import multilabel_soft_margin
from rml_jax.losses.mfml import mfml
from rml_jax.losses.self_training import self_training
from rml_jax.utils.extensions import CONFIG_KEYS

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from rml_jax.losses.pair import Pair


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of the total loss.

    Attributes:
      compute: function of a Pair and the values of `config.loss` by name; returns the term, a float32 scalar, and a
        dict of further metrics to log.
      weight: name of its weight in `config.loss`; None for a weight of 1.
      panels: title of a panel of the report -> names of the term's metrics that it shows.
    """

    compute: Callable[[Pair, Mapping[str, float]], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
    weight: str | None
    panels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def _classification(pair, _):
    return multilabel_soft_margin(pair.original.logits, pair.tags), {}


def _self_training(pair, _):
    loss = self_training(pair.original.cam_logits, pair.labels, pair.tags)
    return loss + self_training(pair.warped.cam_logits, pair.warped_labels, pair.tags), {}


TERMS: dict[str, Term] = {
    "classification": Term(_classification, weight=None),
    "ciml": Term(
        lambda pair, loss: ciml(pair, loss["alpha"]),
        weight="ciml",
        panels={"parts of ciml": ("equivariance", "prototype_similarity")},
    ),
    "mfml": Term(
        lambda pair, loss: mfml(pair, loss["beta1"]),
        weight="mfml",
        panels={
            "parts of mfml": ("alignment", "information_context"),
            "effective rank of the context": ("context_rank",),
        },
    ),
    "apml": Term(
        lambda pair, loss: apml(pair, loss["beta2"], loss["affinity"]),
        weight="apml",
        panels={"parts of apml": ("affinity", "information_affinity_label", "information_affinity_pair")},
    ),
    "self_training": Term(_self_training, weight="self_training"),
}
"""Name of a term and of its metric -> Term, in the order of the sum."""


def register_term(name: str, term: Term, default_weight: float = 0.0) -> None:
    """Adds a term from outside the package, and its weight to `config.loss`.

    Call it before the configuration is created.

    Args:
      name: of the term and of its metric.
      term: its `weight` is a new name in `config.loss`.
      default_weight: at least 0; 0 logs the term without training on it.

    Raises:
      ValueError: if the name is taken, or the term has no weight.
    """
    if name in TERMS or name == "loss":
        raise ValueError(f"found a loss term named {name!r} already, expected a new name")
    if term.weight is None:
        raise ValueError(f"loss term {name!r} has no weight, expected its name in config.loss")
    TERMS[name] = term
    CONFIG_KEYS[f"loss.{term.weight}"] = float(default_weight)


def loss_names() -> tuple[str, ...]:
    """Returns the names of the logged losses: the total, `loss`, and each term."""
    return ("loss", *TERMS)


def term_weights(loss: Mapping[str, float]) -> dict[str, float]:
    """Returns the weight of each term, in order, from the values of `config.loss`."""
    return {name: 1.0 if term.weight is None else loss[term.weight] for name, term in TERMS.items()}


def total_loss(pair: Pair, loss: Mapping[str, float]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the total loss, the weighted sum of `TERMS` (Eq. 16).

    A term of weight 0 is computed and logged, but has no gradient.

    Args:
      pair: both views of a batch.
      loss: values of `config.loss` by name.

    Returns:
      float32 scalar, and a dict of the terms, unweighted, and their further metrics.
    """
    terms, metrics = {}, {}
    for name, term in TERMS.items():
        terms[name], parts = term.compute(pair, loss)
        metrics |= parts
    first, *others = (weight * terms[name] for name, weight in term_weights(loss).items() if weight)
    return first + sum(others), terms | metrics
