"""Graceful stop: after SIGTERM or SIGINT, training finishes the step, saves a checkpoint and ends."""

import signal

import jax
from jax.experimental import multihost_utils


class InterruptionNotice:
    """Context manager that records SIGTERM and SIGINT; a second signal has its usual effect.

    With several processes, JAX handles SIGTERM and makes all of them end after the same step.
    """

    def __init__(self):
        self._received = None
        self._before = {}

    def __enter__(self):
        signals = () if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in signals}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self._received = number
        signal.signal(number, self._before[number])

    def received(self, step):
        """Returns the signal that ends the run after this step, or None. Call it after each step, on each process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._received
