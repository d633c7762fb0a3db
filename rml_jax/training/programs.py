"""The train step's programs: compiled before the first step, with what they cost."""

import time

from rml_jax.utils.distributed import is_first
from rml_jax.utils.progress import format_seconds

_NAMES = {False: "classification alone", True: "all losses"}


class StepPrograms:
    """The compiled train step, one program for classification alone and one with all losses.

    The programs that a run needs are compiled when the first step is taken, so that one that needs too much memory
    fails at the start and not after hours. The first process prints what each costs.

    Args:
      train_step: jitted function of `rml_jax.training.sharding.jit_train_step`.
      needed: the values of `mutual` that the run comes to.
    """

    def __init__(self, train_step, needed):
        self._train_step, self._needed, self._compiled = train_step, needed, {}

    def __call__(self, state, batch, mutual):
        """Takes a step, see `rml_jax.training.step.make_train_step`."""
        if not self._compiled:
            self._compiled = {one: self._compile(state, batch, one) for one in self._needed}
        return self._compiled[mutual](state, batch)

    def _compile(self, state, batch, mutual):
        if is_first():
            print(f"compiling the step with {_NAMES[mutual]} ...", flush=True)
        start = time.monotonic()
        compiled = self._train_step.lower(state, batch, mutual=mutual).compile()
        if is_first():
            seconds = format_seconds(time.monotonic() - start)
            print(f"  took {seconds}; {memory_text(compiled.memory_analysis())}", flush=True)
        return compiled


def memory_text(analysis):
    """Says what memory a program needs on each device.

    Args:
      analysis: of jax.stages.Compiled.memory_analysis; None where the backend has none.
    """
    if analysis is None:
        return "its memory is not known"
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    return (
        f"a step takes {_megabytes(kept + temporary)} of memory on each device: {_megabytes(kept)} for parameters, "
        f"optimizer and batch, {_megabytes(temporary)} for what lies between"
    )


def _megabytes(size):
    return f"{size / 1e6:,.0f} MB"
