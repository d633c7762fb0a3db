"""Running the form that a function takes on another platform, on this machine."""

import jax
from jax import export


def as_on(platforms, function):
    """Returns a function that runs here as it is lowered for some platforms, such as ("tpu",) or ("cpu", "tpu").

    StableHLO is the same language everywhere: without the check of platforms, programs for a TPU run on a CPU, unless
    they have kernels of their own.
    """
    unchecked = [export.DisabledSafetyCheck.platform()]

    def call(*arguments):
        program = export.export(jax.jit(function), platforms=platforms, disabled_checks=unchecked)(*arguments)
        return program.call(*arguments)

    return call
