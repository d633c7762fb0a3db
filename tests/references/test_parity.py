"""Every component against its independent reference: the measurements of `python -m tests.references`."""

import pytest

from tests.references.backbone import measure_small_variance
from tests.references.checks import CHECKS


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, id=check.name, marks=[pytest.mark.slow] * check.slow) for check in CHECKS],
)
def test_component_agrees_with_its_reference(check):
    for row in check.measure():
        assert row.difference <= row.tolerance, row


def test_reference_with_other_epsilons_is_told_apart():
    (row,) = measure_small_variance(original_epsilons=False)
    assert row.difference > 100 * row.tolerance
