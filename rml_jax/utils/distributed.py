"""Work in several processes, with jax.distributed."""

import contextlib
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from rml_jax.utils.errors import UserError

# The other processes end after this many seconds without a heartbeat from one of them.
_HEARTBEAT_SECONDS = 30


def join_processes():
    """Joins the other processes of the run. Call it before any other use of JAX.

    `jax.distributed.initialize` finds them on TPU pod slices, under Slurm and under Open MPI.

    Raises:
      UserError: if the environment is none of these, or the first process can't be reached.
    """
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"config.distributed is True, but the other processes can't be joined ({error}): expected a start by "
            "Slurm's srun, mpirun or on every worker of a TPU pod slice"
        ) from error


def is_first():
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def share(items):
    """Returns this process's share of a sequence: every n-th item of it, for n processes."""
    return items[jax.process_index() :: jax.process_count()]


def wait_for_all(name):
    """Waits until all processes have come here. `name` tells one such place from another."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def on_first(show):
    """Returns a function without result as it is on the first process, and one that does nothing on the others."""
    return show if is_first() else lambda *arguments: None


@contextlib.contextmanager
def noticing_lost_processes(what_next):
    """Turns the error that another process's end causes here into a UserError.

    Args:
      what_next: end of the message, such as "start all of them again".
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} failed or lost another one "
            f"({str(error).splitlines()[0][:200]}): {what_next}"
        ) from error


def on_first_process(action):
    """Runs `action()` on the first process only. If it raises a UserError, all processes raise one.

    Returns:
      Result of `action`; None on the other processes.
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
    """Exits with a status.

    One of several processes exits without the interpreter's clean-up, which would wait for the others even if they
    are dead. The others notice that its connections close.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
