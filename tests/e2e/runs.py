"""Tiny trainings by the real command, for `tests.e2e.faults` and `tests.e2e.devices`."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Five scenes of 32 pixels: every batch crosses the end of an epoch. Stochastic depth is on.
TINY = {
    "data.num_train": 5,
    "data.num_val": 3,
    "data.scene.size": 32,
    "data.scene.digit_size": "(14,20)",
    "model.drop_path_rate": 0.1,
    "train.crop_size": 32,
    "train.batch_size": 8,
    "log.every": 1,
    "log.pictures_every": 0,
    "checkpoint.every": 5,
}


class Run:
    """One process of `train.py`.

    Args:
      workdir: pathlib.Path.
      settings: dict of configuration keys, over `TINY`.
      devices: simulated CPU devices of the process.
      environment: further environment variables.
      before: function that the new process calls before the command starts.
    """

    def __init__(self, workdir, settings=(), *, devices=1, environment=(), before=None):
        self.workdir = workdir
        flags = [f"--config.{key}={value}" for key, value in {**TINY, **dict(settings)}.items()]
        self.process = subprocess.Popen(
            [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}", *flags],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                "PYTHONUNBUFFERED": "1",
                **dict(environment),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=before,
        )

    def finish(self, seconds=900):
        """Waits for the end. Returns the exit status, None after a timeout, and the output."""
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            output, _ = self.process.communicate()
            return None, output
        return self.process.returncode, output

    def wait_for_step(self, step, seconds=900):
        """Waits until a step is logged. Returns whether it was before the process ended or the time was up."""
        return self.wait_until(lambda: last_step(self.workdir) >= step, seconds)

    def wait_until(self, condition, seconds=900):
        """Waits until a condition holds. Returns whether it does before the process ends or the time is up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.002)
        return condition()


def start_processes(workdir, settings=(), *, count=2, devices=4):
    """Starts processes of one distributed training on this machine, as Slurm does. Returns the Runs."""
    settings = {**dict(settings), "distributed": True}
    return [
        Run(workdir, settings, devices=devices, environment=variables) for variables in slurm_variables(count)
    ]


def slurm_variables(count):
    """Returns the environment variables by which each of some processes on this machine finds the others."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": "0",
        }
        for index in range(count)
    ]


def entries(workdir):
    """Returns the entries of a run's log that do not depend on time: dict step -> dict of floats."""
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {
        entry["step"]: {name: value for name, value in entry.items() if not name.startswith("speed/")}
        for entry in found
    }


def last_step(workdir):
    """Returns the last step that a run has logged, 0 if there is none."""
    return max(entries(workdir), default=0)


def saved_steps(workdir):
    """Returns the steps of a run's complete checkpoints, in order."""
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").glob("*") if re.fullmatch(r"\d+", path.name)
    )


def printed_digest(output):
    """Returns the digest of the parameters that a finished run printed, or None."""
    found = re.search(r"parameters: sha256 (\w+)", output)
    return found and found[1]


def resumed_step(output):
    """Returns the step at which a run resumed, 0 for a fresh start."""
    found = re.search(r"resumed at step (\d+)", output)
    return int(found[1]) if found else 0
