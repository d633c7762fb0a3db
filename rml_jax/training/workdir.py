"""The work directory of a run: its lock, and the files written before the first step."""

import datetime
import fcntl
import json
import os
import socket
import sys

import jax

from rml_jax.config import config_difference, load_config, save_config
from rml_jax.data.fingerprint import describe_changes, unpack_items
from rml_jax.utils import provenance
from rml_jax.utils.distributed import is_first
from rml_jax.utils.errors import UserError
from rml_jax.utils.files import atomic_write

# Keys that may differ from the config of the run that is resumed; "x." stands for all keys below x.
FREE_KEYS = (
    "checkpoint.",
    "data.category_ids",
    "data.allow_changes",
    # The images and tags themselves must be the same (`check_data`).
    "data.masks",
    "data.root",
    "data.tags",
    "data.val_list",
    "distributed",
    "eval.",
    "log.",
    "train.max_skipped",
    "train.shard_optimizer",
    "train.steps",
)


def check_workdir(config, workdir):
    """Checks, without writing anything, that a run with this config can start or resume in a folder.

    Args:
      config: ConfigDict of the run.
      workdir: pathlib.Path.

    Raises:
      UserError: if the folder cannot be written to, or holds a run whose config differs in keys outside `FREE_KEYS`.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: expected a folder or a new name for --workdir")
    there = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.is_dir())
    if is_first() and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={workdir}: {there} is read-only, expected a folder to write to")
    path = workdir / "config.json"
    if not path.exists():
        return
    changed = {
        key: values
        for key, values in config_difference(load_config(path), config).items()
        if not key.startswith(FREE_KEYS)
    }
    if changed:
        found = "; ".join(f"{key} is {new!r}, was {old!r}" for key, (old, new) in changed.items())
        raise UserError(
            f"{path} belongs to another run ({found}): expected the same config or another --workdir"
        )


def check_data(run, items, allow_changes):
    """Checks that a run resumes with the images and tags of its checkpoint.

    Args:
      run: what the checkpoint says of the run. Nothing is checked if it holds no `items`, as those of version 0.1.
      items: list of (id, positions of the tags) of the training images, or None if the source doesn't tell.
      allow_changes: whether to go on with other images or tags, with a message.

    Raises:
      UserError: if they have changed. The message says how.
    """
    if items is None or not run.get("items"):
        return
    changes = describe_changes(unpack_items(run["items"]), items)
    if changes and not allow_changes:
        raise UserError(
            f"the training images or their tags have changed since the run was saved: {changes}; expected the same; "
            "to go on with what is there now: --config.data.allow_changes=True"
        )
    if changes:
        print(f"training images since the run was saved: {changes}")


def occupy(workdir):
    """Makes the folder and locks it.

    The lock is the operating system's, on the file `lock`: it is released when this process ends for any reason.

    Args:
      workdir: pathlib.Path.

    Returns:
      An open file; closing it releases the lock.

    Raises:
      UserError: if another training holds the lock, or the folder cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - it stays open
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another training"
            lock.close()
            raise UserError(f"{workdir} is in use by {holder}: expected no other training in it") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    except OSError as error:
        raise _not_writable(workdir, error) from error
    return lock


def record_start(config, workdir, weights):
    """Writes config.json and environment.json.

    Args:
      config: ConfigDict of the run.
      workdir: pathlib.Path, occupied.
      weights: what is known of the weights that the run starts from, `rml_jax.models.weights.LoadReport.origin`.

    Raises:
      UserError: if the folder cannot be written to.
    """
    try:
        save_config(config, workdir / "config.json")
        _add_environment(workdir / "environment.json", weights)
    except OSError as error:
        raise _not_writable(workdir, error) from error


def _not_writable(workdir, error):
    return UserError(f"--workdir={workdir}: {error.strerror}, expected a folder to write to")


def _add_environment(path, weights):
    """Appends this start of the run to the list of starts."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    starts.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "host": socket.gethostname(),
            "processes": jax.process_count(),
            "devices": provenance.devices(),
            "commit": provenance.commit(),
            "versions": provenance.versions(),
            **({"weights": weights} if weights else {}),
        }
    )
    atomic_write(path, json.dumps(starts, indent=2) + "\n")
