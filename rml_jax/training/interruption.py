"""SIGTERM and SIGINT: the loop finishes its step, saves and ends."""

import signal

import jax
from jax.experimental import multihost_utils


class InterruptionNotice:
    """Context manager in which SIGTERM and SIGINT are noted rather than obeyed; a second one has its usual effect.

    One of several processes leaves signals alone: SIGTERM is JAX's, which has all of them end after the same step.
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
        """The signal that ends the run after this step, or None. To be asked after every step, on every process."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._received
