"""A parity check: a component of rml_jax measured against an independent reference."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
    """One row of the parity table.

    Attributes:
      component: the measured component, with the case ("PAR, 9x7, dilations up to 24").
      reference: such as "torch grid_sample" or "NumPy loops".
      difference: the largest difference found, see `relative` and `absolute`.
      tolerance: its upper bound.
    """

    component: str
    reference: str
    difference: float
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Check:
    """One measurement of one or more rows.

    Attributes:
      name: of the test, without spaces ("backbone-b1").
      measure: function without arguments -> list of Difference.
      slow: whether it is too slow for `make test`.
    """

    name: str
    measure: Callable[[], list[Difference]]
    slow: bool = False


def absolute(found, expected):
    """Returns the largest absolute difference of two arrays of one shape, as float. NaN counts as infinite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise ValueError(f"shapes differ: found {found.shape}, expected {expected.shape}")
    difference = np.max(np.abs(found - expected), initial=0.0)
    return float(difference) if np.isfinite(difference) else float("inf")


def relative(found, expected):
    """Returns the largest absolute difference over the largest absolute value of the reference, as float.

    Elementwise ratios would measure rounding if a value is near 0.
    """
    scale = np.max(np.abs(np.asarray(expected, np.float64)), initial=0.0)
    return absolute(found, expected) / float(scale) if scale > 0 else absolute(found, expected)
