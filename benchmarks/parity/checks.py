"""All parity checks, in the order of the table."""

from benchmarks.parity import backbone, operators, step

CHECKS = [*operators.CHECKS, *backbone.CHECKS, *step.CHECKS]
