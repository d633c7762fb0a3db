"""Compares a few training steps by the real command on several layouts of devices.

    python -m tests.e2e.devices [--json FILE] [--steps 5] [--warm-up 2] [--only NAME;NAME]

Devices are simulated on the CPU; processes communicate over loopback. All layouts get the same batches: `--warm-up`
steps of classification, then all losses. "difference" is the largest difference of any logged loss from one device's.
"""

import argparse
import signal
import tempfile
from pathlib import Path

from benchmarks import measure
from rml_jax.losses import loss_names
from tests.e2e.runs import Run, entries, start_processes


def main():
    parser = argparse.ArgumentParser("python -m tests.e2e.devices")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--only", default=";".join(LAYOUTS), help="beside one device")
    chosen = parser.parse_args()
    result = {"environment": measure.environment(), "layouts": {}}
    for name in dict.fromkeys([REFERENCE, *chosen.only.split(";")]):
        with tempfile.TemporaryDirectory() as folder:
            found, printed = train(name, Path(folder) / "run", chosen.steps, chosen.warm_up)
        result["layouts"][name] = {"losses": found, "printed": [output.splitlines() for output in printed]}
        reference = result["layouts"][REFERENCE]["losses"]
        result["layouts"][name]["difference"] = difference(found, reference)
        measure.write_json(result, chosen.json)


def train(layout, workdir, steps, warm_up):
    """Trains on a layout.

    Args:
      layout: name in `LAYOUTS`.
      workdir: pathlib.Path of the run, which must not exist.
      steps: number of steps.
      warm_up: number of first steps with classification alone.

    Returns:
      Dict step -> dict loss -> float, and the output of each process.

    Raises:
      RuntimeError: with the output, if a process fails.
    """
    settings = {"train.steps": steps, "loss.start_step": warm_up, "checkpoint.every": 3}
    ended = [run.finish() for run in LAYOUTS[layout](workdir, settings)]
    for status, output in ended:
        if status != 0:
            raise RuntimeError(f"{layout}: exit status {status}\n{output}")
    losses = {
        step: {name: entry[name] for name in loss_names() if name in entry}
        for step, entry in entries(workdir).items()
    }
    return losses, [output for _, output in ended]


def difference(found, reference):
    """Returns the largest difference of a loss in any step."""
    return max(
        abs(value - reference[step][name]) for step, terms in found.items() for name, value in terms.items()
    )


def on_devices(count, **more):
    return lambda workdir, settings: [Run(workdir, settings | more, devices=count)]


def two_processes(workdir, settings):
    return start_processes(workdir, settings, count=2, devices=4)


def resumed_on_eight(workdir, settings):
    """Stops one device while it compiles or computes the third step; resumes on eight."""
    first = Run(workdir, settings)
    first.wait_for_step(2)
    first.process.send_signal(signal.SIGTERM)
    first.finish()
    return [Run(workdir, settings, devices=8)]


REFERENCE = "1 device"
LAYOUTS = {
    REFERENCE: on_devices(1),
    "8 devices": on_devices(8),
    "8 devices, optimizer sharded": on_devices(8, **{"train.shard_optimizer": True}),
    "2 processes with 4 devices each": two_processes,
    "1 device, resumed on 8": resumed_on_eight,
}


if __name__ == "__main__":
    main()
