"""Several processes that train together, by JAX's own runtime."""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from rml_jax.utils.errors import UserError

# A process that is silent for so many seconds is taken for dead, and the others end.
_SILENCE = 30


def join_processes():
    """Makes this process one of several; to be called before any other use of JAX.

    Which processes there are is JAX's to find out: on TPU pod slices, under Slurm and under Open MPI by itself
    (`jax.distributed.initialize`).

    Raises:
      UserError: if this is none of these, or the first process can't be reached.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"config.distributed is True, but the other processes can't be joined ({error}): expected a start by "
            "Slurm's srun, mpirun or on every worker of a TPU pod slice"
        ) from error


def is_first():
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def on_first_process(action):
    """Runs `action()` on the first process alone; a UserError there is one everywhere, so that none waits.

    Returns:
      What `action` returned, None on the other processes.
    """
    result = failure = None
    if is_first():
        try:
            result = action()
        except UserError as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
        if failed and failure is None:
            failure = UserError("stopped with the first process, whose message says why")
    if failure is not None:
        raise failure
    return result


def leave(status):
    """Ends this process with an exit status.

    One of several ends at once: to say goodbye, as the interpreter's end does, it would wait for the others, which
    may be dead. They notice that its connections have closed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
