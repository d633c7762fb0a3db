"""All parity checks, in the order of the table."""

from tests.references import backbone, operators, step

CHECKS = [*operators.CHECKS, *backbone.CHECKS, *step.CHECKS]
